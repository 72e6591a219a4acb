"""The learning-rate range test, and a peak rate read from it by a rule that can say "no".

    dvc repro -s lr_range          # results/lr_range/: curve.csv, suggestion.json, curve.png

Step by step the rate grows exponentially while training loss and accuracy are recorded (Smith 2015,
https://arxiv.org/abs/1506.01186). torch-lr-finder runs the sweep. The rate is read from its curve here, because a curve
may well hold no answer, with too narrow a range or too high a start: then the suggestion is refused, with advice.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from torch import Tensor, nn
from torch_lr_finder import LRFinder, TrainDataLoaderIter, lr_finder

from onecycle.params import LRRangeParams

Array = NDArray[np.float64]

FALL, FALL_IN_ERRORS = 0.05, 6.0
"""A curve must fall by this share of its start, and by so many of its standard errors, to tell rates apart."""

BEND, BEND_IN_ERRORS = 0.05, 2.0
"""It bends where it leaves a straight line by this share of its fall, and by so many standard errors."""

SHARES = {"minimum_over_two": 2, "minimum_over_ten": 10}
"""The methods that take a share of the best point's rate."""

BLOWN_UP = 2.0
"""A loss of so many times the first is no bad luck with a batch: training broke down."""


@dataclass(frozen=True, eq=False)
class Curve:
    """One sweep, step by step: what the network did on a batch, and the rate of the step it then took.

    Attributes:
        learning_rate: (n,) float64, growing.
        loss: (n,) float64, mean cross entropy of the step's batch, before the step.
        accuracy: (n,) float64 in [0, 1], of the same batch.
        classes: how many there are to choose from.

    Raises:
        ValueError: lengths differ, a value is not finite, or rates do not grow.
    """

    learning_rate: Array
    loss: Array
    accuracy: Array
    classes: int

    def __post_init__(self) -> None:
        if not self.learning_rate.shape == self.loss.shape == self.accuracy.shape == (len(self),):
            raise ValueError("a curve takes three arrays of one length")
        if not np.isfinite([self.learning_rate, self.loss, self.accuracy]).all():
            raise ValueError("a curve takes finite values only")
        if (np.diff(self.learning_rate, prepend=0.0) <= 0).any():
            raise ValueError("a curve takes positive learning rates that grow")

    def __len__(self) -> int:
        return self.learning_rate.size

    def smoothed(self, criterion: str, smoothing: float) -> Array:
        """Loss or accuracy, (n,), cut at what a blind guess gets, then smoothed by a Gaussian of `smoothing` steps.

        A fresh network's loss is often well above the ln(classes) of a blind guess. That it unlearns its random
        confidence, at almost any rate, is the steepest part of many a curve and says nothing about learning. The cut
        takes it away, and so it does the spikes of a blow-up, which smoothing would smear over the steps around.
        """
        blind_loss, blind_accuracy = math.log(self.classes), 1 / self.classes
        cut = np.minimum(self.loss, blind_loss) if criterion == "loss" else np.maximum(self.accuracy, blind_accuracy)
        # Reflected ends weigh no step more than twice; repeated ends would give half of all weight to the last one.
        return np.asarray(gaussian_filter(cut, smoothing, mode="reflect")) if len(self) else cut

    def to_frame(self, smoothing: float) -> pd.DataFrame:
        """Columns iteration (from 0), learning_rate, loss, accuracy, smoothed_loss, smoothed_accuracy; n rows."""
        steps = {"iteration": np.arange(len(self)), "learning_rate": self.learning_rate}
        raw = {"loss": self.loss, "accuracy": self.accuracy}
        return pd.DataFrame(steps | raw | {f"smoothed_{name}": self.smoothed(name, smoothing) for name in raw})

    @classmethod
    def from_frame(cls, frame: pd.DataFrame, classes: int) -> Curve:
        """The curve in a frame that `to_frame` made."""
        rate, loss, accuracy = (frame[name].to_numpy(np.float64) for name in ("learning_rate", "loss", "accuracy"))
        return cls(rate, loss, accuracy, classes)


class _NotFiniteError(Exception):
    """The loss of a step is NaN or Inf; ends the sweep before that step, which torch-lr-finder would not do."""


