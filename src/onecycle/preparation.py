"""What the range test and training both start from: the split, the batches, a fresh classifier, the device."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from onecycle import device
from onecycle.data import Dataset, split
from onecycle.generators import seed_everything
from onecycle.loader import Loader, worker_count
from onecycle.model import Classifier, build_classifier
from onecycle.params import Params


@dataclass(frozen=True)
class Prepared:
    """A classifier on its device, batches of the training split, and the images held out of it.

    `held_out` names where those come from: `validation`, or `test` when nothing of the training images is held out.
    They are (N, height, width, channels), their labels (N,).
    """

    compute: device.Compute
    classifier: Classifier
    loader: Loader
    held_out: str
    held_out_images: NDArray[np.uint8]
    held_out_labels: NDArray[np.int64]
    buffers_kept: bool
    """Whether the C library keeps big buffers mapped, see `device.keep_buffers_mapped`."""

    def tags(self) -> dict[str, str]:
        """On what and how it is computed, in words."""
        threads, kept = str(torch.get_num_threads()), str(self.buffers_kept).lower()
        return {"device": str(self.compute), "threads": threads, "buffers_kept": kept}


def prepare(
    params: Params,
    dataset: Dataset,
    mean: NDArray[np.float64],
    std: NDArray[np.float64],
    seed: int | None = None,
) -> Prepared:
    """Seed every generator, then build all that `params` describe; the same params give the same bits.

    Args:
        params: seed, batch_size and the sections data, augment, model, train, runtime are read.
        dataset: uint8 images and int64 labels, memory-mapped.
        mean, std: (3,) per channel, in [0, 1].
        seed: instead of that of `params`.
    """
    seed = params.seed if seed is None else seed
    buffers_kept = params.runtime.allocator and device.keep_buffers_mapped()
    compute = device.select(params.train)
    seed_everything(seed)
    classifier = build_classifier(params.model, len(dataset.classes), mean.tolist(), std.tolist())
    training, validation = split(dataset.train_labels, params.data.validation_fraction, params.data.split_seed)
    loader = Loader(
        dataset.train_images[training],
        dataset.train_labels[training],
        params.augment,
        mean,
        batch_size=params.batch_size,
        seed=seed,
        device=compute.device,
        workers=worker_count(params.runtime.workers, compute.device),
    )
    images, labels = dataset.train_images[validation], dataset.train_labels[validation]
    held_out = "validation"
    if not len(validation):
        held_out, images, labels = "test", dataset.test_images, dataset.test_labels
    return Prepared(compute, classifier.to(compute.device), loader, held_out, images, labels, buffers_kept)
