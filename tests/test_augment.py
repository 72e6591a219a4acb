"""One augmentation, two engines: same pixels for the same draws, the same distribution, its own draw for each image."""

from __future__ import annotations

import pickle
from typing import Any

import albumentations as A
import numpy as np
import pytest
import torch
from conftest import PARAMS_FILE
from numpy.typing import NDArray
from scipy.stats import chisquare

from onecycle.augment import Albumentations, Batched, Draws, apply, draw, fill_colour, pad
from onecycle.params import AugmentParams, load

MEAN = np.array([0.49, 0.48, 0.45])


def augment_params(**changes: Any) -> AugmentParams:
    shipped = load(PARAMS_FILE).augment
    return AugmentParams.model_validate(shipped.model_dump() | changes)


@pytest.fixture(scope="module")
def images() -> NDArray[np.uint8]:
    """Images in which every pixel tells where it is."""
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (64, 32, 32, 3), dtype=np.uint8)
    noise[:, :, :, 0] = np.arange(32, dtype=np.uint8)[:, None] * 7
    noise[:, :, :, 1] = np.arange(32, dtype=np.uint8)[None, :] * 7
    return noise


def replayed(transform: Any, image: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], dict[str, Any]]:
    """What albumentations made of `image`, and the draws it made it with, by name of the transform."""
    made = transform(image=image)
    drawn: dict[str, Any] = {}

    def collect(node: dict[str, Any]) -> None:
        if node.get("applied", True):
            drawn[node["__class_fullname__"]] = node.get("params", {})
        for child in node.get("transforms", []):
            collect(child)

    collect(made["replay"])
    return made["image"], drawn


@pytest.mark.parametrize("border", ["constant", "reflect"])
@pytest.mark.parametrize("overhang", [False, True])
@pytest.mark.parametrize("holes", [1, 3])
def test_same_draws_give_same_pixels(images: NDArray[np.uint8], border: str, overhang: bool, holes: int) -> None:
    params = augment_params(
        border=border, cutout_overhang=overhang, cutout_holes=holes, crop_probability=0.8, cutout_probability=0.7
    )
    engine = Albumentations(params, MEAN, seed=5)
    recorder = A.ReplayCompose(engine._transform.transforms)
    recorder.set_random_seed(11)
    before = 4 if overhang else 0
    padded = pad(torch.from_numpy(images), params, fill_colour(params.border_fill, MEAN))
    made, draws = [], []
    for image in images:
        result, drawn = replayed(recorder, image)
        left, top, *_ = drawn["RandomCrop"]["crop_coords"] if "RandomCrop" in drawn else (4, 4)
        cut = drawn["CoarseDropout"]["holes"] if "CoarseDropout" in drawn else np.zeros((holes, 4), int)
        made.append(result)
        draws.append(
            (top, left, "HorizontalFlip" in drawn, cut[:, 1] - before, cut[:, 0] - before, len(cut[cut > 0]) > 0)
        )
    top, left, flip, hole_top, hole_left, cutout = (np.array(column) for column in zip(*draws, strict=True))
    chosen = {
        name: torch.from_numpy(value)
        for name, value in vars(Draws(top, left, flip, hole_top, hole_left, cutout)).items()
    }
    fill = torch.tensor(fill_colour(params.cutout_fill, MEAN), dtype=torch.uint8)
    batched = apply(padded, torch.arange(len(images)), chosen, 32, params.cutout_size, fill).numpy()
    assert 0 < cutout.mean() < 1
    assert 0 < flip.mean() < 1
    np.testing.assert_array_equal(batched, np.stack(made))


def both_engines(images: NDArray[np.uint8], params: AugmentParams, seed: int) -> dict[str, NDArray[np.uint8]]:
    """The same image many times, each with its own index, through either engine."""
    index = np.arange(len(images))
    albumentations = Albumentations(params, MEAN, seed)(images, index, epoch=3)
    batched = Batched(torch.from_numpy(images), params, MEAN, seed)(torch.from_numpy(index), epoch=3)
    return {"albumentations": albumentations, "batched": batched.numpy()}


def test_draws_have_the_stated_distribution() -> None:
    """Offsets and hole corners uniform, flips fair, in both engines (chi-square at 0.1 %)."""
    count = 6000
    marked = np.zeros((count, 32, 32, 3), np.uint8)
    marked[..., 0] = 10 + np.arange(32, dtype=np.uint8)[:, None] * 3  # red tells the row
    marked[..., 1] = 10 + np.arange(32, dtype=np.uint8)[None, :] * 3  # green tells the column
    params = augment_params(border_fill="black", cutout_probability=0.0)
    for made in both_engines(marked, params, seed=1).values():
        rows = made[..., 0].max(axis=2)
        bottom = np.argmax(rows, axis=1)  # where the last row that is left came to lie
        offsets = np.where(rows.max(axis=1) == 10 + 93, 31 - bottom, ((rows.max(axis=1) - 103.0) / 3)).astype(int)
        assert chisquare(np.unique(offsets, return_counts=True)[1]).pvalue > 0.001
        assert len(np.unique(offsets)) == 9
        middle = made[:, 16, :, 1].astype(int)
        flipped = (middle[:, 20] < middle[:, 12]).sum()
        assert chisquare([flipped, count - flipped]).pvalue > 0.001
    holes = augment_params(crop_probability=0.0, flip_probability=0.0, cutout_fill="black")
    white = np.full((count, 32, 32, 3), 255, np.uint8)
    for made in both_engines(white, holes, seed=2).values():
        dark = made[..., 0] == 0
        assert (dark.sum(axis=(1, 2)) == 64).all()
        for axis in (1, 2):
            corner = np.argmax(dark.any(axis=3 - axis), axis=1)
            assert len(np.unique(corner)) == 25
            assert chisquare(np.unique(corner, return_counts=True)[1]).pvalue > 0.001


