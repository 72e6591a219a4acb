"""What the tests of each way to convolve ask of it."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType

import pytest
import torch
from torch import Tensor


def with_gradients(
    convolution: Callable[[Tensor, Tensor], Tensor], images: Tensor, weights: Tensor, upstream: Tensor
) -> tuple[Tensor, ...]:
    """The result, and its gradients by images and weights."""
    images, weights = images.detach().requires_grad_(), weights.detach().requires_grad_()
    result = convolution(images, weights)
    return (result, *torch.autograd.grad(result, (images, weights), upstream.to(result.dtype)))


def given_to(module: ModuleType, monkeypatch: pytest.MonkeyPatch) -> list[tuple[torch.Size, torch.Size]]:
    """Shapes of the images and weights that `module.convolve` is given from now on."""
    shapes: list[tuple[torch.Size, torch.Size]] = []
    convolve = module.convolve

    def convolve_and_tell(images: Tensor, weights: Tensor) -> Tensor:
        shapes.append((images.shape, weights.shape))
        made: Tensor = convolve(images, weights)
        return made

    monkeypatch.setattr(module, "convolve", convolve_and_tell)
    return shapes
