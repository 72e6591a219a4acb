"""A peak rate read from a range test's curve, by a rule that can say "no".

A curve may well hold no answer, with too narrow a range or too high a start: then there is a reason, and advice.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from onecycle.lr_range import Array, Curve
from onecycle.params import LRRangeParams

FALL, FALL_IN_ERRORS = 0.05, 6.0
"""A curve must fall by this share of its start, and by so many of its standard errors, to tell rates apart."""

BEND, BEND_IN_ERRORS = 0.05, 2.0
"""It bends where it leaves a straight line by this share of its fall, and by so many standard errors."""

SHARES = {"minimum_over_two": 2, "minimum_over_ten": 10}
"""The methods that take a share of the best point's rate."""

BLOWN_UP = 2.0
"""A loss of so many times the first is no bad luck with a batch: training broke down."""


@dataclass(frozen=True)
class Suggestion:
    """A rate to train with, or why there is none; `dataclasses.asdict` of it is suggestion.json.

    `max_lr` is the peak rate of the cycle, `min_lr` its first, max_lr / div_factor. A refusal has None for both, and a
    sentence each as reason and advice.
    """

    accepted: bool
    max_lr: float | None
    min_lr: float | None
    method: str
    criterion: str
    reason: str | None
    advice: str | None


def suggest(curve: Curve, lr_range: LRRangeParams, div_factor: float) -> Suggestion:
    """Read a peak rate from a range test's curve, or say why it holds none.

    What is read is the loss of `Curve.smoothed`, or the error, 1 − its accuracy. `lr_range.method` is one of

    - middle: halfway, in the logarithm of the rate, between where half of the fall is reached and where half of it is
      lost again. The best point lies anywhere on a plateau of a decade, as noise has it; the slopes on either side
      of the plateau, and so its middle, stay where they are;
    - minimum_over_two: half the best point's rate, a distance from where training breaks down;
    - minimum_over_ten: a tenth of the best point's rate, fastai's `minimum`;
    - steepest: the rate of steepest descent to a new low, per natural logarithm of the rate;
    - valley: the middle of the longest descent, fastai's default (`valley` in fastai/callback/schedule.py).

    The descent must visibly begin inside the range, and end there (a blow-up ends it, too, but not for steepest); an
    edge, two standard deviations of the smoothing wide, is never the answer. A descent that is on from the first step
    still has a beginning where no slope is read and its half is two edges away: a fresh network is as good as a blind
    guess, whatever the first rate. `div_factor` is max_lr / min_lr.
    """

    def refused(reason: str, advice: str) -> Suggestion:
        return Suggestion(False, None, None, lr_range.method, lr_range.criterion, reason, advice)

    rate, steps, width = curve.learning_rate, len(curve), lr_range.smoothing
    margin = max(1, math.ceil(2 * width))
    stopped = steps < lr_range.iterations
    lower = f"Lower lr_range.start_lr, for example to {_plain(lr_range.start_lr / 10)}."
    lower_both = f"Lower lr_range.start_lr, for example to {_plain(lr_range.start_lr / 100)}, and end_lr with it."
    higher = f"Raise lr_range.end_lr, for example to {_plain(lr_range.end_lr * 10)}"

    if steps == 0:
        advice = "Look at the images in results/stats/samples.png, and try train.precision fp32."
        return refused("The loss is NaN or infinite before the first step, so no rate is to blame.", advice)
    if stopped and steps < 2 * margin + 3:
        return refused(f"Training blew up after {steps} steps, at a rate of {_plain(rate[-1])}.", lower_both)
    if steps < 2 * margin + 3:
        advice = "Raise lr_range.iterations or lower lr_range.smoothing."
        return refused(f"{steps} steps are too few to be smoothed over {_plain(width)} of them.", advice)

    smoothed, name = curve.smoothed(lr_range.criterion, width), "loss"
    if lr_range.criterion == "accuracy":
        smoothed, name = 1 - smoothed, "error"
    error = _standard_error(curve.smoothed(lr_range.criterion, 0), width)
    record = np.minimum.accumulate(smoothed)
    fall = smoothed[0] - record
    enough = max(FALL * smoothed[0], FALL_IN_ERRORS * error)
    if fall[-1] < enough:
        if stopped or curve.loss.max() > BLOWN_UP * curve.loss[0]:
            worst = _plain(rate[curve.loss.argmax()])
            return refused(f"Training blew up, at a rate of {worst}, before the {name} fell clearly.", lower_both)
        levels = f"from {smoothed[0]:.3f} to {record[-1]:.3f}"
        return refused(f"The {name} is too flat, it falls {levels}.", f"{higher}, or lr_range.iterations.")

    # Where half of a fall is lost again training broke down; what it makes of its wreck later is not read.
    broken = (fall >= enough) & (smoothed - record > fall / 2)
    end = max(int(broken.argmax()), margin) + 1 if broken.any() else steps
    smoothed, record, fall = smoothed[:end], record[:end], fall[:end]

    # A descent that begins inside has a shoulder above the straight line to half its depth; one that was on has none.
    least_bend = max(BEND * fall[-1], BEND_IN_ERRORS * error)
    last = min(end, steps - margin) - 1
    half = int(np.clip((fall >= fall[-1] / 2).argmax(), margin, last))
    shoulder = _above_chord(record[margin : half + 1])
    reads_no_slope = lr_range.method == "middle" or lr_range.method in SHARES
    if shoulder.max() < least_bend and not (reads_no_slope and half > 2 * margin):
        return refused(f"The {name} falls from the first steps on: its steepest slope is an edge.", lower)

    best = int(smoothed.argmin())
    turned = smoothed[best:].max() - smoothed[best] > least_bend
    if lr_range.method == "steepest":
        begin = margin + int(shoulder.argmax())
        steepest = begin + int(np.gradient(record, np.log(rate[:end]))[begin : last + 1].argmin())
        found, ends = rate[steepest], turned or _above_chord(-record[steepest : last + 1]).max() > least_bend
    elif lr_range.method == "middle":
        found, ends = _middle(rate[:end], smoothed, smoothed[0] - fall[-1] / 2), bool(broken.any()) or stopped
    else:
        found = rate[_valley(smoothed)] if lr_range.method == "valley" else rate[best] / SHARES[lr_range.method]
        ends = turned or stopped
    if not ends and stopped:
        advice = "Set lr_range.method to minimum_over_ten, which keeps its distance from there."
        return refused(f"The {name} fell until training blew up, at a rate of {_plain(rate[-1])}.", advice)
    if not ends and turned:
        return refused(f"The {name} keeps half of its fall up to the highest rate, {_plain(rate[-1])}.", f"{higher}.")
    if not ends:
        return refused(f"The {name} has not turned by the highest rate, {_plain(rate[-1])}.", f"{higher}.")
    if found < rate[margin]:
        return refused(f"The rate found, {_plain(found)}, is at the low edge of the range.", lower)
    return Suggestion(True, float(found), float(found) / div_factor, lr_range.method, lr_range.criterion, None, None)


