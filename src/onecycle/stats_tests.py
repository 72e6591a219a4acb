"""What compare and gate stand on: tests and intervals for two classifiers, and how many runs a difference takes.

With one run a side, the runs meet on the same test images: only those that one gets right and the other wrong (the
discordant ones) tell, by McNemar's test and an interval for paired proportions. With several runs on a side the runs
themselves are the sample: Welch's t-test, or Student's where the other side has one run only.

Jordan (2023, https://arxiv.org/abs/2304.01910) found that runs of one recipe err as if each image were an independent
draw, so the standard deviation between runs follows from how many images they disagree on: 450 discordant of 10,000 are
0.15 points a run, which is also what he measured. Runs of a recipe may deviate by more, where each has a peak rate of
its own, say. If several seeds tell by how much, one run a side is judged by that, too: with Student's t, since a few
seeds hardly know it.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.stats import bootstrap, chi2, norm
from scipy.stats import t as student
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.power import TTestIndPower

RUN_DEVIATION = 0.0015
"""Standard deviation of accuracy between equal runs, assumed where it cannot be measured (Jordan 2023)."""

RUN_DEVIATION_IMAGES = 10_000
"""Test images at which it is that; where each image is an independent draw, it goes with one over the root of them."""

FEW_RUNS = 3
"""Runs a side below which a t-test on runs has no power to speak of: no advice is to make fewer."""

FEW_DISCORDANT = 25
"""Discordant images below which McNemar's statistic is not yet chi-squared, and the exact test is used."""

RESAMPLES = 100


class Difference(NamedTuple):
    """An estimate and its interval, in the units of what was compared."""

    value: float
    low: float
    high: float


class Deviation(NamedTuple):
    """Standard deviation of a figure between equal runs, and with how many degrees of freedom it is known."""

    value: float
    freedom: int


class Estimate(NamedTuple):
    """A difference between runs, its standard error, and the degrees of freedom of that."""

    value: float
    error: float
    freedom: float

    def difference(self, confidence: float = 0.95) -> Difference:
        """With Student's interval."""
        reach = float(student.ppf((1 + confidence) / 2, self.freedom)) * self.error
        return Difference(self.value, self.value - reach, self.value + reach)

    @property
    def p(self) -> float:
        """Two-sided p-value of there being no difference."""
        return float(2 * student.sf(abs(self.value) / self.error, self.freedom))


class Mean(NamedTuple):
    """Mean of n runs, their standard deviation, and the interval of the mean; None where n runs do not give it."""

    value: float
    deviation: float | None
    low: float | None
    high: float | None
    n: int


class Discordant(NamedTuple):
    """Of n images, how many only the first classifier gets right, and how many only the second."""

    first: int
    second: int
    n: int


def discordant(first: NDArray[np.bool_], second: NDArray[np.bool_]) -> Discordant:
    """Count what two classifiers get right, (N,) bool each, on the same images in the same order."""
    assert first.shape == second.shape
    return Discordant(int((first & ~second).sum()), int((second & ~first).sum()), len(first))


def mcnemar_p(counts: Discordant) -> float:
    """Two-sided p-value of both being right equally often (McNemar 1947), exact for few discordant images.

    The asymptotic test goes without continuity correction (Fagerland, Lydersen and Laake 2013,
    https://doi.org/10.1186/1471-2288-13-91).
    """
    table = [[0, counts.first], [counts.second, 0]]
    few = counts.first + counts.second < FEW_DISCORDANT
    return min(1.0, float(mcnemar(table, exact=few, correction=False).pvalue))


def paired_difference(counts: Discordant, confidence: float = 0.95) -> Difference:
    """Accuracy of the second classifier minus that of the first, on the same images.

    The interval is Bonett and Price's (2012, https://doi.org/10.3102/1076998611411915): Wald's, with one discordant
    image more on each side. Fagerland, Lydersen and Laake (2014, https://doi.org/10.1002/sim.6148) recommend it, also
    for few discordant images, where Wald's own has no width; for equal classifiers its two ends miss 0 on either side
    less often than promised, however many are discordant.

    Args:
        confidence: of the two-sided interval; each end is a one-sided bound of level (1 - confidence) / 2.
    """
    first, second, n = counts
    shift = (second - first) / (n + 2)
    error = math.sqrt(((first + second + 2) / (n + 2) - shift**2) / (n + 2))
    reach = float(norm.ppf((1 + confidence) / 2)) * error
    return Difference((second - first) / n, max(-1.0, shift - reach), min(1.0, shift + reach))


