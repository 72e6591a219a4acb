"""Which way a network's 3×3 convolutions are computed, without the network knowing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode


class Convolving(TorchFunctionMode):
    """While entered, convolutions that gain by it are computed by another function; all others as always."""

    def __init__(self, convolve: Callable[[Tensor, Tensor], Tensor], gains: Callable[[Tensor, Tensor], bool]) -> None:
        """Take what computes `conv2d(images, weights, padding=1)`, and whether it is to, for 3×3 weights."""
        super().__init__()
        self._convolve, self._gains = convolve, gains

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if function is torch.conv2d and not kwargs and _plain(*args) and self._gains(*args[:2]):
            return self._convolve(*args[:2])
        return function(*args, **(kwargs or {}))


def _plain(
    images: Tensor,
    weights: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> bool:
    """Whether it is 3×3, of stride 1, with one pixel of padding, and nothing else."""
    return weights.shape[2:] == (3, 3) and (bias, stride, padding, dilation, groups) == (
        None,
        (1, 1),
        (1, 1),
        (1, 1),
        1,
    )