class _Recorder:
    """The loss function handed to the finder; notes rate, loss and accuracy of every step."""

    def __init__(self, loss: Callable[[Tensor, Tensor], Tensor], optimizer: torch.optim.Optimizer) -> None:
        self._loss, self._optimizer = loss, optimizer
        self.steps: list[tuple[float, float, float]] = []
        self.classes = 0

    def __call__(self, logits: Tensor, labels: Tensor) -> Tensor:
        loss = self._loss(logits, labels)
        value, self.classes = loss.item(), logits.shape[1]
        if not math.isfinite(value):
            raise _NotFiniteError
        accuracy = (logits.argmax(dim=1) == labels).sum().item() / len(labels)
        self.steps.append((float(self._optimizer.param_groups[0]["lr"]), value, accuracy))
        return loss


def range_test(
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    loss: Callable[[Tensor, Tensor], Tensor],
    batches: Iterator[tuple[Tensor, Tensor]],
    lr_range: LRRangeParams,
    device: torch.device,
) -> Curve:
    """Sweep the rate of all parameter groups from `lr_range.start_lr` to `end_lr` over `iterations` steps.

    The sweep ends early where the loss is above five times its lowest so far, NaN or Inf; the curve is then shorter.
    Afterwards, also after an exception, weights, buffers, mode and the optimiser's state are what they were before.

    Args:
        network: on `device`; takes the images of a batch and gives logits (N, classes).
        optimizer: of the network's parameters, without a scheduler.
        loss: of (logits, labels): cross entropy, mean over the batch.
        batches: (images, labels), labels (N,) int64; at least `iterations` of them.
        lr_range: bounds and length of the sweep.
        device: where batches are moved to.

    Raises:
        ValueError: a scheduler is attached to the optimiser, or the batches ran out.
    """
    if any("initial_lr" in group for group in optimizer.param_groups):
        raise ValueError("the range test sets the rates itself: give it an optimiser without a scheduler")
    recorder = _Recorder(loss, optimizer)
    training = network.training
    finder = LRFinder(network, optimizer, recorder, device)
    try:
        with _quiet(), suppress(_NotFiniteError):
            steps = TrainDataLoaderIter(batches, auto_reset=False)
            finder.range_test(
                steps, start_lr=lr_range.start_lr, end_lr=lr_range.end_lr, num_iter=lr_range.iterations, smooth_f=0
            )
    except StopIteration:
        raise ValueError(f"the range test got {len(recorder.steps)} batches, it takes {lr_range.iterations}") from None
    finally:
        finder.reset()
        optimizer.zero_grad()
        network.train(training)
    rate, values, accuracy = np.array(recorder.steps, dtype=np.float64).reshape(-1, 3).T
    return Curve(rate, values, accuracy, recorder.classes)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the finder's bar out of log files, and its hints for notebooks out of everything; it has no switch."""
    # Redirecting the process's output instead would swallow what other threads say meanwhile.
    bar = lr_finder.tqdm
    lr_finder.tqdm = partial(bar, disable=None)  # tqdm's word for: on a terminal only
    lr_finder.print = lambda *_: None
    try:
        yield
    finally:
        lr_finder.tqdm = bar
        del lr_finder.print


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
    """Read a peak rate from a sweep, or say why it holds none.

    What is read is the loss of `Curve.smoothed`, or the error, 1 − its accuracy. `lr_range.method` is one of

    - minimum_over_two: half the best point's rate. Where a curve is best depends little on how fast a sweep is and
      where it starts; where it falls, does. The half keeps a distance from where training breaks down;
    - minimum_over_ten: a tenth of the best point's rate, fastai's `minimum`;
    - steepest: the rate of steepest descent to a new low, per natural logarithm of the rate;
    - valley: the middle of the longest descent, fastai's default (`valley` in fastai/callback/schedule.py).

    The descent must visibly begin inside the range, and end there (a blow-up ends it, too, but not for steepest); an
    edge, two standard deviations of the smoothing wide, is never the answer. `div_factor` is max_lr / min_lr.
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
    if shoulder.max() < least_bend:
        return refused(f"The {name} falls from the first steps on: its steepest slope is an edge.", lower)

    best = int(smoothed.argmin())
    turned = smoothed[best:].max() - smoothed[best] > least_bend
    if lr_range.method == "steepest":
        begin = margin + int(shoulder.argmax())
        steepest = begin + int(np.gradient(record, np.log(rate[:end]))[begin : last + 1].argmin())
        found, ends = rate[steepest], turned or _above_chord(-record[steepest : last + 1]).max() > least_bend
    else:
        found = rate[_valley(smoothed)] if lr_range.method == "valley" else rate[best] / SHARES[lr_range.method]
        ends = turned or stopped
    if not ends and stopped:
        advice = "Set lr_range.method to minimum_over_ten, which keeps its distance from there."
        return refused(f"The {name} fell until training blew up, at a rate of {_plain(rate[-1])}.", advice)
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