def resampled_differences(
    measure: Callable[[NDArray[np.int64]], NDArray[np.float64]], n: int, confidence: float = 0.95
) -> list[Difference]:
    """Differences of what is no mean over images, such as a calibration error, between two classifiers on n images.

    The interval is the normal distribution's, with the standard error of the bootstrap over images (Efron 1979), for
    which a hundred resamples are plenty. The same resample goes to both classifiers, so they stay paired.

    Args:
        measure: of positions of images, some more than once: (k,) differences, second minus first.
    """
    resampled = bootstrap(
        (np.arange(n),), measure, vectorized=False, n_resamples=RESAMPLES, method="percentile", random_state=0
    )
    reach = float(norm.ppf((1 + confidence) / 2)) * resampled.standard_error
    whole = measure(np.arange(n))
    return [Difference(*map(float, ends)) for ends in zip(whole, whole - reach, whole + reach, strict=True)]


def runs_estimate(first: Sequence[float], second: Sequence[float], alone: Deviation | None = None) -> Estimate | None:
    """Mean of the second side's runs minus the first's; None where nothing tells by how much runs deviate.

    Variances and counts need not be equal (Welch 1947). One run alone has no variance: it is taken to deviate by
    `alone`, or, where that is not known, as the other side does (Student 1908; of a single case, Crawford and Howell
    1998, https://doi.org/10.1076/clin.12.4.482.7241).
    """
    several = [(side, len(runs)) for runs in (first, second) if (side := _deviation(runs))]
    parts = [(side.value**2 / runs, side.freedom) for side, runs in several]
    singles = 2 - len(several)
    if singles and alone:
        parts.append((singles * alone.value**2, alone.freedom))
    elif singles == 1:
        [(side, runs)] = several
        parts = [(side.value**2 * (1 + 1 / runs), side.freedom)]
    variance = math.fsum(part for part, _ in parts)
    if variance == 0:
        return None
    freedom = variance**2 / math.fsum(part**2 / freedom for part, freedom in parts)
    return Estimate(float(np.mean(second) - np.mean(first)), math.sqrt(variance), freedom)


def _deviation(runs: Sequence[float]) -> Deviation | None:
    if len(runs) < 2:
        return None
    equal = np.ptp(runs) == 0  # of equal numbers np.std gives the last bits of their mean
    return Deviation(0.0 if equal else float(np.std(runs, ddof=1)), len(runs) - 1)


def mean_of_runs(values: Sequence[float], confidence: float = 0.95) -> Mean:
    """Mean of runs of one recipe, their standard deviation (over n - 1), and Student's t-interval for the mean.

    One run has neither deviation nor interval. Runs that do not differ have no interval: it would be of no width, which
    few runs of a metric that comes in steps reach by chance.
    """
    mean, n, deviation = float(np.mean(values)), len(values), _deviation(values)
    if deviation is None or deviation.value == 0:
        return Mean(mean, deviation and deviation.value, None, None, n)
    _, low, high = Estimate(mean, deviation.value / math.sqrt(n), deviation.freedom).difference(confidence)
    return Mean(mean, deviation.value, low, high, n)


def assumed_deviation(images: int) -> float:
    """Standard deviation of accuracy between equal runs, on so many test images, where no runs tell it."""
    return RUN_DEVIATION * math.sqrt(RUN_DEVIATION_IMAGES / images)


def shown_deviation(counts: Discordant) -> float:
    """The same, as two equal runs show it by what they disagree on."""
    return math.sqrt((counts.first + counts.second) / 2) / counts.n


def pooled_deviation(*sides: Sequence[float]) -> Deviation:
    """Standard deviation between runs of one side, from all sides of two runs and more; one such at least."""
    known = [side for runs in sides if (side := _deviation(runs))]
    freedom = sum(side.freedom for side in known)
    return Deviation(math.sqrt(math.fsum(side.freedom * side.value**2 for side in known) / freedom), freedom)


def runs_to_see(difference: float, deviation: float, power: float = 0.9, alpha: float = 0.05) -> int:
    """Runs each, three at least, for a two-sided t-test of level `alpha` to see a true `difference` so often."""
    effect = min(difference / deviation, 5.0)  # three runs see that; the noncentral t has no digits for more
    return max(FEW_RUNS, math.ceil(float(TTestIndPower().solve_power(effect, alpha=alpha, power=power))))


def runs_to_settle(margin: float, deviation: float, alpha: float, power: float = 0.9) -> int:
    """Runs each, three at least, for an interval narrower than `margin`, which then cannot hold 0 and the margin both.

    The interval lies between two one-sided bounds of level `alpha`. It is so narrow with probability `power`, since the
    runs to come may deviate by more or less than the true `deviation`.
    """

    def settled(runs: int) -> bool:
        freedom = 2 * runs - 2
        widest = margin / (2 * student.ppf(1 - alpha, freedom) * math.sqrt(2 / runs))
        return bool(chi2.cdf(freedom * (widest / deviation) ** 2, freedom) >= power)

    # twice the normal distribution's answer for a known deviation, and ten for the few of small samples
    enough = math.ceil(16 * (norm.ppf(1 - alpha) * deviation / margin) ** 2) + 10
    return FEW_RUNS + bisect_left(range(FEW_RUNS, enough), True, key=settled)