def test_an_overhanging_hole_has_its_centre_anywhere() -> None:
    params = augment_params(crop_probability=0.0, flip_probability=0.0, cutout_fill="black", cutout_overhang=True)
    white = np.full((6000, 32, 32, 3), 255, np.uint8)
    for made in both_engines(white, params, seed=2).values():
        sizes = (made[..., 0] == 0).any(axis=2).sum(axis=1)
        assert sizes.min() == 4  # a centre in the first row: four rows above it are gone
        assert sizes.max() == 8
        drawn = draw(params, 6000, 2, 3).hole_top
        assert (drawn.min(), drawn.max()) == (-4, 27)


def test_padding_of_four_moves_by_up_to_four(images: NDArray[np.uint8]) -> None:
    drawn = draw(augment_params(), 4000, 0, 0)
    assert (drawn.top.min(), drawn.top.max()) == (0, 8)
    assert pad(torch.from_numpy(images), augment_params(), (1, 2, 3)).shape == (64, 40, 40, 3)


def test_every_sample_has_its_own_draw_in_every_epoch(images: NDArray[np.uint8]) -> None:
    same = np.repeat(images[:1], 200, axis=0)
    index = np.arange(200)
    engine = Albumentations(augment_params(), MEAN, seed=0)
    first, second = engine(same, index, 0), engine(same, index, 1)
    assert len(np.unique(first.reshape(200, -1), axis=0)) > 195
    assert (first != second).any(axis=(1, 2, 3)).mean() > 0.95
    np.testing.assert_array_equal(engine(same, index[::-1], 0)[::-1], first)  # whatever was drawn in between
    other_seed = Albumentations(augment_params(), MEAN, seed=1)(same, index, 0)
    assert (first != other_seed).any(axis=(1, 2, 3)).mean() > 0.95
    batched = Batched(torch.from_numpy(same), augment_params(), MEAN, seed=0)
    one, two = batched(torch.arange(200), 0), batched(torch.arange(200), 1)
    assert torch.equal(batched(torch.arange(199, -1, -1), 0).flip(0), one)
    assert (one != two).flatten(1).any(1).float().mean() > 0.95


def test_a_loader_process_that_is_spawned_draws_the_same(images: NDArray[np.uint8]) -> None:
    """As on macOS: it gets the engine pickled."""
    index = np.arange(len(images))
    engine = Albumentations(augment_params(), MEAN, seed=0)
    there = pickle.loads(pickle.dumps(engine))
    np.testing.assert_array_equal(there(images, index, 2), engine(images, index, 2))


def test_offset_flip_and_hole_are_independent() -> None:
    """albumentations' own seeding would feed all transforms the same stream."""
    params = augment_params(crop_probability=0.5, cutout_probability=0.5, border_fill="black", cutout_fill="black")
    white = np.full((4000, 32, 32, 3), 255, np.uint8)
    white[:, :, :16] = 200
    made = Albumentations(params, MEAN, seed=0)(white, np.arange(4000), 0)
    flipped = made[:, 16, 28, 0] == 200
    cut = (made[:, 8:24, 8:24, 0] == 0).any(axis=(1, 2))
    moved = (made[:, 0, 6:26, 0] == 0).all(axis=1) | (made[:, -1, 6:26, 0] == 0).all(axis=1)
    table = np.corrcoef(np.stack([flipped, cut, moved]).astype(float))
    assert np.abs(table[np.triu_indices(3, 1)]).max() < 0.06


def test_fill_colours() -> None:
    assert fill_colour("black", MEAN) == (0, 0, 0)
    assert fill_colour("mean", MEAN) == (125, 122, 115)


def test_nothing_drawn_leaves_images_alone(images: NDArray[np.uint8]) -> None:
    params = augment_params(crop_probability=0.0, flip_probability=0.0, cutout_probability=0.0)
    for made in both_engines(images, params, seed=0).values():
        np.testing.assert_array_equal(made, images)


def test_shift_scale_rotate_is_an_option(images: NDArray[np.uint8]) -> None:
    params = augment_params(
        crop_probability=0.0, flip_probability=0.0, cutout_probability=0.0, shift_scale_rotate_probability=1.0
    )
    made = Albumentations(params, MEAN, seed=0)(images, np.arange(64), 0)
    assert made.shape == images.shape
    assert (made != images).any(axis=(1, 2, 3)).all()
