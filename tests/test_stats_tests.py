"""Tests and intervals against published figures, other libraries, and what they promise."""

from __future__ import annotations

import ast
from bisect import bisect_left
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import binom, binomtest, chi2, t, ttest_1samp, ttest_ind
from statsmodels.stats.power import TTestIndPower

from onecycle import stats_tests
from onecycle.stats_tests import (
    Deviation,
    Discordant,
    Estimate,
    assumed_deviation,
    discordant,
    mcnemar_p,
    mean_of_runs,
    paired_difference,
    pooled_deviation,
    resampled_differences,
    runs_estimate,
    runs_to_see,
    runs_to_settle,
    shown_deviation,
)


def estimated(first: list[float], second: list[float], alone: Deviation | None = None) -> Estimate:
    """Where there is something to estimate it from."""
    found = runs_estimate(first, second, alone)
    assert found
    return found


def test_discordant_images_are_counted() -> None:
    first = np.array([True, True, True, False, False, True])
    second = np.array([True, False, False, True, False, True])
    assert discordant(first, second) == (2, 1, 6)


@pytest.mark.parametrize("counts", [(0, 1), (3, 9), (0, 12), (12, 12)])
def test_few_discordant_images_are_tested_exactly(counts: tuple[int, int]) -> None:
    assert mcnemar_p(Discordant(*counts, 1000)) == pytest.approx(binomtest(counts[0], sum(counts)).pvalue)


def test_many_discordant_images_are_tested_without_correction() -> None:
    assert mcnemar_p(Discordant(255, 195, 10_000)) == pytest.approx(chi2.sf(60**2 / 450, 1))


def test_equal_predictions_are_no_evidence() -> None:
    assert mcnemar_p(Discordant(0, 0, 10_000)) == 1
    value, low, high = paired_difference(Discordant(0, 0, 10_000))
    assert value == 0 and low == pytest.approx(-high) and 0 < high < 0.0003


def test_the_paired_interval_is_the_published_one() -> None:
    """Airway hyper-responsiveness before and after transplantation, Fagerland, Lydersen and Laake (2014)."""
    value, low, high = paired_difference(Discordant(7, 1, 21))
    assert (round(value, 3), round(low, 3), round(high, 3)) == (-0.286, -0.508, -0.013)


@pytest.mark.parametrize("alpha", [0.05, 0.025])
@pytest.mark.parametrize(("images", "discordant_images"), [(360, 3), (360, 20), (360, 60), (10_000, 10), (10_000, 450)])
def test_equal_classifiers_are_told_apart_no_more_often_than_promised(
    images: int, discordant_images: int, alpha: float
) -> None:
    """The exact probability, over all tables, that the one-sided bound is above 0."""
    share = discordant_images / images
    lowest, highest = (int(end) for end in binom.ppf([1e-9, 1 - 1e-9], images, share))
    rate = 0.0
    for total in range(lowest, highest + 1):

        def certain(second: int, total: int = total) -> bool:
            return paired_difference(Discordant(total - second, second, images), 1 - 2 * alpha).low > 0

        critical = bisect_left(range(total + 1), True, key=certain)
        rate += binom.pmf(total, images, share) * binom.sf(critical - 1, total, 0.5)
    assert 0.001 < rate <= alpha


def test_the_paired_interval_covers_a_true_difference() -> None:
    generator = np.random.default_rng(0)
    share = np.array([0.0255, 0.0195, 0.955])
    draws = generator.multinomial(10_000, share, size=4000)
    intervals = [paired_difference(Discordant(first, second, 10_000)) for first, second, _ in draws.tolist()]
    covered = np.mean([low <= -0.006 <= high for _, low, high in intervals])
    assert 0.94 <= covered <= 0.96


def test_welch_is_scipys() -> None:
    first, second = [0.930, 0.932, 0.929], [0.936, 0.931, 0.935, 0.938]
    expected = ttest_ind(second, first, equal_var=False)
    interval = expected.confidence_interval(0.9)
    found = estimated(first, second)
    assert (found.p, found.freedom) == pytest.approx((expected.pvalue, expected.df))
    assert found.difference(0.9) == pytest.approx((0.935 - 0.930333333, interval.low, interval.high), abs=1e-8)
    assert estimated([0.93] * 3, second).value == pytest.approx(0.005)


def test_one_run_is_judged_by_the_spread_of_several() -> None:
    """Crawford and Howell's modified t (1998): (x - mean) / (s · √(1 + 1/n)), n - 1 degrees of freedom."""
    several, alone = [0.9353, 0.9304, 0.9365], [0.9280]
    error = np.std(several, ddof=1) * np.sqrt(1 + 1 / 3)
    found = estimated(several, alone)
    value, low, high = found.difference(0.9)
    assert value == pytest.approx(alone[0] - np.mean(several))
    assert (high - value, value - low) == pytest.approx([t.ppf(0.95, 2) * error] * 2)
    assert found.p == pytest.approx(2 * t.sf(abs(value) / error, 2)) == estimated(alone, several).p
    assert estimated(alone, several).difference(0.9) == pytest.approx((-value, -high, -low))


@pytest.mark.parametrize("deviation", [0.0015, 0.0035])
@pytest.mark.parametrize("sizes", [(1, 3), (5, 1), (2, 2), (3, 2)])
def test_equal_runs_are_told_apart_no_more_often_than_promised(sizes: tuple[int, int], deviation: float) -> None:
    draw = np.random.default_rng(7)
    sides = [draw.normal(0.935, deviation, (2000, size)).tolist() for size in sizes]
    alarms = np.mean([estimated(first, second).p < 0.05 for first, second in zip(*sides, strict=True)])
    assert alarms < 0.065


