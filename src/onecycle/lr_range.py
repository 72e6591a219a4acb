"""The learning-rate range test: a sweep of the rate, and the curve that it gives.

    dvc repro -s lr_range          # results/lr_range/: curve.csv, suggestion.json, curve.png

Step by step the rate grows exponentially while training loss and accuracy are recorded (Smith 2015,
https://arxiv.org/abs/1506.01186). torch-lr-finder runs the sweep; suggestion.py reads a rate from its curve. Where the
curve falls and rises again depends on the initial weights more than on the batches: so it is read from the mean of as
many sweeps as `lr_range.sweeps` says, each of its own weights.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
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
CRITERIA = ("loss", "accuracy")


@dataclass(frozen=True, eq=False)
class Curve:
    """One sweep or the mean of several: what the network did on a step's batch, and the rate of the step it then took.

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
        raw = {name: getattr(self, name) for name in CRITERIA}
        return pd.DataFrame(steps | raw | {f"smoothed_{name}": self.smoothed(name, smoothing) for name in raw})


def mean_curve(curves: Sequence[Curve]) -> Curve:
    """Loss and accuracy of several sweeps of the same rates, step by step their mean.

    It is as long as the shortest: at a rate at which one of them broke down, training may.
    """
    steps = min(map(len, curves))
    loss, accuracy = (np.mean([getattr(curve, name)[:steps] for curve in curves], axis=0) for name in CRITERIA)
    return Curve(curves[0].learning_rate[:steps], loss, accuracy, curves[0].classes)


class _NotFiniteError(Exception):
    """The loss of a step is NaN or Inf; ends the sweep before that step, which torch-lr-finder would not do."""


class _Recorder:
    """The loss function handed to the finder; notes rate, loss and accuracy of every step."""

    def __init__(
        self,
        loss: Callable[[Tensor, Tensor], Tensor],
        penalty: Callable[[], Tensor | None],
        optimizer: torch.optim.Optimizer,
    ) -> None:
        self._loss, self._penalty, self._optimizer = loss, penalty, optimizer
        self.steps: list[tuple[float, float, float]] = []
        self.classes = 0

    def __call__(self, logits: Tensor, labels: Tensor) -> Tensor:
        loss = self._loss(logits, labels)
        value, self.classes = loss.item(), logits.shape[1]
        if not math.isfinite(value):
            raise _NotFiniteError
        accuracy = (logits.argmax(dim=1) == labels).sum().item() / len(labels)
        self.steps.append((float(self._optimizer.param_groups[0]["lr"]), value, accuracy))
        penalty = self._penalty()
        return loss if penalty is None else loss + penalty


def range_test(
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    loss: Callable[[Tensor, Tensor], Tensor],
    batches: Iterator[tuple[Tensor, Tensor]],
    lr_range: LRRangeParams,
    device: torch.device,
    penalty: Callable[[], Tensor | None] = lambda: None,
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
        penalty: what training adds to the loss, None for nothing; not in the curve.

    Raises:
        ValueError: a scheduler is attached to the optimiser, or the batches ran out.
    """
    if any("initial_lr" in group for group in optimizer.param_groups):
        raise ValueError("the range test sets the rates itself: give it an optimiser without a scheduler")
    recorder = _Recorder(loss, penalty, optimizer)
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
