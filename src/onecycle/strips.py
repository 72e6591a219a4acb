"""3×3 convolutions of small images side by side in strips, for CPUs with AMX.

AMX multiplies tiles of 16 rows, and oneDNN fills a tile with neighbours in a row of pixels. In images of 4×4 pixels,
three quarters of it stay empty. Images that lie side by side, a column of zeros between them, are one wide image, whose
convolution is that of each of them, and whose rows fill the tiles.
"""

from __future__ import annotations

import math
from typing import Final

import torch
from torch import Tensor
from torch.nn import functional as F

TILE_ROWS: Final = 16
IMAGES: Final = 32
"""In a strip, at most; fewer where the batch cannot be divided by it."""


def gains(images: Tensor, weights: Tensor) -> bool:
    """Whether (N, C, H, W) `images` are in bf16 and narrower than AMX's tiles."""
    return images.dtype == torch.bfloat16 and images.shape[3] < TILE_ROWS


def convolve(images: Tensor, weights: Tensor) -> Tensor:
    """3×3 cross-correlation of stride 1 with one pixel of zero padding, as `conv2d(images, weights, padding=1)`.

    Args:
        images: (N, C, H, W); fast when channels_last.
        weights: (K, C, 3, 3).

    Returns:
        (N, K, H, W) in channels_last: the same sums, of which the weights' gradient takes another order.
    """
    (count, inputs, height, width), outputs = images.shape, len(weights)
    abreast = math.gcd(count, IMAGES) or 1
    strips = images.permute(0, 2, 3, 1).reshape(-1, abreast, height, width, inputs).transpose(1, 2)
    strips = F.pad(strips, (0, 0, 0, 1)).view(-1, height, abreast * (width + 1), inputs)
    made = torch.conv2d(strips.permute(0, 3, 1, 2), weights, padding=1).permute(0, 2, 3, 1)
    made = made.view(-1, height, abreast, width + 1, outputs)[:, :, :, :width].transpose(1, 2)
    return made.reshape(count, height, width, outputs).contiguous().permute(0, 3, 1, 2)
