"""3×3 convolutions by Winograd's minimal filtering, for CPUs that have to train in fp32.

Lavin & Gray, "Fast Algorithms for Convolutional Neural Networks" (arXiv:1509.09308), F(4×4, 3×3): a tile of 4×4 output
pixels comes from 6×6 input pixels by 36 multiplications for each pair of channels instead of 144,

    Y = Aᵀ [(G g Gᵀ) ⊙ (Bᵀ d B)] A

with g the 3×3 kernel and d the tile. Over all tiles and channels, the ⊙ is 36 matrix products; and since the rest is
linear, too, each of A, B, G is here one matrix for all pixels of a tile at once (its Kronecker square), so that a
matrix library does the whole work. The gradients are the same products, transposed.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

FEWEST_CHANNELS = 64
"""Of input and output. With fewer, transforming tiles takes longer than the multiplications that it saves."""

_TILES = 512
"""That are computed together: enough for large matrix products, few enough to stay in the cache."""


def _kronecker_square(rows: list[list[float]]) -> Tensor:
    matrix = torch.tensor(rows, dtype=torch.float64)
    return torch.kron(matrix, matrix).float()


_A = _kronecker_square(
    [[1, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 1]]
)  # Aᵀ: (16, 36)
_B = _kronecker_square(
    [
        [4, 0, -5, 0, 1, 0],
        [0, -4, -4, 1, 1, 0],
        [0, 4, -4, -1, 1, 0],
        [0, -2, -1, 2, 1, 0],
        [0, 2, -1, -2, 1, 0],
        [0, 4, 0, -5, 0, 1],
    ]
)  # Bᵀ: (36, 36)
_G = _kronecker_square(
    [
        [1 / 4, 0, 0],
        [-1 / 6, -1 / 6, -1 / 6],
        [-1 / 6, 1 / 6, -1 / 6],
        [1 / 24, 1 / 12, 1 / 6],
        [1 / 24, -1 / 12, 1 / 6],
        [0, 0, 1],
    ]
)  # (36, 9)
_A_TRANSPOSED, _B_TRANSPOSED, _G_TRANSPOSED = (matrix.T.contiguous() for matrix in (_A, _B, _G))


def gains(images: Tensor, weights: Tensor) -> bool:
    """Whether `convolve` takes them, and is faster than what torch has."""
    return (
        min(weights.shape[:2]) >= FEWEST_CHANNELS
        and images.dtype == weights.dtype == torch.float32
        and images.shape[2] % 4 == images.shape[3] % 4 == 0
    )


def convolve(images: Tensor, weights: Tensor) -> Tensor:
    """3×3 cross-correlation of stride 1 with one pixel of zero padding, as `conv2d(images, weights, padding=1)`.

    Args:
        images: (N, C, H, W) fp32 on the CPU, H and W multiples of 4; fast when channels_last.
        weights: (K, C, 3, 3) fp32.

    Returns:
        (N, K, H, W) in channels_last, with a relative error of some 1e-6, and gradients alike. Until the backward pass
        it keeps 2.25 times the images, transformed, instead of them.
    """
    differentiated = torch.is_grad_enabled() and (images.requires_grad or weights.requires_grad)
    return cast(Tensor, _Convolution.apply(images, weights, differentiated))


class _Convolution(torch.autograd.Function):
    """All arrays in here have their channels last, and those of tiles are (tiles, 36 or 16 pixels, channels).

    There a tile lies in one piece, for the transforms. The products take and write the same arrays transposed, (36,
    tiles, channels), which costs the matrix library next to nothing.
    """

    @staticmethod
    def forward(context: Any, images: Tensor, weights: Tensor, differentiated: bool) -> Tensor:
        (count, inputs, height, width), outputs = images.shape, len(weights)
        rows, columns = height // 4, width // 4
        images = images.permute(0, 2, 3, 1)
        filters = (_G @ weights.permute(2, 3, 1, 0).reshape(9, -1)).view(36, inputs, outputs)
        shape = (count, outputs, height, width)
        result = torch.empty(shape, memory_format=torch.channels_last)  # no view, which could not be changed in place
        blocks = result.permute(0, 2, 3, 1).view(count, rows, 4, columns, 4, outputs)
        at_once = _images_at_once(rows * columns)
        bordered = images.new_zeros(min(at_once, count), height + 2, width + 2, inputs)  # the border stays zero
        scratch, kept = _Scratch(), []
        for chunk in _chunks(count, at_once):
            part = images[chunk]
            padded = bordered[: len(part)]
            padded[:, 1:-1, 1:-1] = part
            overlapping = padded.unfold(1, 6, 4).unfold(2, 6, 4).permute(0, 1, 2, 4, 5, 3)
            pixels = scratch("pixels", len(part) * rows * columns, 36, inputs)
            pixels.view(overlapping.shape).copy_(overlapping)
            tiles = torch.bmm(_B.expand(len(pixels), 36, 36), pixels)
            products = scratch("products", len(tiles), 36, outputs)
            torch.bmm(tiles.transpose(0, 1), filters, out=products.transpose(0, 1))
            made = torch.bmm(_A.expand(len(tiles), 16, 36), products, out=scratch("made", len(tiles), 16, outputs))
            blocks[chunk] = made.view(-1, rows, columns, 4, 4, outputs).transpose(2, 3)
            if differentiated:  # in here gradients are always off, so that only the caller knows
                kept.append(tiles)
        context.save_for_backward(filters, *kept)
        return result

    @staticmethod
    @once_differentiable
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor, None]:
        filters, *kept = context.saved_tensors
        (_, inputs, outputs), (count, _, height, width) = filters.shape, gradient.shape
        rows, columns = height // 4, width // 4
        gradient = gradient.permute(0, 2, 3, 1).contiguous().view(count, rows, 4, columns, 4, outputs)
        filters_gradient = torch.zeros_like(filters)
        images_gradient = gradient.new_empty(count, height, width, inputs) if context.needs_input_grad[0] else None
        scratch = _Scratch()
        for chunk, tiles in zip(_chunks(count, _images_at_once(rows * columns)), kept, strict=True):
            part = gradient[chunk].transpose(2, 3)
            blocks = scratch("blocks", len(tiles), 16, outputs)
            blocks.view(part.shape).copy_(part)
            products = scratch("products", len(tiles), 36, outputs)
            torch.bmm(_A_TRANSPOSED.expand(len(tiles), 36, 16), blocks, out=products)
            filters_gradient.baddbmm_(tiles.permute(1, 2, 0), products.transpose(0, 1))
            if images_gradient is not None:
                spread = scratch("tiles", len(tiles), 36, inputs)
                torch.bmm(products.transpose(0, 1), filters.transpose(1, 2), out=spread.transpose(0, 1))
                pixels = scratch("pixels", len(tiles), 36, inputs)
                torch.bmm(_B_TRANSPOSED.expand(len(tiles), 36, 36), spread, out=pixels)
                padded = scratch("padded", len(part), rows + 1, 4, columns + 1, 4, inputs)
                _overlap(pixels.view(-1, rows, columns, 6, 6, inputs), padded)
                whole = padded.view(-1, height + 4, width + 4, inputs)
                images_gradient[chunk] = whole[:, 1 : height + 1, 1 : width + 1]
        weights_gradient = (_G_TRANSPOSED @ filters_gradient.view(36, -1)).view(3, 3, inputs, outputs)
        if images_gradient is not None:
            images_gradient = images_gradient.permute(0, 3, 1, 2)
        return images_gradient, weights_gradient.permute(3, 2, 0, 1), None


class _Scratch:
    """Buffers by name that chunk after chunk is written into, so that they stay in the cache."""

    def __init__(self) -> None:
        self._buffers: dict[str, Tensor] = {}

    def __call__(self, name: str, *shape: int) -> Tensor:
        """An uninitialised tensor of this shape, which may be smaller than the first of its name."""
        size = int(torch.Size(shape).numel())
        if name not in self._buffers:
            self._buffers[name] = torch.empty(size)
        return self._buffers[name][:size].view(shape)


def _images_at_once(tiles: int) -> int:
    return max(1, _TILES // tiles)


def _chunks(images: int, at_once: int) -> Iterator[slice]:
    return (slice(start, min(start + at_once, images)) for start in range(0, images, at_once))


def _overlap(tiles: Tensor, pixels: Tensor) -> None:
    """Put (N, rows, columns, 6, 6, C) tiles, of which each shares two pixels with the next, where they are summed, into
    (N, rows + 1, 4, columns + 1, 4, C) pixels."""
    tiles = tiles.transpose(2, 3)  # (N, rows, 6, columns, 6, C)
    pixels[:, -1] = 0
    pixels[:, :, :, -1] = 0
    pixels[:, :-1, :, :-1] = tiles[:, :, :4, :, :4]
    pixels[:, 1:, :2, :-1] += tiles[:, :, 4:, :, :4]
    pixels[:, :-1, :, 1:, :2] += tiles[:, :, :4, :, 4:]
    pixels[:, 1:, :2, 1:, :2] += tiles[:, :, 4:, :, 4:]
