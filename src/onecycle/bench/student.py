"""The loop a student writes for this exercise, which `onecycle bench` compares with. Nothing in it is tuned.

fp32, with PyTorch's default of TF32 in a GPU's convolutions, its default layout and allocator, albumentations image by
image in a DataLoader, Adam with OneCycleLR, the loss read at every step. Loader processes only where there is CUDA, as
course notebooks have it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from onecycle.augment import fill_colour
from onecycle.bench.timing import Stopwatch, Task, images
from onecycle.model import build_network
from onecycle.params import Params

CUDA_WORKERS: dict[str, Any] = {"num_workers": 4, "pin_memory": True, "multiprocessing_context": "forkserver"}
"""How notebooks load where there is CUDA; from a server, as what is forked off a process with a GPU may not end."""


class Student:
    """The loop, ready to take its turns."""

    def __init__(self, params: Params, kind: str) -> None:
        """Take the params for network, batch size and threads, and the kind of device: cpu, cuda or mps."""
        dataset, _ = images(params)
        if params.train.threads:
            torch.set_num_threads(params.train.threads)
        self._device = torch.device(kind)
        self._warm_up = 2 * CUDA_WORKERS["num_workers"] if kind == "cuda" else 0
        self._steps = _train(params, Pictures(dataset.train_images, dataset.train_labels), self._device)
        self._task = Task(params.batch_size, self._seconds)

    def rate(self, _turn: object, turn_seconds: float) -> float:
        """Training images a second. There is but one thing to ask for."""
        return self._task.rate(turn_seconds)

    def _seconds(self, steps: int) -> float:
        for _ in range(self._warm_up):  # the loader's processes went on reading while this one waited for its turn
            next(self._steps)
        watch = Stopwatch(self._device)
        watch.resume()
        for _ in range(steps):
            next(self._steps)
        watch.pause()
        return watch.seconds


class Pictures(Dataset[tuple[Tensor, int]]):
    """Labelled images, augmented and normalised one by one."""

    def __init__(self, pixels: NDArray[np.uint8], labels: NDArray[np.int64]) -> None:
        """Take (N, 32, 32, 3) `pixels` and (N,) `labels`."""
        import albumentations as A
        from albumentations.pytorch import ToTensorV2

        mean, std = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
        fill = fill_colour("mean", np.array(mean))
        self._pixels, self._labels = pixels, labels
        self._transform = A.Compose(
            [
                A.PadIfNeeded(40, 40, border_mode=0, fill=fill),
                A.RandomCrop(32, 32),
                A.HorizontalFlip(p=0.5),
                A.CoarseDropout(
                    num_holes_range=(1, 1), hole_height_range=(8, 8), hole_width_range=(8, 8), fill=fill, p=1
                ),
                A.Normalize(mean, std),
                ToTensorV2(),
            ]
        )

    def __len__(self) -> int:
        return len(self._pixels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self._transform(image=self._pixels[index])["image"], int(self._labels[index])


def _train(params: Params, pictures: Pictures, device: torch.device) -> Iterator[float]:
    """Train for ever; the loss of each step."""
    loading = CUDA_WORKERS if device.type == "cuda" else {}
    # only whole batches, so that each step counts alike
    loader = DataLoader(pictures, batch_size=params.batch_size, shuffle=True, drop_last=True, **loading)
    model = build_network(params.model, 10).to(memory_format=torch.contiguous_format).to(device).train()
    criterion = nn.CrossEntropyLoss()
    optimizer = torch.optim.Adam(model.parameters(), weight_decay=params.optimizer.weight_decay)
    # longer than any benchmark, so that its rate stays near the first
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.001, total_steps=10**7)
    while True:
        for pixels, labels in loader:
            inputs, targets = pixels.to(device), labels.to(device)
            optimizer.zero_grad()
            loss = criterion(model(inputs), targets)
            loss.backward()
            optimizer.step()
            scheduler.step()
            yield loss.item()
