"""By how much two sides of runs differ, and how sure that is: on the same test images, and by how far runs are apart.

One run a side is paired on the images; several are a sample of their own; and other seeds may tell how far a single
run is from its equals.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from onecycle.errors import UserError
from onecycle.recipe import recipe_differing
from onecycle.results import Results, check_comparable, read, same_model
from onecycle.revisions import REFERENCE, Place, references, seeds
from onecycle.stats_tests import (
    Deviation,
    Difference,
    Discordant,
    Estimate,
    assumed_deviation,
    discordant,
    paired_difference,
    pooled_deviation,
    runs_estimate,
    shown_deviation,
)

ENOUGH_SEEDS = 5
"""From which on a recipe's own seeds tell best how far its runs are apart."""

Side = Sequence[Results]
Measure = Callable[[Results], float]


def side_name(names: Sequence[str]) -> str:
    """Runs in a sentence: the seeds of one folder by its name and their number, others one by one."""
    folders = {Path(name).parent for name in names if Path(name).name.startswith("seed-")}
    if len(names) < 2 or len(folders) != 1 or any(Path(name).parent not in folders for name in names):
        return ", ".join(names)
    [folder] = folders
    shown = folder.relative_to(REFERENCE) if folder.is_relative_to(REFERENCE) else folder
    return f"{shown.as_posix()} ({len(names)} runs)"


def metric(name: str) -> Measure:
    """What gives a run's metric; NaN where it has none."""
    return lambda run: run.metrics.get(name, math.nan)


ACCURACY = metric("accuracy")


@dataclass(frozen=True)
class EqualRuns:
    """Recipes of several seeds, which tell how far equal runs are apart."""

    recipes: Mapping[str, Side]
    """Name → two runs and more."""
    where: str
    """The folder that keeps them."""

    def deviation(self, measure: Measure) -> Deviation | None:
        """Of a figure of theirs; None where it does not vary, or one of them lacks it."""
        found = pooled_deviation(*([measure(run) for run in runs] for runs in self.recipes.values()))
        return found if found.value > 0 else None

    def __str__(self) -> str:
        *others, last = (f"{len(runs)} of {name}" for name, runs in self.recipes.items())
        told = f"{', '.join(others)} and {last}" if others else last
        return f"the seeds in {self.where}, {told}"


def recipes() -> dict[str, tuple[Place, ...]]:
    """Recipe → its runs, one a seed, of those below results/reference."""
    found = dict.fromkeys(folder.parent for folder in references())
    return {folder.name: seeds(Place.at(folder)) for folder in found}


def equal_runs(first: Side, second: Side) -> EqualRuns | None:
    """What the seeds kept here tell of how far a single run on either side is from its equals.

    They are those of its own recipe where these are enough, for each of two single runs, else of all recipes on this
    data set, which are taken to vary alike. The runs of both sides are left out: a single run is no measure of itself,
    and several tell their own deviation already, which must not count twice.

    Returns:
        None where no side is of one run, both are of one model, or no two seeds of a recipe are kept.

    Raises:
        UserError: what is kept cannot be read.
    """
    singles = [side[0] for side in (first, second) if len(side) == 1]
    if not singles or (len(singles) == 2 and same_model(*singles)):
        return None
    kept: dict[str, list[Results]] = {}
    for recipe, places in recipes().items():
        if len(places) > 1:
            runs = [run for run in map(read, places) if run.digest == first[0].digest]
            kept[recipe] = [run for run in runs if not any(same_model(run, one) for one in (*first, *second))]
    known = {recipe: runs for recipe, runs in kept.items() if len(runs) > 1}
    own = [_own(single, known) for single in singles]
    chosen = {recipe: known[recipe] for recipe in own if recipe} if all(own) else known
    return EqualRuns(chosen, REFERENCE.as_posix()) if chosen else None


def _own(single: Results, known: Mapping[str, Side]) -> str | None:
    """The recipe of a run, if enough other seeds of it are known."""
    enough = (recipe for recipe, runs in known.items() if len(runs) >= ENOUGH_SEEDS)
    return next((recipe for recipe in enough if not recipe_differing(known[recipe][0].params, single.params)), None)


def figures(side: Side, measure: Measure) -> list[float]:
    """A figure of every run."""
    return [measure(run) for run in side]


def by_images(first: Side, second: Side) -> Discordant | None:
    """What one run a side disagree on; None with several on a side, which are compared as runs.

    Raises:
        UserError: the sides were tested on other images, or with several runs a side have one of them in common.
    """
    check_comparable(first, second)
    return discordant(first[0].correct, second[0].correct) if len(first) == len(second) == 1 else None


def estimate(first: Side, second: Side, measure: Measure, known: EqualRuns | None) -> Estimate | None:
    """A figure's difference, second minus first, as runs tell it; None where none tell how far they deviate."""
    alone = known.deviation(measure) if known else None
    return runs_estimate(figures(first, measure), figures(second, measure), alone)


def accuracy_difference(
    first: Side, second: Side, confidence: float = 0.95, known: EqualRuns | None = None
) -> Difference:
    """Accuracy of the second side minus that of the first, with its interval.

    One run a side is paired on the test images; where equal runs are `known` to be further apart, by those.

    Raises:
        UserError: as `by_images`, or nothing varies between the runs of either side.
    """
    counts = by_images(first, second)
    told = estimate(first, second, ACCURACY, known)
    found = [told.difference(confidence)] if told else []
    if counts:
        found.append(paired_difference(counts, confidence))
    if not found:
        raise UserError("accuracy does not vary between the runs of either side; add runs with other seeds")
    return max(found, key=width)


def width(difference: Difference) -> float:
    """From the low end of its interval to the high one."""
    return difference.high - difference.low


def run_deviation(first: Side, second: Side, known: EqualRuns | None = None) -> tuple[float, str]:
    """Standard deviation of accuracy between equal runs, and what tells it, in words.

    Of a side of several runs those tell it; of one run what is `known`, else the other side. Where both sides have one
    of their own, it is the root of the mean of their squares.
    """
    several = [figures(side, ACCURACY) for side in (first, second) if len(side) > 1]
    these = pooled_deviation(*several).value if several else 0.0
    others = known.deviation(ACCURACY) if known and len(several) < 2 else None
    if others:
        if not several:
            return others.value, str(known)
        return math.sqrt((these**2 + others.value**2) / 2), f"these runs and {known}"
    if these > 0:
        return these, "these runs"
    shown = shown_deviation(discordant(first[0].correct, second[0].correct))
    assumed = assumed_deviation(len(first[0].labels))
    # a recipe that differs may agree with the first more than the first does with itself
    return (shown, "from the images they disagree on") if shown > assumed else (assumed, "assumed")
