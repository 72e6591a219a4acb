"""Numbers as tables of the terminal and of pull requests show them."""

from __future__ import annotations

from itertools import count

from onecycle.results import RANGES, SHARE
from onecycle.stats_tests import Mean

ABSENT = "–"


def percent(share: float) -> str:
    """0.93124 → "93.12 %"."""
    return f"{100 * share:.2f} %"


def mean_and_deviation(mean: Mean) -> str:
    """Mean ± standard deviation of a share: "93.12 ± 0.15 %"; of one run, only the share."""
    if mean.deviation is None:
        return percent(mean.value)
    return f"{100 * mean.value:.2f} ± {percent(mean.deviation)}"


def interval(mean: Mean) -> str:
    """Of a share: "92.94 to 93.30 %"."""
    if mean.low is None or mean.high is None:
        return ABSENT
    return f"{100 * mean.low:.2f} to {percent(mean.high)}"


def duration(seconds: float | None) -> str:
    """61.2 → "61.2 s", 3500 → "58 min", 7200 → "2.0 h"."""
    if seconds is None:
        return ABSENT
    if seconds < 120:
        return f"{seconds:#.3g}".rstrip(".") + " s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def p_value(p: float, level: float) -> str:
    """Two digits, or as many as show on which side of the level it lies: 0.0499 is not 0.05."""
    told = (f"{p:.{digits}g}" for digits in count(2))
    return next(text for text in told if (float(text) < level) == (p < level))


def compared(
    metric: str, first: float | None, second: float, low: float | None, high: float | None
) -> tuple[str, str, str, str]:
    """A metric of both sides, the second's minus the first's, and its interval.

    Shares are told in percent and points; counts, losses and the calibration error, which is one of probabilities, as
    they are.
    """
    if metric == "wrong":
        whole = second.is_integer() and (first is None or first.is_integer())  # no mean over runs
        value, signed, factor = ("{:,.0f}", "{:+,.0f}", 1.0) if whole else ("{:,.1f}", "{:+,.1f}", 1.0)
    elif metric == "ece" or RANGES.get(metric, SHARE) != SHARE:  # the gate's floor is one of accuracy
        value, signed, factor = "{:.4f}", "{:+.4f}", 1.0
    else:
        value, signed, factor = "{:.2f} %", "{:+.2f}", 100.0
    bounds = ABSENT
    if low is not None and high is not None:
        bounds = f"{signed.format(factor * low)} to {signed.format(factor * high)}"
    return (
        ABSENT if first is None else value.format(factor * first),
        value.format(factor * second),
        ABSENT if first is None else signed.format(factor * (second - first)),
        bounds,
    )
