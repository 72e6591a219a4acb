"""Batches of augmented training images, reproducible from (seed, epoch, index) and enterable at any step."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from onecycle import cpu_quota
from onecycle.augment import ORDER, Albumentations, Batched, stream
from onecycle.params import AugmentParams

Batch = tuple[Tensor, Tensor]
Turn = tuple[int, NDArray[np.int64]]

AT_ONCE = 16
"""Batches augmented in one go on a GPU: with a single one it is done before it hears of the next. A CPU never waits."""


def order(count: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """The order in which an epoch takes `count` images."""
    return stream(seed, epoch, ORDER).permutation(count)


class Loader:
    """The training split as shuffled, augmented batches of one size (images left over wait for the next epoch).

    Attributes:
        batch_size: images in each.
        steps: batches an epoch.
        images_per_epoch: images in them.
    """

    def __init__(
        self,
        images: NDArray[np.uint8],
        labels: NDArray[np.int64],
        augment: AugmentParams,
        mean: NDArray[np.float64],
        *,
        batch_size: int,
        seed: int,
        device: torch.device,
        workers: int,
    ) -> None:
        """Take (N, 32, 32, 3) uint8 `images`, (N,) int64 `labels` and their `mean`, (3,) float64 in [0, 1].

        Batches arrive on `device` as uint8 and int64.
        """
        self._count, self._seed, self.batch_size, self._device = len(labels), seed, batch_size, device
        self.steps = self._count // batch_size
        self.images_per_epoch = self.steps * batch_size
        self._images = images
        self._batched: Batched | None = None
        self._labels = torch.from_numpy(np.ascontiguousarray(labels)).to(device)
        if backend(augment) == "batched":
            on_device = torch.from_numpy(np.ascontiguousarray(images)).to(device)
            self._batched = Batched(on_device, augment, mean, seed)
        else:
            self._albumentations = Albumentations(augment, mean, seed, images.shape[1])
            self._turns: list[Turn] = []
            self._loading = DataLoader(
                _AugmentedBatches(images, self._albumentations),
                batch_size=None,
                sampler=self._turns,
                num_workers=workers,
                multiprocessing_context=start_method(device) if workers else None,
                worker_init_fn=_leave_interrupts_to_the_stage,
                persistent_workers=workers > 0,
                generator=torch.Generator(),  # else it draws a seed from the generator that dropout draws from
                pin_memory=device.type == "cuda",  # copies to the device need not wait for it then
            )

    def epoch(self, epoch: int, first_step: int = 0) -> Iterator[Batch]:
        """The batches of `epoch` (from 0), from `first_step` on. To begin one ends the one before."""
        batches = order(self._count, self._seed, epoch)[: self.images_per_epoch]
        rows = batches.reshape(self.steps, self.batch_size)[first_step:]
        if self._batched is not None:
            at_once = 1 if self._device.type == "cpu" else AT_ONCE
            for several in torch.split(torch.from_numpy(rows).to(self._device), at_once):
                yield from zip(self._several(several, epoch), self._labels[several], strict=True)
            return
        self._turns[:] = [(epoch, row) for row in rows]
        ahead = self._device.type == "cuda"  # from pinned memory; elsewhere a source may be gone before it is copied
        for images, index in self._loading:
            at = index.to(self._device, non_blocking=ahead)
            yield images.to(self._device, non_blocking=ahead), self._labels[at]

    def _several(self, index: Tensor, epoch: int) -> Tensor:
        """Augmented images of (batches, N) `index`, (batches, N, H, W, 3) uint8."""
        assert self._batched is not None
        images = self._batched(index.flatten(), epoch)
        return images.view(*index.shape, *images.shape[1:])

    def samples(self, classes: int, epochs: int) -> list[NDArray[np.uint8]]:
        """For each class its first image and what the first epochs make of it, (1 + epochs, 32, 32, 3) uint8 each."""
        labels = np.asarray(self._labels.cpu())
        index = np.array([np.flatnonzero(labels == label)[0] for label in range(classes)])
        versions = [self._images[index], *(self._augment(index, epoch) for epoch in range(epochs))]
        return list(np.stack(versions, axis=1))

    def _augment(self, index: NDArray[np.int64], epoch: int) -> NDArray[np.uint8]:
        if self._batched is None:
            return self._albumentations(self._images, index, epoch)
        return np.asarray(self._batched(torch.from_numpy(index).to(self._device), epoch).cpu())

    def blank(self) -> Batch:
        """A batch of black images of class 0, like those of an epoch in shape, type and device."""
        images = torch.zeros(self.batch_size, *self._images.shape[1:], dtype=torch.uint8, device=self._device)
        return images, torch.zeros(self.batch_size, dtype=torch.int64, device=self._device)

    def endless(self) -> Iterator[Batch]:
        """Epoch after epoch, for the range test."""
        epoch = 0
        while True:
            yield from self.epoch(epoch)
            epoch += 1


class _AugmentedBatches(Dataset[Batch]):
    """The augmented images of (epoch, index), and index; a map, so that loader processes share work and order stays."""

    def __init__(self, images: NDArray[np.uint8], augment: Albumentations) -> None:
        self._images, self._augment = images, augment

    def __getitem__(self, turn: Turn) -> Batch:
        epoch, index = turn
        return torch.from_numpy(self._augment(self._images, index, epoch)), torch.from_numpy(index)


def start_method(device: torch.device) -> str | None:
    """How loader processes start: under CUDA from a server, as what is forked off a process with a GPU may not end."""
    return "forkserver" if device.type == "cuda" else None


def _leave_interrupts_to_the_stage(_worker: int) -> None:
    """Ctrl-C reaches each process of a terminal; the stage finishes its step, for which it needs what these load."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def backend(augment: AugmentParams) -> str:
    """`albumentations` or `batched`: what `augment.backend` comes to."""
    if augment.backend != "auto":
        return augment.backend
    return "albumentations" if augment.shift_scale_rotate_probability > 0 else "batched"


def worker_count(workers: int | str, device: torch.device) -> int:
    """`runtime.workers` as a number of loader processes."""
    if workers != "auto":
        return int(workers)
    return cpu_quota.usable() // 2 if device.type == "cuda" else 0
