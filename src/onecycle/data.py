"""A data set as memory-mapped arrays: how it lies on disk, how it is split, its channel statistics.

    from onecycle import data, paths
    dataset = data.load(paths.DATASET)
    train, validation = data.split(dataset.train_labels, fraction=0.1, seed=0)
    mean, std = data.channel_statistics(dataset.train_images)

Images are uint8 NHWC, so that one array serves every reader: pictures, albumentations, and a device's memory.
"""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from onecycle.errors import UserError

Images = NDArray[np.uint8]
Labels = NDArray[np.int64]
Index = NDArray[np.int64]

ARRAYS = ("train_images", "train_labels", "test_images", "test_labels")
CHANNELS = ("red", "green", "blue")
MOST_CLASSES = 256
"""Predictions are kept as a byte each."""


@dataclass(frozen=True, eq=False)
class Dataset:
    """Labelled 32×32 RGB images in two splits."""

    name: str
    """Which data set this is, as `data.dataset` calls it."""
    classes: tuple[str, ...]
    """Class names; a label is a position in here."""
    digest: str
    """SHA-256 over classes and arrays, in hex: equal digests mean equal data."""
    train_images: Images
    """(N, 32, 32, 3) uint8."""
    train_labels: Labels
    """(N,) int64."""
    test_images: Images
    """(M, 32, 32, 3) uint8."""
    test_labels: Labels
    """(M,) int64."""


def describe(name: str, classes: tuple[str, ...], arrays: Mapping[str, NDArray[np.generic]]) -> Dataset:
    """The data set made of `arrays` (keys: `ARRAYS`), with its digest.

    Raises:
        UserError: they, or its classes, are not what `Dataset` says; found out here, and not after hours of training.
    """
    ordered = {key: np.ascontiguousarray(arrays[key]) for key in ARRAYS}
    _check(name, classes, ordered)
    digest = hashlib.sha256(json.dumps(classes).encode())
    for key, array in ordered.items():
        digest.update(f"{key} {array.dtype.str} {array.shape}".encode())
        digest.update(array.data)
    return Dataset(name, classes, digest.hexdigest(), **ordered)


def _check(name: str, classes: tuple[str, ...], arrays: Mapping[str, NDArray[np.generic]]) -> None:
    if not 2 <= len(set(classes)) == len(classes) <= MOST_CLASSES:
        raise UserError(f"data set {name} must have 2 to {MOST_CLASSES} classes, each with a name of its own")
    for split in ("train", "test"):
        images, labels = arrays[f"{split}_images"], arrays[f"{split}_labels"]
        if images.dtype != np.uint8 or images.shape[1:] != (32, 32, 3) or not len(images):
            raise UserError(
                f"data set {name}: {split}_images must be uint8 (N, 32, 32, 3), got {images.dtype} {images.shape}; pad "
                "or scale images of another size, and repeat a single channel"
            )
        if labels.dtype != np.int64 or labels.shape != (len(images),):
            raise UserError(
                f"data set {name}: {split}_labels must be int64 ({len(images)},), got {labels.dtype} {labels.shape}"
            )
        lowest, highest = int(np.min(labels)), int(np.max(labels))
        if lowest < 0 or highest >= len(classes):
            raise UserError(
                f"data set {name}: {split}_labels must be from 0 to {len(classes) - 1}, a position among its classes; "
                f"got {lowest} to {highest}"
            )


def fewer(dataset: Dataset, limit: int | None, seed: int) -> Dataset:
    """At most `limit` images of each split, stratified; all of them where `limit` is None."""
    if limit is None:
        return dataset
    train = limited(dataset.train_labels, limit, seed)
    test = limited(dataset.test_labels, limit, seed)
    kept = (
        dataset.train_images[train],
        dataset.train_labels[train],
        dataset.test_images[test],
        dataset.test_labels[test],
    )
    return describe(dataset.name, dataset.classes, dict(zip(ARRAYS, kept, strict=True)))


def save(dataset: Dataset, folder: Path) -> None:
    """Write one .npy an array and dataset.json, all of it or nothing: `folder` is replaced by a rename."""
    staging = folder.with_name(f".{folder.name}.staging")
    replaced = folder.with_name(f".{folder.name}.replaced")
    for leftover in (staging, replaced):  # of a process that was killed here
        shutil.rmtree(leftover, ignore_errors=True)
    staging.mkdir(parents=True)
    for key in ARRAYS:
        np.save(staging / f"{key}.npy", getattr(dataset, key), allow_pickle=False)
    description = {"name": dataset.name, "classes": dataset.classes, "digest": dataset.digest}
    (staging / "dataset.json").write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")
    if folder.exists():  # a folder can only be renamed onto an empty one
        folder.rename(replaced)
    staging.rename(folder)
    shutil.rmtree(replaced, ignore_errors=True)


