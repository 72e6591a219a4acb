"""How two recipes differ, in params and in results, and whether the results say that one is better.

onecycle compare main workspace               # one run a side: paired on the same test images
onecycle compare a1,a2,a3 b1,b2,b3            # three or more a side: Welch's t-test on the runs
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from onecycle import evaluation
from onecycle.errors import UserError
from onecycle.results import RANGES, Results, check_comparable, differing
from onecycle.stats_tests import (
    FEW_DISCORDANT,
    FEW_RUNS,
    Difference,
    Discordant,
    discordant,
    mcnemar_p,
    paired_difference,
    pooled_deviation,
    resampled_differences,
    run_deviation,
    runs_to_see,
    welch_difference,
    welch_p,
)
from onecycle.tables import Page, Table
from onecycle.tracking.yaml_values import spelled

Side = Sequence[Results]
Verdict = Literal["better", "worse", "no evidence"]

LEVEL = 0.05
SIGHT = (0.002, 0.005)
"""Differences of accuracy for which a comparison says how many runs they take."""
RESAMPLED = ("ece", "macro_precision", "macro_recall", "macro_f1")
"""Metrics that predictions tell and that are no means over images."""
UNCOMPARED = ("accuracy_low", "accuracy_high", "n")
"""The ends of an interval say nothing that the interval of the difference does not say better; n is the same."""


@dataclass(frozen=True)
class Row:
    """One figure of both sides; several runs are shown by their mean."""

    name: str
    first: float
    second: float
    difference: float
    low: float | None
    """The ends of the 95 % interval; None where the results cannot give one."""
    high: float | None


@dataclass(frozen=True)
class Comparison:
    """The second side seen from the first."""

    first: tuple[str, ...]
    second: tuple[str, ...]
    params: dict[str, tuple[str, str]]
    """Those that differ, as YAML spells them."""
    metrics: list[Row]
    classes: list[Row]
    """Share of each class's images that are right."""
    only_first_right: int | None
    """Images, with one run a side."""
    only_second_right: int | None
    test: str
    p: float
    deviation: float
    """Between equal runs, of accuracy: measured, or assumed with one run a side."""
    runs_to_see: dict[float, int]
    """Runs each, by difference of accuracy: two-sided level 0.05, power 0.9."""
    verdict: Verdict


def replicated(first: Side, second: Side) -> bool:
    """Whether the runs themselves are the sample, three or more a side; else it is one run each.

    Raises:
        UserError: it is neither, or the sides were tested on other images.
    """
    check_comparable(first, second)
    sizes = (len(first), len(second))
    if sizes == (1, 1):
        return False
    if min(sizes) < FEW_RUNS:
        raise UserError(f"give one run a side, or {FEW_RUNS} or more on both (a1,a2,a3), got {sizes[0]} and {sizes[1]}")
    return True


def accuracy_difference(first: Side, second: Side, confidence: float = 0.95) -> Difference:
    """Accuracy of the second side minus that of the first.

    Raises:
        UserError: as `replicated`, or all runs of a side are equally accurate, on both sides.
    """
    if not replicated(first, second):
        return paired_difference(_discordant(first, second), confidence)
    try:
        return welch_difference(values(first, "accuracy"), values(second, "accuracy"), confidence)
    except ValueError:
        raise UserError("accuracy does not vary between the runs of either side; add runs with other seeds") from None


def deviation_between_runs(first: Side, second: Side) -> float:
    """Standard deviation of accuracy between equal runs: of those given, or assumed with one a side."""
    if replicated(first, second):
        return pooled_deviation(values(first, "accuracy"), values(second, "accuracy"))
    return run_deviation(_discordant(first, second))


def values(side: Side, metric: str) -> list[float]:
    """A metric of every run."""
    return [run.metrics[metric] for run in side]


def compare(first: Side, second: Side) -> Comparison:
    """Compare two sides. Raises `UserError` as `accuracy_difference` does."""
    by_runs = replicated(first, second)
    accuracy = accuracy_difference(first, second)
    shared = [
        name for name in RANGES if name not in UNCOMPARED and all(name in run.metrics for run in (*first, *second))
    ]
    counts = None if by_runs else _discordant(first, second)
    paired = _paired(first[0], second[0], accuracy, counts) if counts else {}
    if counts is None:
        test, p = "Welch's t-test", welch_p(values(first, "accuracy"), values(second, "accuracy"))
    else:
        exact = counts.first + counts.second < FEW_DISCORDANT
        test, p = "McNemar's test, exact" if exact else "McNemar's test", mcnemar_p(counts)
    deviation = deviation_between_runs(first, second)
    verdict: Verdict = "no evidence"
    if p < LEVEL and not accuracy.low <= 0 <= accuracy.high:
        verdict = "better" if accuracy.value > 0 else "worse"
    return Comparison(
        first=tuple(run.described for run in first),
        second=tuple(run.described for run in second),
        params={
            key: (spelled(first[0].params.get(key, "–")), spelled(second[0].params.get(key, "–")))
            for key in differing(first[0], second[0])
        },
        metrics=[_row(name, values(first, name), values(second, name), paired.get(name)) for name in shared],
        classes=_classes(first, second),
        only_first_right=counts.first if counts else None,
        only_second_right=counts.second if counts else None,
        test=test,
        p=p,
        deviation=deviation,
        runs_to_see={difference: runs_to_see(difference, deviation) for difference in SIGHT},
        verdict=verdict,
    )


