"""3×3 convolutions of small images that are interleaved in strips, for CPUs with AMX.

AMX multiplies tiles of 16 rows of 32 bf16 numbers, and oneDNN fills a tile with neighbours in a row of pixels: 16 for
the convolution and its gradient by the images, 32 for that by the weights. In images of 4×4 pixels most of it stays
empty. A strip is one wide image for 16 of them: its rows hold the first pixel of that row of each, then the second of
each, and so on. Neighbours in an image are 16 pixels apart in the strip, whose convolution with the kernel dilated by
16 is that of each of them.
"""

from __future__ import annotations

import math
from typing import Any, Final, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.grad import conv2d_input, conv2d_weight

TILE_ROWS: Final = 16
TILE_COLUMNS: Final = 32
IMAGES: Final = 16
"""In a strip, at most; fewer where the batch cannot be divided by it."""


def gains(images: Tensor, weights: Tensor) -> bool:
    """Whether (N, C, H, W) `images` are in bf16, narrower than AMX's tiles are long, and can share strips."""
    return images.dtype == torch.bfloat16 and images.shape[3] < TILE_COLUMNS and _abreast(images) > 1


def convolve(images: Tensor, weights: Tensor) -> Tensor:
    """3×3 cross-correlation of stride 1 with one pixel of zero padding, as `conv2d(images, weights, padding=1)`.

    Args:
        images: (N, C, H, W); fast when channels_last.
        weights: (K, C, 3, 3).

    Returns:
        (N, K, H, W), in channels_last where the images are: the same sums, in another order.
    """
    if images.shape[3] >= TILE_ROWS:
        return cast(Tensor, _WeightsGradientByStrips.apply(images, weights.to(images.dtype)))
    abreast = _abreast(images)
    made = torch.conv2d(_strips(images, abreast), weights, padding=(1, abreast), dilation=(1, abreast))
    (count, _, height, width), outputs = images.shape, len(weights)
    made = made.permute(0, 2, 3, 1).view(-1, height, width, abreast, outputs).permute(0, 3, 1, 2, 4)
    return made.reshape(count, height, width, outputs).contiguous().permute(0, 3, 1, 2)


class _WeightsGradientByStrips(torch.autograd.Function):
    """A convolution of images that fill the rows of a tile by themselves, but not its columns."""

    @staticmethod
    def forward(context: Any, images: Tensor, weights: Tensor) -> Tensor:
        context.save_for_backward(images, weights)
        return torch.conv2d(images, weights, padding=1)

    @staticmethod
    @once_differentiable
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None]:
        images, weights = context.saved_tensors
        by_images = by_weights = None
        if context.needs_input_grad[0]:
            by_images = conv2d_input(images.shape, weights, gradient, padding=1)  # type: ignore[no-untyped-call]
        if context.needs_input_grad[1]:
            abreast = _abreast(images)
            by_weights = conv2d_weight(  # type: ignore[no-untyped-call]
                _strips(images, abreast),
                weights.shape,
                _strips(gradient, abreast),
                padding=(1, abreast),
                dilation=(1, abreast),
            )
        return by_images, by_weights


def _abreast(images: Tensor) -> int:
    return math.gcd(len(images), IMAGES)


def _strips(images: Tensor, abreast: int) -> Tensor:
    """(N, C, H, W) → (N / abreast, C, H, W · abreast) in channels_last."""
    _, channels, height, width = images.shape
    rows = images.permute(0, 2, 3, 1).reshape(-1, abreast, height, width, channels).permute(0, 2, 3, 1, 4)
    return rows.reshape(-1, height, width * abreast, channels).permute(0, 3, 1, 2)