def load(folder: Path) -> Dataset:
    """Open what `save` wrote; the arrays are read-only memory maps, so this costs no reading.

    Raises:
        UserError: a file is missing or damaged.
    """
    try:
        description = json.loads((folder / "dataset.json").read_text(encoding="utf-8"))
        arrays = {key: np.load(folder / f"{key}.npy", mmap_mode="r", allow_pickle=False) for key in ARRAYS}
        return Dataset(description["name"], tuple(description["classes"]), description["digest"], **arrays)
    except (OSError, EOFError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{folder} holds no whole data set ({error}); run `dvc repro download`") from None


def split(labels: Labels, fraction: float, seed: int) -> tuple[Index, Index]:
    """Hold out round(N · fraction) of N images, each class in proportion.

    Args:
        labels: (N,) int64.
        fraction: share held out, in [0, 1).
        seed: which images are held out.

    Returns:
        Positions in `labels`, sorted int64: those to train on, and those held out (empty where `fraction` is 0).
    """
    held_out = limited(labels, round(len(labels) * fraction), seed)
    return np.setdiff1d(np.arange(len(labels)), held_out, assume_unique=True), held_out


def limited(labels: Labels, n: int, seed: int) -> Index:
    """The first `n` positions of a seeded, stratified shuffle of `labels`, sorted int64; all where there are fewer."""
    return np.sort(_stratified_shuffle(labels, seed)[:n])


def _stratified_shuffle(labels: Labels, seed: int) -> Index:
    """A permutation of positions of which every prefix has each class in proportion, to within one image.

    The k-th image (from 0) of a class with n images, in random order, goes to place (k + ½) / n of the whole.
    """
    shuffled = np.random.default_rng(seed).permutation(len(labels))
    _, kinds, counts = np.unique(labels[shuffled], return_inverse=True, return_counts=True)
    by_class = np.argsort(kinds, kind="stable")
    rank = np.empty_like(kinds)
    rank[by_class] = np.arange(len(labels)) - np.repeat(np.cumsum(counts) - counts, counts)
    return shuffled[np.argsort((rank + 0.5) / counts[kinds], kind="stable")].astype(np.int64)


def channel_statistics(images: Images) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean and (population) standard deviation of each channel, over all pixels of all images.

    Sums are exact integers, so neither order nor chunk size can change a digit.

    Args:
        images: (N, H, W, C) uint8, N ≥ 1; a memory map is read a thousand images at a time.

    Returns:
        Two (C,) float64, in [0, 1] where white is 1.
    """
    channels = images.shape[-1]
    total = np.zeros(channels, np.int64)
    squares = np.zeros(channels, np.int64)
    for start in range(0, len(images), 1000):
        pixels = images[start : start + 1000].reshape(-1, channels).astype(np.int64)
        total += pixels.sum(axis=0)
        squares += (pixels * pixels).sum(axis=0)
    n = images.size // channels
    mean = [t / (255 * n) for t in total.tolist()]
    std = [math.sqrt(n * s - t * t) / (255 * n) for t, s in zip(total.tolist(), squares.tolist(), strict=True)]
    return np.array(mean), np.array(std)


def write_statistics(path: Path, images: int, mean: NDArray[np.float64], std: NDArray[np.float64]) -> None:
    """Write the channel statistics (each (3,) float64, RGB, in [0, 1]) of so many images as JSON, in full digits."""
    per_channel = {
        "mean": dict(zip(CHANNELS, mean.tolist(), strict=True)),
        "std": dict(zip(CHANNELS, std.tolist(), strict=True)),
    }
    path.write_text(json.dumps({"images": images, **per_channel}, indent=2) + "\n", encoding="utf-8")


def read_statistics(path: Path) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean and standard deviation, each (3,) float64, RGB, in [0, 1], from what `write_statistics` wrote.

    Raises:
        UserError: the file is missing or damaged.
    """
    try:
        stats = json.loads(path.read_text(encoding="utf-8"))
        mean, std = (np.array([stats[key][channel] for channel in CHANNELS], np.float64) for key in ("mean", "std"))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} holds no channel statistics ({error}); run `dvc repro stats`") from None
    return mean, std
