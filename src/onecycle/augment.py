"""Pad, random crop, flip, cutout: one augmentation, two engines.

`Albumentations` works image by image on the CPU, `Batched` on a whole batch with one gather, on any device. Both take
uint8 NHWC images and give uint8 NHWC images; given the same offsets, flips and holes they give the same pixels.
Every sample has its own draw in every epoch, a function of (seed, epoch, index) alone (`Batched`: and of how many
images there are): neither the number of loader workers nor the order of batches nor an interruption can change it.

The exercise's recipe is pad 4 → random crop 32 → horizontal flip → one 8×8 cutout (DeVries & Taylor 2017,
arXiv:1708.04552); padding 4 means a 40×40 canvas, so that an image moves by up to 4 pixels each way.
"""

from __future__ import annotations

import os
import random
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray

from onecycle.params import AugmentParams

os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"  # else its import asks the network for a newer version, and waits

Images = NDArray[np.uint8]

# Philox streams are told apart by key and counter: of its 256 bits the low half counts, the high half says for what.
SAMPLE, ORDER, DRAWS = 0, 1, 2


def stream(seed: int, epoch: int, purpose: int, index: int = 0) -> np.random.Generator:
    """A random stream of its own for each (seed, epoch, purpose, index), the same on every machine."""
    bits = np.random.Philox(key=np.array([seed, epoch], np.uint64), counter=_counter(purpose, index))
    return np.random.Generator(bits)


def _counter(purpose: int, index: int) -> NDArray[np.uint64]:
    return np.array([0, 0, purpose, index], np.uint64)


def fill_colour(fill: str, mean: NDArray[np.float64]) -> tuple[int, int, int]:
    """uint8 RGB of `mean` (that of the training images, in [0, 1]; normalisation makes it 0) or `black`."""
    if fill == "black":
        return (0, 0, 0)
    red, green, blue = (int(value) for value in np.rint(np.asarray(mean) * 255))
    return (red, green, blue)


