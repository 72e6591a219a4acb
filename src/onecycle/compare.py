"""How two recipes differ, in params and in results, and whether the results say that one is better.

onecycle compare main workspace               # one run a side: paired on the same test images
onecycle compare a1,a2,a3 b1,b2,b3            # several: a t-test on the runs
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from onecycle.differences import (
    ACCURACY,
    EqualRuns,
    Measure,
    Side,
    accuracy_difference,
    by_images,
    estimate,
    figures,
    metric,
    run_deviation,
    side_name,
    width,
)
from onecycle.numbers import compared, p_value
from onecycle.recipe import SEED, recipe_differing
from onecycle.results import Results, differing_params, prediction_metrics, same_model, shared_metrics
from onecycle.stats_tests import (
    FEW_DISCORDANT,
    Difference,
    Discordant,
    discordant,
    mcnemar_p,
    paired_difference,
    resampled_differences,
    runs_to_see,
)
from onecycle.tables import Page, Table
from onecycle.yaml_values import spelled

Verdict = Literal["better", "worse", "no evidence"]

LEVEL = 0.05
SIGHT = (0.002, 0.005)
"""Differences of accuracy for which a comparison says how many runs they take."""
RESAMPLED = ("ece", "macro_precision", "macro_recall", "macro_f1")
"""Metrics that predictions tell and that are no means over images."""


@dataclass(frozen=True)
class MetricComparison:
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
    metrics: list[MetricComparison]
    classes: list[MetricComparison]
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
    same_run: bool
    """Whether both sides are one run, of one model."""
    same_recipe: bool
    """Whether they are of one recipe and one code, with other seeds."""
    runs_to_see: dict[float, int]
    """Runs each, by difference of accuracy: two-sided level 0.05, power 0.9."""
    verdict: Verdict


def compare(first: Side, second: Side, known: EqualRuns | None = None) -> Comparison:
    """Compare two sides; a single run also by how far equal runs are `known` to be apart.

    Raises:
        UserError: as `accuracy_difference` does.
    """
    counts = by_images(first, second)
    accuracy = accuracy_difference(first, second, known=known)
    test, p = _test(first, second, counts, known)
    verdict: Verdict = "no evidence"
    if p < LEVEL and not accuracy.low <= 0 <= accuracy.high:
        verdict = "better" if accuracy.value > 0 else "worse"
    deviation, source = run_deviation(first, second, known)
    one, other = first[0], second[0]
    return Comparison(
        first=tuple(run.described for run in first),
        second=tuple(run.described for run in second),
        params={
            key: (spelled(one.params.get(key, "–")), spelled(other.params.get(key, "–")))
            for key in differing_params(one, other)
        },
        metrics=_metrics(first, second, counts, known),
        classes=list(_classes(first, second, known)),
        only_first_right=counts.first if counts else None,
        only_second_right=counts.second if counts else None,
        test=test,
        p=p,
        deviation=deviation,
        deviation_source=source,
        same_run=counts is not None and same_model(one, other),
        same_recipe=_same_recipe(first, second),
        runs_to_see={difference: runs_to_see(difference, deviation) for difference in SIGHT},
        verdict=verdict,
    )


def _test(first: Side, second: Side, counts: Discordant | None, known: EqualRuns | None) -> tuple[str, float]:
    """What the test of equal accuracy is called, and its p-value; of two that apply, the one that is less sure."""
    found: list[tuple[str, float]] = []
    if counts:
        few = counts.first + counts.second < FEW_DISCORDANT
        found.append((f"McNemar's test{', exact' if few else ''}", mcnemar_p(counts)))
    if told := estimate(first, second, ACCURACY, known):
        name = "Welch's t-test" if len(first) > 1 and len(second) > 1 else "Student's t-test"
        if known and known.deviation(ACCURACY):
            name = f"t-test with the deviation of {known}"
        found.append((name, told.p))
    return max(found, key=lambda one: one[1])


def _same_recipe(first: Side, second: Side) -> bool:
    one, *others = (*first, *second)
    alike = all(run.made.code == one.made.code and not recipe_differing(one.params, run.params) for run in others)
    return alike and bool(one.made.code) and SEED in differing_params(one, second[0])


def _metrics(first: Side, second: Side, counts: Discordant | None, known: EqualRuns | None) -> list[MetricComparison]:
    paired = _paired(first[0], second[0], counts) if counts else {}
    shared = shared_metrics((*first, *second))
    return [_row(name, first, second, metric(name), paired.get(name), known) for name in shared]


def _paired(first: Results, second: Results, counts: Discordant) -> dict[str, Difference]:
    """The intervals that one run a side gives: predictions say how often each was right and how sure, not the loss.

    One image cannot be resampled.
    """
    accuracy = paired_difference(counts)
    n = counts.n
    wrong = Difference(-accuracy.value * n, -accuracy.high * n, -accuracy.low * n)

    def measure(images: NDArray[np.int64]) -> NDArray[np.float64]:
        before, after = (prediction_metrics(run, images) for run in (first, second))
        return np.array([after[name] - before[name] for name in RESAMPLED])

    resampled = dict(zip(RESAMPLED, resampled_differences(measure, n), strict=True)) if n > 1 else {}
    return {"accuracy": accuracy, "wrong": wrong, **resampled}


def _row(
    name: str, first: Side, second: Side, measure: Measure, paired: Difference | None, known: EqualRuns | None
) -> MetricComparison:
    """With the wider of the intervals that the images and the runs give."""
    told = estimate(first, second, measure, known)
    widest = max((each for each in (paired, told.difference() if told else None) if each), key=width, default=None)
    one, other = (float(np.mean(figures(side, measure))) for side in (first, second))
    return MetricComparison(
        name, one, other, other - one, widest.low if widest else None, widest.high if widest else None
    )


def _classes(first: Side, second: Side, known: EqualRuns | None) -> Iterator[MetricComparison]:
    labels = first[0].labels
    for label, name in enumerate(first[0].classes):
        mine = labels == label
        if not mine.any():
            continue
        paired = None
        if len(first) == len(second) == 1:
            paired = paired_difference(discordant(first[0].correct[mine], second[0].correct[mine]))
        yield _row(name, first, second, partial(_share_right, mine), paired, known)


def _share_right(images: NDArray[np.bool_], run: Results) -> float:
    return float(run.correct[images].mean())


def document(comparison: Comparison) -> dict[str, Any]:
    """The comparison for `--json`."""
    return asdict(comparison) | {"runs_to_see": {str(key): runs for key, runs in comparison.runs_to_see.items()}}


def page(comparison: Comparison) -> Page:
    """The comparison for people."""
    first, second = side_name(comparison.first), side_name(comparison.second)
    parts: list[str | Table] = [f"{second} against {first}: {sentence(comparison)}"]
    if comparison.same_run and comparison.same_recipe:
        parts.append(
            "Both have the same results though their seeds differ: one was recorded without being run, by `dvc commit` "
            "or `dvc exp save`; `dvc repro --force` with its params makes it anew."
        )
    elif comparison.same_run:
        parts.append("Both are the same run.")
    elif comparison.same_recipe:
        parts.append("Same code and recipe, other seeds: with the same packages and device, what differs is chance.")
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
            f"only the second: {comparison.only_second_right:,}."
        )
    parts.append(
        f"Each of {len(comparison.metrics)} metrics and {len(comparison.classes)} classes is a test of its own: "
        "in one of twenty, chance alone leaves 0 outside the interval."
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
    words = "no evidence of a difference" if comparison.verdict == "no evidence" else comparison.verdict
    _, _, difference, interval = _compared(accuracy, "accuracy")
    return f"{words}; accuracy {difference} points ({interval}), p = {p_value(comparison.p, LEVEL)}, {comparison.test}"


def _cells(row: MetricComparison, metric: str, name: str | None = None) -> tuple[str, ...]:
    return (name or row.name, *_compared(row, metric))


def _compared(row: MetricComparison, metric: str) -> tuple[str, str, str, str]:
    return compared(metric, row.first, row.second, row.low, row.high)