def _discordant(first: Side, second: Side) -> Discordant:
    return discordant(first[0].correct, second[0].correct)


def _paired(first: Results, second: Results, accuracy: Difference, counts: Discordant) -> dict[str, Difference]:
    """The intervals that one run a side gives: predictions say how often each was right and how sure, not the loss.

    One image cannot be resampled.
    """
    n = counts.n
    wrong = Difference(-accuracy.value * n, -accuracy.high * n, -accuracy.low * n)

    def measure(images: NDArray[np.int64]) -> NDArray[np.float64]:
        before, after = (_told(run, images) for run in (first, second))
        return np.array([after[name] - before[name] for name in RESAMPLED])

    resampled = dict(zip(RESAMPLED, resampled_differences(measure, n), strict=True)) if n > 1 else {}
    return {"accuracy": accuracy, "wrong": wrong, **resampled}


def _told(run: Results, images: NDArray[np.int64]) -> dict[str, float | int]:
    """The metrics of predictions on some images."""
    unknown = np.full(len(images), np.nan)  # losses, which are not needed here
    chosen = evaluation.Outcomes(run.labels[images], run.predictions[images], run.confidence[images], unknown)
    return evaluation.prediction_metrics(chosen, len(run.classes))


def _row(name: str, first: Sequence[float], second: Sequence[float], known: Difference | None = None) -> Row:
    one, other = float(np.mean(first)), float(np.mean(second))
    if known is None and min(len(first), len(second)) >= FEW_RUNS and (np.ptp(first) or np.ptp(second)):
        known = welch_difference(first, second)
    return Row(name, one, other, other - one, known.low if known else None, known.high if known else None)


def _classes(first: Side, second: Side) -> list[Row]:
    rows = []
    labels = first[0].labels
    for label, name in enumerate(first[0].classes):
        mine = labels == label
        if not mine.any():
            continue
        one, other = ([float(run.correct[mine].mean()) for run in side] for side in (first, second))
        known = None
        if len(first) == 1:
            known = paired_difference(discordant(first[0].correct[mine], second[0].correct[mine]))
        rows.append(_row(name, one, other, known))
    return rows


def document(comparison: Comparison) -> dict[str, Any]:
    """The comparison for `--json`."""
    return asdict(comparison) | {"runs_to_see": {str(key): runs for key, runs in comparison.runs_to_see.items()}}


def page(comparison: Comparison) -> Page:
    """The comparison for people."""
    first, second = (", ".join(side) for side in (comparison.first, comparison.second))
    parts: list[str | Table] = [f"{second} against {first}: {sentence(comparison)}"]
    if comparison.params:
        rows = [(key, *pair) for key, pair in comparison.params.items()]
        parts.append(Table("Params that differ", ("param", "first", "second"), rows))
    heads = ("first", "second", "difference", "95 % interval")
    parts.append(Table("Test metrics", ("metric", *heads), [_cells(row, row.name) for row in comparison.metrics]))
    parts.append(
        Table("Right, by class", ("class", *heads), [_cells(row, "accuracy", row.name) for row in comparison.classes])
    )
    if comparison.only_first_right is not None:
        parts.append(
            f"Only the first gets {comparison.only_first_right:,} images right, "
            f"only the second {comparison.only_second_right:,}. Intervals are paired on the test images; those of "
            "top-k accuracies and losses need three runs a side. Ten classes are ten tests: one of them is often off."
        )
    needed = " and ".join(f"{runs} for {100 * by:g} points" for by, runs in comparison.runs_to_see.items())
    assumed = "" if comparison.only_first_right is None else ", assumed"
    parts.append(
        f"Runs each to see a difference nine times in ten: {needed} "
        f"(standard deviation between equal runs {100 * comparison.deviation:.2f} points{assumed})."
    )
    return parts


def sentence(comparison: Comparison) -> str:
    """The verdict in one line."""
    accuracy = next(row for row in comparison.metrics if row.name == "accuracy")
    words = {"better": "better", "worse": "worse", "no evidence": "no evidence of a difference"}[comparison.verdict]
    interval = number(accuracy, "accuracy")
    return f"{words}; accuracy {interval[2]} points ({interval[3]}), p = {comparison.p:.2g}, {comparison.test}"


def number(row: Row, metric: str) -> tuple[str, str, str, str]:
    """Both sides, difference and interval: shares in percent and points, counts and losses as they are."""
    if metric == "wrong":
        value, signed, factor = "{:,.6g}", "{:+,.0f}", 1.0
    elif metric in ("loss", "brier", "ece"):
        value, signed, factor = "{:.4f}", "{:+.4f}", 1.0
    else:
        value, signed, factor = "{:.2f} %", "{:+.2f}", 100.0
    interval = "–"
    if row.low is not None and row.high is not None:
        interval = f"{signed.format(factor * row.low)} to {signed.format(factor * row.high)}"
    return (
        value.format(factor * row.first),
        value.format(factor * row.second),
        signed.format(factor * row.difference),
        interval,
    )


def _cells(row: Row, metric: str, name: str | None = None) -> tuple[str, ...]:
    return (name or row.name, *number(row, metric))