def overhang(augment: AugmentParams) -> tuple[int, int]:
    """Pixels a hole may hang over the (top or left, bottom or right) border: its centre stays inside the image."""
    if not augment.cutout_overhang:
        return (0, 0)
    return (augment.cutout_size // 2, augment.cutout_size - augment.cutout_size // 2 - 1)


class _CounterRandom(random.Random):
    """Python's `random` API on top of a numpy generator, so that one stream feeds all of albumentations."""

    def __init__(self, generator: np.random.Generator) -> None:
        self._generator = generator
        super().__init__()

    def random(self) -> float:
        return float(self._generator.random())

    def getrandbits(self, k: int, /) -> int:
        size = (k + 7) // 8
        return int.from_bytes(self._generator.bytes(size), "little") >> (size * 8 - k)

    def seed(self, *_args: object, **_kwargs: object) -> None:
        """The generator is positioned by `Albumentations`, never here."""

    def __reduce__(self) -> tuple[type[_CounterRandom], tuple[np.random.Generator]]:
        return (_CounterRandom, (self._generator,))  # for loader processes that are spawned, as on macOS


class Albumentations:
    """The augmentation through albumentations, one image at a time (some 2,000 images/s on one core).

    albumentations' own `set_random_seed` gives every transform the same stream; here one counter-based generator
    (Philox: key = (seed, epoch), counter = index) feeds them all, so draws are independent within and between samples.
    """

    def __init__(self, augment: AugmentParams, mean: NDArray[np.float64], seed: int, side: int = 32) -> None:
        """`mean` is that of the training images, (3,) float64 in [0, 1]; `side` theirs in pixels."""
        import albumentations as A
        import cv2

        cv2.setNumThreads(1)  # images of 32×32 only lose by threads
        border = cv2.BORDER_CONSTANT if augment.border == "constant" else cv2.BORDER_REFLECT_101
        border_fill, hole_fill = (fill_colour(fill, mean) for fill in (augment.border_fill, augment.cutout_fill))
        before, after = overhang(augment)
        canvas = side + 2 * augment.pad
        cutout = A.CoarseDropout(
            num_holes_range=(augment.cutout_holes, augment.cutout_holes),
            hole_height_range=(augment.cutout_size, augment.cutout_size),
            hole_width_range=(augment.cutout_size, augment.cutout_size),
            fill=hole_fill,
            p=1,
        )
        self._transform = A.Compose(
            [
                A.Sequential(
                    [
                        A.PadIfNeeded(canvas, canvas, border_mode=border, fill=border_fill),
                        A.RandomCrop(side, side),
                    ],
                    p=augment.crop_probability,
                ),
                A.HorizontalFlip(p=augment.flip_probability),
                A.Affine(
                    translate_percent=(-augment.shift_limit, augment.shift_limit),
                    scale=(1 - augment.scale_limit, 1 + augment.scale_limit),
                    rotate=(-augment.rotate_limit, augment.rotate_limit),
                    border_mode=border,
                    fill=border_fill,
                    p=augment.shift_scale_rotate_probability,
                ),
                A.Sequential(
                    [
                        A.Pad((before, before, after, after)),
                        cutout,
                        A.Crop(before, before, before + side, before + side),
                    ]
                    if augment.cutout_overhang
                    else [cutout],
                    p=augment.cutout_probability,
                ),
            ]
        )
        self._seed = seed
        self._bits = np.random.Philox(key=0)
        self._state = cast(dict[str, Any], self._bits.state)
        generator = np.random.Generator(self._bits)
        self._transform.set_random_state(generator, _CounterRandom(generator))

    def __call__(self, images: Images, index: NDArray[np.int64], epoch: int) -> Images:
        """Augmented `images[index]`, (N, 32, 32, 3) uint8, for one epoch."""
        return np.stack([self._one(images[i], int(i), epoch) for i in index])

    def _one(self, image: Images, index: int, epoch: int) -> Images:
        self._state["state"]["key"][:] = (self._seed, epoch)
        self._state["state"]["counter"] = _counter(SAMPLE, index)
        self._state["buffer_pos"], self._state["has_uint32"] = 4, 0
        self._bits.state = cast(Any, self._state)
        return cast(Images, self._transform(image=image)["image"])


@dataclass(frozen=True)
class Draws:
    """What chance decided for N samples.

    Attributes:
        top, left: (N,) int64, the crop's corner on the padded canvas; (pad, pad) leaves the image where it is.
        flip: (N,) bool.
        hole_top, hole_left: (N, holes) int64, a hole's corner in the cropped image; may be negative with overhang.
        cutout: (N,) bool, whether the holes are cut at all.
    """

    top: NDArray[np.int64]
    left: NDArray[np.int64]
    flip: NDArray[np.bool_]
    hole_top: NDArray[np.int64]
    hole_left: NDArray[np.int64]
    cutout: NDArray[np.bool_]


def draw(augment: AugmentParams, count: int, seed: int, epoch: int, side: int = 32) -> Draws:
    """The draws of a whole epoch, row i for sample i of `count`."""
    chance = stream(seed, epoch, DRAWS)
    moved = chance.random(count) < augment.crop_probability
    corners = chance.integers(0, 2 * augment.pad + 1, size=(2, count))
    top, left = np.where(moved, corners, augment.pad)
    flip = chance.random(count) < augment.flip_probability
    before, after = overhang(augment)
    holes = chance.integers(-before, side - augment.cutout_size + after + 1, size=(2, count, augment.cutout_holes))
    return Draws(top, left, flip, holes[0], holes[1], chance.random(count) < augment.cutout_probability)


class Batched:
    """The augmentation of a whole batch as one gather on the device that holds the images.

    The set is padded once; a crop and a flip are then nothing but row and column numbers.
    """

    def __init__(self, images: torch.Tensor, augment: AugmentParams, mean: NDArray[np.float64], seed: int) -> None:
        """Take (N, H, W, 3) uint8 `images` on the device where batches are wanted, and their mean in [0, 1], (3,)."""
        self._augment, self._seed, self._side, self._count = augment, seed, images.shape[1], len(images)
        self._padded = pad(images, augment, fill_colour(augment.border_fill, mean))
        self._hole_fill = torch.tensor(fill_colour(augment.cutout_fill, mean), dtype=torch.uint8, device=images.device)
        self._epoch: tuple[int, dict[str, torch.Tensor]] | None = None

    def __call__(self, index: torch.Tensor, epoch: int) -> torch.Tensor:
        """Augmented images of `index` (int64, on the same device), (N, H, W, 3) uint8, for one epoch."""
        if self._epoch is None or self._epoch[0] != epoch:
            draws = draw(self._augment, self._count, self._seed, epoch, self._side)
            self._epoch = (epoch, {name: self._put(value) for name, value in vars(draws).items()})
        chosen = {name: value[index] for name, value in self._epoch[1].items()}
        return apply(self._padded, index, chosen, self._side, self._augment.cutout_size, self._hole_fill)

    def _put(self, values: NDArray[Any]) -> torch.Tensor:
        return torch.from_numpy(values).to(self._padded.device)


def pad(images: torch.Tensor, augment: AugmentParams, fill: tuple[int, int, int]) -> torch.Tensor:
    """(N, H, W, 3) uint8 → (N, H + 2·pad, W + 2·pad, 3) uint8, bordered by `fill` or by reflection."""
    width = augment.pad
    _, height, breadth, _ = images.shape
    if augment.border == "constant":
        padded = torch.tensor(fill, dtype=torch.uint8, device=images.device).repeat(
            len(images), height + 2 * width, breadth + 2 * width, 1
        )
        padded[:, width : width + height, width : width + breadth] = images
        return padded
    rows, columns = (_reflected(size, width).to(images.device) for size in (height, breadth))
    return images[:, rows][:, :, columns]


def _reflected(size: int, width: int) -> torch.Tensor:
    return torch.from_numpy(np.pad(np.arange(size), width, mode="reflect"))


def apply(
    padded: torch.Tensor,
    index: torch.Tensor,
    draws: dict[str, torch.Tensor],
    side: int,
    hole: int,
    hole_fill: torch.Tensor,
) -> torch.Tensor:
    """Crop, flip and cut (N,) images of the uint8 `padded`, by `draws` (fields of `Draws`): (N, side, side, 3)."""
    span = torch.arange(side, device=padded.device)
    rows = draws["top"][:, None] + span
    columns = draws["left"][:, None] + torch.where(draws["flip"][:, None], span.flip(0), span)
    images = padded[index[:, None, None], rows[:, :, None], columns[:, None, :]]
    holes = torch.zeros(images.shape[:3], dtype=torch.bool, device=padded.device)
    for top, left in zip(draws["hole_top"].unbind(1), draws["hole_left"].unbind(1), strict=True):
        holes |= _covered(top, span, hole)[:, :, None] & _covered(left, span, hole)[:, None, :]
    return torch.where((holes & draws["cutout"][:, None, None])[..., None], hole_fill, images)


def _covered(start: torch.Tensor, span: torch.Tensor, hole: int) -> torch.Tensor:
    """(N,) starts → (N, side) bool: which positions lie in [start, start + hole)."""
    distance = span - start[:, None]
    return (distance >= 0) & (distance < hole)