def _standard_error(cut: Array, smoothing: float) -> float:
    """Standard error of the smoothed curve, from the scatter of its raw values from one step to the next."""
    differences = np.diff(cut)
    differences = differences[differences != 0]  # leaves out pairs that were both cut
    if not differences.size:
        return 0.0
    scatter = 1.4826 * np.median(np.abs(differences - np.median(differences))) / math.sqrt(2)
    return float(scatter / math.sqrt(max(1.0, 2 * math.sqrt(math.pi) * smoothing)))


def _above_chord(values: Array) -> Array:
    """How far each of `values` is above the straight line from the first to the last."""
    return values - np.linspace(values[0], values[-1], len(values))


def _middle(rate: Array, values: Array, level: float) -> float:
    """Geometric mean of the first and the last rate at which `values`, which begin above it, are at `level`."""
    log_rate, low = np.log(rate), np.flatnonzero(values <= level)
    first, last = low[0], low[-1]
    reached = np.interp(level, values[[first, first - 1]], log_rate[[first, first - 1]])
    left = (
        log_rate[-1]
        if last == len(values) - 1
        else np.interp(level, values[last : last + 2], log_rate[last : last + 2])
    )
    return float(np.exp((reached + left) / 2))


def _valley(values: Array) -> int:
    """Index of the middle of the longest strictly falling subsequence, as fastai reckons it."""
    length = np.ones(len(values), dtype=np.int64)
    for i in range(1, len(values)):
        length[i] += length[:i][values[:i] > values[i]].max(initial=0)
    end = int(length.argmax())
    third = length[end] / 3
    return end - int(length[end]) + int(third) + int(third / 2)


def _plain(value: float) -> str:
    """A number as params.yaml wants it: 0.00001, not 1e-05."""
    return np.format_float_positional(value, precision=3, fractional=False, trim="-")
