"""How two recipes differ, in params and in results, and whether the results say that one is better.

onecycle compare main workspace               # one run a side: paired on the same test images
onecycle compare a1,a2,a3 b1,b2,b3            # several: a t-test on the runs
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from onecycle import evaluation
from onecycle.errors import UserError
from onecycle.recipe import SEED, recipe_differing
from onecycle.results import RANGES, Results, check_comparable, differing
from onecycle.stats_tests import (
    FEW_DISCORDANT,
    Difference,
    Discordant,
    discordant,
    excess_deviation,
    mcnemar_p,
    means_difference,
    means_p,
    means_test,
    paired_difference,
    pooled_deviation,
    resampled_differences,
    run_deviation,
    runs_to_see,
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


class Spread(NamedTuple):
    """How far equal runs of a recipe are apart, where several of them tell."""

    deviation: float
    """Standard deviation of accuracy."""
    source: str
    """Which runs, in words."""


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
    """Between equal runs, of accuracy."""
    deviation_source: str
    """What tells it, in words."""
    replicates: bool
    """Whether the two sides are one recipe and one code, with other seeds."""
    runs_to_see: dict[float, int]
    """Runs each, by difference of accuracy: two-sided level 0.05, power 0.9."""
    verdict: Verdict


def replicated(first: Side, second: Side) -> bool:
    """Whether the runs themselves are the sample, with several on a side; else it is one run each.

    Raises:
        UserError: the sides were tested on other images.
    """
    check_comparable(first, second)
    return max(len(first), len(second)) > 1


def accuracy_difference(
    first: Side, second: Side, confidence: float = 0.95, spread: Spread | None = None
) -> Difference:
    """Accuracy of the second side minus that of the first; one run a side is paired, and widened by a known `spread`.

    Raises:
        UserError: as `replicated`, or all runs of a side are equally accurate, on both sides.
    """
    if not replicated(first, second):
        counts = _discordant(first, second)
        return paired_difference(counts, confidence, _excess(counts, spread))
    try:
        return means_difference(values(first, "accuracy"), values(second, "accuracy"), confidence)
    except ValueError:
        raise UserError("accuracy does not vary between the runs of either side; add runs with other seeds") from None


def between_runs(first: Side, second: Side, spread: Spread | None = None) -> Spread:
    """How far equal runs are apart: as those given tell, or with one a side a known `spread`, or their images."""
    if replicated(first, second):
        return Spread(pooled_deviation(values(first, "accuracy"), values(second, "accuracy")), "these runs")
    assumed = run_deviation(_discordant(first, second))
    return spread if spread and spread.deviation > assumed else Spread(assumed, "assumed")


def _excess(counts: Discordant, spread: Spread | None) -> float:
    return excess_deviation(counts, spread.deviation) if spread else 0.0


def values(side: Side, metric: str) -> list[float]:
    """A metric of every run."""
    return [run.metrics[metric] for run in side]


def compare(first: Side, second: Side, spread: Spread | None = None) -> Comparison:
    """Compare two sides, one run each also by what is known of the `spread` of their recipes.

    Raises:
        UserError: as `accuracy_difference` does.
    """
    by_runs = replicated(first, second)
    accuracy = accuracy_difference(first, second, spread=spread)
    shared = [
        name for name in RANGES if name not in UNCOMPARED and all(name in run.metrics for run in (*first, *second))
    ]
    counts = None if by_runs else _discordant(first, second)
    paired = _paired(first[0], second[0], accuracy, counts) if counts else {}
    equal = between_runs(first, second, spread)
    if counts is None:
        sides = values(first, "accuracy"), values(second, "accuracy")
        test, p = means_test(*sides), means_p(*sides)
    else:
        excess = _excess(counts, spread)
        test, p = _mcnemar(counts, equal if excess else None), mcnemar_p(counts, excess)
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
        deviation=equal.deviation,
        deviation_source=equal.source,
        replicates=_replicates(first[0], second[0]),
        runs_to_see={difference: runs_to_see(difference, equal.deviation) for difference in SIGHT},
        verdict=verdict,
    )


def _mcnemar(counts: Discordant, spread: Spread | None) -> str:
    if spread:
        return f"McNemar's test with the deviation of {spread.source}"
    return "McNemar's test, exact" if counts.first + counts.second < FEW_DISCORDANT else "McNemar's test"


def _replicates(first: Results, second: Results) -> bool:
    other_seeds = SEED in differing(first, second) and not recipe_differing(first.params, second.params)
    return other_seeds and bool(first.made.code) and first.made.code == second.made.code


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
    if known is None and max(len(first), len(second)) > 1 and (np.ptp(first) or np.ptp(second)):
        known = means_difference(first, second)
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
        if len(first) == len(second) == 1:
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
    if comparison.replicates:
        parts.append("Both are the same code and recipe with other seeds: what differs is chance.")
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
            f"Images that only the first gets right: {comparison.only_first_right:,}; "
            f"only the second: {comparison.only_second_right:,}. Intervals are paired on the test images; those of "
            "top-k accuracies and losses need several runs. Ten classes are ten tests: one of them is often off."
        )
    needed = " and ".join(f"{runs} for {100 * by:g} points" for by, runs in comparison.runs_to_see.items())
    parts.append(
        f"Runs each to see a difference nine times in ten: {needed} (standard deviation between equal runs "
        f"{100 * comparison.deviation:.2f} points, {comparison.deviation_source})."
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
