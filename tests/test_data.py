"""Arrays on disk, splits, limits and channel statistics."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from onecycle import data
from onecycle.data import ARRAYS, Dataset, channel_statistics, describe, fewer, limited, load, save, split
from onecycle.download import digits
from onecycle.errors import UserError


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    return digits()


def balanced(n: int, classes: int = 10) -> data.Labels:
    return np.random.default_rng(7).permutation(np.arange(n) % classes).astype(np.int64)


# split and limited


@pytest.mark.parametrize("fraction", [0.0, 0.01, 0.1, 0.25, 1 / 3, 0.5])
@pytest.mark.parametrize("n", [1, 2, 7, 20, 143, 1437, 5000])
def test_split_parts_are_disjoint_whole_sorted_and_of_the_promised_size(n: int, fraction: float) -> None:
    train, held_out = split(balanced(n), fraction, seed=0)

    assert len(held_out) == round(n * fraction)
    assert np.array_equal(np.sort(np.concatenate([train, held_out])), np.arange(n))
    for index in (train, held_out):
        assert index.dtype == np.int64
        assert np.all(np.diff(index) > 0)


def test_split_without_a_fraction_holds_nothing_out() -> None:
    train, held_out = split(balanced(50), 0.0, seed=3)
    assert train.tolist() == list(range(50))
    assert held_out.shape == (0,)


def test_split_of_cifar10s_size_takes_500_of_each_class() -> None:
    labels = balanced(50_000)
    train, held_out = split(labels, 0.1, seed=0)
    assert np.bincount(labels[held_out]).tolist() == [500] * 10
    assert np.bincount(labels[train]).tolist() == [4500] * 10


def test_each_class_keeps_its_share_to_within_one_image(dataset: Dataset) -> None:
    labels = dataset.train_labels
    for n in range(1, len(labels), 97):
        share = n * np.bincount(labels, minlength=10) / len(labels)
        assert np.all(np.abs(np.bincount(labels[limited(labels, n, seed=0)], minlength=10) - share) <= 1)


def test_a_rare_class_is_kept_in_proportion() -> None:
    labels = np.repeat(np.arange(3), [900, 90, 10])
    assert np.bincount(labels[limited(labels, 100, seed=0)]).tolist() == [90, 9, 1]


def test_a_smaller_limit_keeps_part_of_what_a_larger_one_keeps(dataset: Dataset) -> None:
    labels = dataset.train_labels
    assert set(limited(labels, 100, seed=5)) < set(limited(labels, 333, seed=5))


def test_a_limit_above_the_size_keeps_all(dataset: Dataset) -> None:
    assert limited(dataset.test_labels, 10_000, seed=0).tolist() == list(range(360))


def test_the_seed_decides_which_images_are_held_out() -> None:
    labels = balanced(1000)
    first, again, other = (split(labels, 0.2, seed)[1] for seed in (0, 0, 1))
    assert first.tolist() == again.tolist()
    assert first.tolist() != other.tolist()


def test_splits_are_the_ones_of_every_machine_and_day() -> None:
    assert limited(np.arange(100) % 10, 10, seed=0).tolist() == [5, 8, 9, 20, 36, 37, 81, 82, 93, 94]


# fewer


def test_limit_keeps_so_many_of_each_split_and_has_a_digest_of_its_own(dataset: Dataset) -> None:
    small = fewer(dataset, 100, seed=0)
    assert (len(small.train_labels), len(small.test_labels)) == (100, 100)
    assert np.bincount(small.test_labels).tolist() == pytest.approx([10] * 10, abs=1)
    kept = limited(dataset.train_labels, 100, seed=0)
    assert np.array_equal(small.train_images, dataset.train_images[kept])
    assert small.digest != dataset.digest
    assert fewer(dataset, None, seed=0) is dataset


# save and load


def same(one: Dataset, other: Dataset) -> bool:
    arrays = all(np.array_equal(getattr(one, key), getattr(other, key)) for key in ARRAYS)
    return arrays and (one.name, one.classes, one.digest) == (other.name, other.classes, other.digest)


def test_what_is_saved_is_loaded_as_read_only_memory_maps(dataset: Dataset, tmp_path: Path) -> None:
    save(dataset, tmp_path / "new" / "arrays")
    loaded = load(tmp_path / "new" / "arrays")

    assert same(loaded, dataset)
    assert loaded.train_images.dtype == np.uint8 and loaded.train_labels.dtype == np.int64
    for key in ARRAYS:
        array = getattr(loaded, key)
        assert isinstance(array, np.memmap) and not array.flags.writeable


def test_the_same_data_gives_the_same_bytes(dataset: Dataset, tmp_path: Path) -> None:
    save(dataset, tmp_path / "one")
    save(digits(), tmp_path / "two")
    assert {path.name for path in (tmp_path / "one").iterdir()} == {*(f"{key}.npy" for key in ARRAYS), "dataset.json"}
    for path in (tmp_path / "one").iterdir():
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes()


def test_saving_replaces_what_was_there_and_leaves_nothing_beside_it(dataset: Dataset, tmp_path: Path) -> None:
    save(dataset, tmp_path / "arrays")
    (tmp_path / ".arrays.staging").mkdir()  # of a process that was killed
    (tmp_path / ".arrays.replaced").mkdir()
    (tmp_path / ".arrays.replaced" / "old.npy").touch()
    small = fewer(dataset, 50, seed=0)

    save(small, tmp_path / "arrays")

    assert same(load(tmp_path / "arrays"), small)
    assert list(tmp_path.iterdir()) == [tmp_path / "arrays"]


def test_saving_that_fails_leaves_the_earlier_data_whole(dataset: Dataset, tmp_path: Path) -> None:
    save(dataset, tmp_path / "arrays")
    unsaveable = dataclasses.replace(dataset, test_labels=np.array([{}], object))

    with pytest.raises(ValueError, match="Object arrays cannot be saved"):
        save(unsaveable, tmp_path / "arrays")

    assert same(load(tmp_path / "arrays"), dataset)


@pytest.mark.parametrize("damaged", ["train_images.npy", "test_labels.npy", "dataset.json"])
@pytest.mark.parametrize("damage", ["missing", "empty", "truncated"])
def test_damaged_data_is_named_with_what_to_run(dataset: Dataset, tmp_path: Path, damaged: str, damage: str) -> None:
    save(dataset, tmp_path)
    path = tmp_path / damaged
    if damage == "missing":
        path.unlink()
    else:
        os.truncate(path, 0 if damage == "empty" else path.stat().st_size - 50)

    with pytest.raises(UserError, match=r"holds no whole data set .*; run `dvc repro download`"):
        load(tmp_path)


def test_data_that_never_was_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nowhere holds no whole data set"):
        load(tmp_path / "nowhere")


# digest


def test_digest_tells_pixels_labels_names_types_and_shapes_apart(dataset: Dataset) -> None:
    arrays = {key: getattr(dataset, key) for key in ARRAYS}
    pixel = dataset.test_images.copy()
    pixel[17, 3, 3, 1] ^= 1
    others = [
        describe("digits", dataset.classes, arrays | {"test_images": pixel}),
        describe("digits", dataset.classes, arrays | {"test_labels": dataset.test_labels[::-1]}),
        describe("digits", dataset.classes[::-1], arrays),
    ]
    digests = {dataset.digest, *(other.digest for other in others)}
    assert len(digests) == 4
    assert describe("digits", dataset.classes, arrays).digest == dataset.digest


IMAGES, LABELS = (
    "images must be uint8 (N, 32, 32, 3), got",
    "labels must be from 0 to 9, a position among its classes; got",
)


@pytest.mark.parametrize(
    ("key", "change", "sentence"),
    [
        ("train_images", lambda images: images[:, 2:30, 2:30], f"train_{IMAGES} uint8 (1437, 28, 28, 3); pad or scale"),
        ("test_images", lambda images: images / 255, f"test_{IMAGES} float64 (360, 32, 32, 3)"),
        ("train_images", lambda images: images[:0], f"train_{IMAGES} uint8 (0, 32, 32, 3)"),
        ("test_labels", lambda labels: labels.astype(np.int32), "test_labels must be int64 (360,), got int32 (360,)"),
        ("train_labels", lambda labels: labels[1:], "train_labels must be int64 (1437,), got int64 (1436,)"),
        ("train_labels", lambda labels: labels + 1, f"train_{LABELS} 1 to 10"),
        ("test_labels", lambda labels: labels - 1, f"test_{LABELS} -1 to 8"),
    ],
)
def test_arrays_that_no_stage_can_take_are_refused(
    dataset: Dataset, key: str, change: Callable[[NDArray[Any]], NDArray[Any]], sentence: str
) -> None:
    arrays = {name: getattr(dataset, name) for name in ARRAYS}
    with pytest.raises(UserError, match=re.escape(f"data set mine: {sentence}")):
        describe("mine", dataset.classes, arrays | {key: change(arrays[key])})


@pytest.mark.parametrize("classes", [("0",), tuple("0123456788"), tuple(map(str, range(257)))], ids=len)
def test_classes_are_told_apart_and_fit_into_a_byte(dataset: Dataset, classes: tuple[str, ...]) -> None:
    arrays = {name: getattr(dataset, name) for name in ARRAYS}
    with pytest.raises(UserError, match="data set mine must have 2 to 256 classes, each with a name of its own"):
        describe("mine", classes, arrays)
    largest = tuple(map(str, range(256)))
    assert describe("mine", largest, arrays).classes == largest


# channel statistics


def test_statistics_of_two_pixels_are_as_computed_by_hand() -> None:
    images = np.array([[[[0, 255, 51]], [[255, 255, 102]]]], np.uint8)  # one image of two pixels
    mean, std = channel_statistics(images)
    assert mean.tolist() == pytest.approx([0.5, 1.0, 0.3], abs=1e-15)
    assert std.tolist() == pytest.approx([0.5, 0.0, 0.1], abs=1e-15)
    assert mean.dtype == std.dtype == np.float64


@pytest.mark.parametrize("n", [1, 999, 1000, 1001, 1437])
def test_statistics_are_numpys_whatever_the_number_of_images(dataset: Dataset, n: int) -> None:
    images = dataset.train_images[:n] ^ np.array([0, 85, 170], np.uint8)  # three different channels
    mean, std = channel_statistics(images)
    scaled = images.astype(np.float64) / 255
    assert mean == pytest.approx(scaled.mean(axis=(0, 1, 2)), abs=1e-11)
    assert std == pytest.approx(scaled.std(axis=(0, 1, 2)), abs=1e-11)


def test_statistics_of_white_images_are_exact() -> None:
    mean, std = channel_statistics(np.full((3000, 32, 32, 3), 255, np.uint8))
    assert (mean.tolist(), std.tolist()) == ([1, 1, 1], [0, 0, 0])


def test_statistics_of_a_memory_map_take_little_memory(tmp_path: Path) -> None:
    np.lib.format.open_memmap(tmp_path / "images.npy", "w+", np.uint8, (20_000, 32, 32, 3)).flush()
    images = np.load(tmp_path / "images.npy", mmap_mode="r")
    tracemalloc.start()
    try:
        channel_statistics(images)
        assert tracemalloc.get_traced_memory()[1] < 64 * 2**20  # 61 MB as bytes, 491 MB as int64
    finally:
        tracemalloc.stop()


def test_statistics_are_read_as_they_were_written(tmp_path: Path) -> None:
    path = tmp_path / "stats.json"
    mean, std = np.array([0.1, 0.2, 1 / 3]), np.array([0.4, 0.5, 2 / 3])
    data.write_statistics(path, 12, mean, std)

    stats = json.loads(path.read_text(encoding="utf-8"))
    assert stats == {
        "images": 12,
        "mean": {"red": 0.1, "green": 0.2, "blue": 1 / 3},
        "std": {"red": 0.4, "green": 0.5, "blue": 2 / 3},
    }
    assert [values.tolist() for values in data.read_statistics(path)] == [mean.tolist(), std.tolist()]


@pytest.mark.parametrize("text", [None, "", "[]", '{"mean": {"red": 0.1}}', '{"mean": 1, "std": 1}'])
def test_damaged_statistics_are_named_with_what_to_run(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / "stats.json").write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match="run `dvc repro stats`"):
        data.read_statistics(tmp_path / "stats.json")
