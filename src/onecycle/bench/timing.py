"""What is timed and how: a device's work in seconds, repeated until it lasts; and the images it is done on."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from onecycle import data, paths
from onecycle.data import Dataset
from onecycle.errors import UserError
from onecycle.params import TRAINING_IMAGES, Params


class Stopwatch:
    """Seconds of a device's work. Both ends wait for what is queued on it."""

    def __init__(self, device: torch.device) -> None:
        self.seconds, self._device, self._since = 0.0, device, math.nan

    def resume(self) -> None:
        """Go on."""
        self._wait()
        self._since = time.perf_counter()

    def pause(self) -> None:
        """Stop for now."""
        self._wait()
        self.seconds += time.perf_counter() - self._since

    def _wait(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        elif self._device.type == "mps":
            torch.mps.synchronize()


@dataclass
class Task:
    """Something to do over and over: `seconds(times)` does it so often, and each time is `amount` of something."""

    amount: float
    seconds: Callable[[int], float]
    times: int = 1

    def rate(self, turn_seconds: float) -> float:
        """Amount a second, over as many times as fill half of `turn_seconds`, once at least."""
        while True:
            seconds = self.seconds(self.times)
            if seconds >= turn_seconds / 2:
                return self.times * self.amount / seconds
            self.times = math.ceil(self.times * min(turn_seconds / max(seconds, 1e-9), 1000.0))


def images(params: Params) -> tuple[Dataset, str]:
    """(data set, what it is in words): the workspace's, or random images in the same number and shape.

    Raises:
        UserError: the workspace's are too few for a batch.
    """
    if paths.DATASET.exists():
        dataset = data.load(paths.DATASET)
        train, _ = data.split(dataset.train_labels, params.data.validation_fraction, params.data.split_seed)
        if len(train) < params.batch_size:  # they were made with other params
            raise UserError(
                f"batch_size must be ≤ the training split in {paths.DATASET} ({len(train)} images), "
                f"got {params.batch_size}; run `dvc repro download`"
            )
        return dataset, f"{len(dataset.train_labels):,} images of {dataset.name}"
    total = TRAINING_IMAGES[params.data.dataset]
    count = min(total, params.data.limit or total)
    pixels = np.random.default_rng(0).integers(0, 256, (count, 32, 32, 3), np.uint8)
    labels = np.arange(count) % 10
    held_out = slice(0, count // 5)
    classes = tuple("0123456789")
    dataset = Dataset("random", classes, "", pixels, labels, pixels[held_out], labels[held_out])
    return dataset, f"{count:,} random images, since {paths.DATASET} is not there"