@pytest.mark.parametrize("seeds", [2, 3, 6])
@pytest.mark.parametrize(("several", "deviations"), [(1, (0.0035, 0.0035)), (3, (0.0015, 0.0035))])
def test_a_few_other_seeds_tell_how_far_a_single_run_deviates(
    seeds: int, several: int, deviations: tuple[float, float]
) -> None:
    """However few they are; and whether the other side, of several runs, varies like it or not."""
    draw = np.random.default_rng(3)
    alarms = 0
    for _ in range(2000):
        known = pooled_deviation(draw.normal(0.93, deviations[1], seeds).tolist())
        first, second = draw.normal(0.935, deviations[0], several), draw.normal(0.935, deviations[1], 1)
        alarms += estimated(first.tolist(), second.tolist(), known).p < 0.05
    assert 0.02 < alarms / 2000 < 0.075
    if several == 1:
        assert estimated([0.93], [0.94], Deviation(0.003, 2)) == pytest.approx((0.01, 0.003 * 2**0.5, 2))


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ([0.94], [0.93]),
        ([0.94] * 3, [0.93] * 3),
        ([0.94] * 3, [0.93]),
        ([0.9328] * 3, [0.9117] * 3),
        ([0.93] * 3, [0.94]),
    ],
)
def test_runs_that_say_nothing_give_no_estimate(first: list[float], second: list[float]) -> None:
    assert runs_estimate(first, second) is None


def test_the_deviation_between_runs_follows_from_their_disagreement() -> None:
    assert shown_deviation(Discordant(225, 225, 10_000)) == pytest.approx(0.0015) == assumed_deviation(10_000)
    assert shown_deviation(Discordant(18, 18, 360)) == pytest.approx(np.sqrt(0.1 / 360 / 2))
    assert assumed_deviation(360) == pytest.approx(np.sqrt(0.045 / 360 / 2))  # the same share of fewer


def test_deviations_are_pooled_by_what_each_is_worth() -> None:
    assert pooled_deviation([0.0, 2.0], [0.0, 4.0]) == pytest.approx((np.sqrt((2 + 8) / 2), 2))
    assert pooled_deviation([0.0, 2.0], [1.0]) == pytest.approx((np.sqrt(2), 1))
    assert pooled_deviation([0.0, 2.0], [0.0, 0.0, 0.0]) == pytest.approx((np.sqrt(2 / 3), 3))


def test_mean_of_runs_has_students_interval() -> None:
    runs = [0.9312, 0.9298, 0.9331, 0.9305]
    mean = mean_of_runs(runs, 0.9)
    expected = ttest_1samp(runs, 0).confidence_interval(0.9)
    assert mean == pytest.approx((np.mean(runs), np.std(runs, ddof=1), expected.low, expected.high, 4))
    assert mean_of_runs([0.93]) == (pytest.approx(0.93), None, None, None, 1)
    assert mean_of_runs([0.93] * 3) == (pytest.approx(0.93), pytest.approx(0), None, None, 3)


def test_resampled_differences_are_paired_on_the_images() -> None:
    """Of means the standard error is known; what both classifiers share must not widen it."""
    draw = np.random.default_rng(5)
    shared, first, second = draw.normal(0, 10, 2000), draw.normal(0, 1, 2000), draw.normal(0.2, 1, 2000)
    one, other = shared + first, shared + second

    def measure(images: NDArray[np.int64]) -> NDArray[np.float64]:
        return np.array([other[images].mean() - one[images].mean(), 1.0])

    found, constant = resampled_differences(measure, 2000)
    assert found.value == pytest.approx(np.mean(other - one))
    error = np.std(other - one) / np.sqrt(2000)
    assert (found.low, found.high) == pytest.approx(
        (found.value - 1.96 * error, found.value + 1.96 * error), abs=0.5 * error
    )
    assert constant == (1, 1, 1)
    assert resampled_differences(measure, 2000)[0] == found, "the same interval each time"


def test_how_many_runs_a_difference_takes() -> None:
    assert (runs_to_see(0.002, 0.0015), runs_to_see(0.005, 0.0015)) == (13, 4)
    for effect in (0.05, 0.2, 0.9, 1.5, 2.5):
        runs = runs_to_see(effect, 1.0)
        powers = [TTestIndPower().power(effect, count, 0.05) for count in (runs - 1, runs)]
        assert powers[0] < 0.9 <= powers[1]
    assert runs_to_see(1.0, 0.0001) == runs_to_settle(1.0, 0.0001, 0.05) == 3


@pytest.mark.parametrize("deviation", [0.0015, 0.004])
def test_how_many_runs_settle_a_margin(deviation: float) -> None:
    """Nine times in ten the interval is narrower than the margin; with one run less it is not so often."""
    draw = np.random.default_rng(11)

    def settled(runs: int, trials: int = 4000) -> float:
        sides = draw.normal(0.93, deviation, (2, trials, runs)).tolist()
        bounds = (estimated(*pair).difference(0.9) for pair in zip(*sides, strict=True))
        return float(np.mean([high - low <= 0.005 for _, low, high in bounds]))

    runs = runs_to_settle(0.005, deviation, 0.05)
    assert settled(runs) == pytest.approx(0.93, abs=0.04)
    assert settled(runs - 1) < 0.9


def test_it_imports_nothing_local() -> None:
    tree = ast.parse(Path(stats_tests.__file__).read_text(encoding="utf-8"))
    modules = [node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    assert modules and not any(module.startswith("onecycle") for module in modules)
