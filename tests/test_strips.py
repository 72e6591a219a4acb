"""Convolutions of images in strips: the same values and gradients as one image at a time, and only where they gain."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from types import ModuleType
from typing import Any

import pytest
import torch
from convolution_case import given_to, with_gradients
from torch import Tensor
from torch.nn import functional as F

from onecycle import strips
from onecycle.device import Compute, InPrecision, select
from onecycle.errors import UserError
from onecycle.model import build_classifier
from onecycle.params import Params

MakeParams = Callable[..., Params]
STRIPS = Compute(torch.device("cpu"), torch.bfloat16, "strips")


def whole_numbers(*shape: int, seed: int) -> Tensor:
    """Small ones, whose products and sums have no rounding in any order."""
    return torch.randint(-3, 4, shape, generator=torch.Generator().manual_seed(seed)).float()


def first_given_to(module: ModuleType, function: str, monkeypatch: pytest.MonkeyPatch) -> list[torch.Size]:
    """Shapes of the first tensor that `module.function` is given from now on."""
    shapes: list[torch.Size] = []
    plain = getattr(module, function)

    def tell(first: Tensor, *args: Any, **kwargs: Any) -> Any:
        shapes.append(first.shape)
        return plain(first, *args, **kwargs)

    monkeypatch.setattr(module, function, tell)
    return shapes


@pytest.mark.parametrize(
    ("count", "abreast"), [(64, 16), (1, 1), (7, 1), (24, 8), (0, 16)], ids=lambda value: str(value)
)
@pytest.mark.parametrize(("height", "width"), [(4, 4), (8, 8), (3, 5), (1, 1)], ids=lambda value: str(value))
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["nchw", "nhwc"])
def test_values_and_gradients_are_those_of_a_convolution(
    count: int, abreast: int, height: int, width: int, layout: torch.memory_format, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = whole_numbers(count, 5, height, width, seed=0).to(memory_format=layout)
    weights = whole_numbers(6, 5, 3, 3, seed=1).to(memory_format=layout)
    upstream = whole_numbers(count, 6, height, width, seed=2).to(memory_format=layout)
    theirs = with_gradients(lambda *given: F.conv2d(*given, padding=1), images, weights, upstream)
    seen = first_given_to(torch, "conv2d", monkeypatch)
    ours = with_gradients(strips.convolve, images, weights, upstream)
    assert seen == [(count // abreast, 5, height, abreast * width)]
    for name, one, other in zip(("values", "by images", "by weights"), ours, theirs, strict=True):
        assert torch.equal(one, other), name
    assert ours[0].is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["nchw", "nhwc"])
@pytest.mark.parametrize("count", [32, 6, 5])
def test_images_that_fill_the_rows_of_a_tile_are_in_strips_for_the_gradient_by_weights(
    count: int, layout: torch.memory_format, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = whole_numbers(count, 5, 4, 16, seed=0).to(memory_format=layout)
    weights = whole_numbers(6, 5, 3, 3, seed=1).to(memory_format=layout)
    upstream = whole_numbers(count, 6, 4, 16, seed=2).to(memory_format=layout)
    theirs = with_gradients(lambda *given: F.conv2d(*given, padding=1), images, weights, upstream)
    seen = first_given_to(strips, "conv2d_weight", monkeypatch)
    ours = with_gradients(strips.convolve, images, weights, upstream)
    abreast = math.gcd(count, 16)
    assert seen == [(count // abreast, 5, 4, abreast * 16)]
    for name, one, other in zip(("values", "by images", "by weights"), ours, theirs, strict=True):
        assert torch.equal(one, other), name
    fixed = strips.convolve(images, weights.requires_grad_())  # of images that need no gradient
    torch.autograd.backward(fixed, upstream)
    assert weights.grad is not None and torch.equal(weights.grad, theirs[2])


def test_the_exercise_s_layers_of_16_pixels_and_less_are_taken(
    small_params: MakeParams, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    classifier = build_classifier(small_params(**{"model.width": 16}).model, 10, [0.5] * 3, [0.25] * 3)
    images = torch.randint(256, (4, 32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    shapes = given_to(strips, monkeypatch)
    ours = InPrecision(classifier, STRIPS)(images)
    assert [tuple(images[1:]) for images, _ in shapes] == [*[(32, 16, 16)] * 3, (64, 8, 8), (128, 4, 4), (128, 4, 4)]
    theirs = InPrecision(classifier, Compute(torch.device("cpu"), torch.bfloat16))(images)
    assert len(shapes) == 6
    torch.testing.assert_close(ours, theirs, rtol=0.02, atol=0.02)


@pytest.mark.parametrize(
    ("dtype", "count", "side"),
    [(torch.float32, 2, 4), (torch.bfloat16, 2, 32), (torch.bfloat16, 3, 4)],
    ids=["in fp32", "as wide as a tile", "an odd number"],
)
def test_what_does_not_gain_is_left(dtype: torch.dtype, count: int, side: int, monkeypatch: pytest.MonkeyPatch) -> None:
    shapes = given_to(strips, monkeypatch)
    layer = partial(torch.nn.Conv2d, 3, 4, bias=False)
    small = torch.zeros(2, 3, 4, 4, dtype=torch.bfloat16)
    with STRIPS.convolving():
        layer(3, padding=1, dtype=dtype)(torch.zeros(count, 3, side, side, dtype=dtype))
        layer(3, padding=1, stride=2, dtype=small.dtype)(small)
        layer(1, dtype=small.dtype)(small)
        assert not shapes
        layer(3, padding=1, dtype=small.dtype)(small)
    assert [images for images, _ in shapes] == [small.shape]


@pytest.mark.parametrize("amx", [True, False])
@pytest.mark.parametrize(
    ("convolution", "taken"), [("auto", None), ("strips", "strips"), ("direct", "direct")], ids=lambda value: str(value)
)
def test_auto_takes_it_where_there_is_amx(
    small_params: MakeParams, convolution: str, taken: str | None, amx: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    changes = {"train.precision": "bf16", "train.convolution": convolution}
    compute = select(small_params(**changes).train)
    assert compute.convolution == (taken or ("strips" if amx else "direct"))
    assert str(compute) == ("cpu, bfloat16, strips" if compute.convolution == "strips" else "cpu, bfloat16")


@pytest.mark.parametrize(
    ("changes", "place"),
    [({"train.precision": "fp32"}, "cpu, float32"), ({"train.compile": True}, "cpu, bfloat16, compiled")],
    ids=["fp32", "compiled"],
)
def test_where_it_is_of_no_use_it_is_refused(small_params: MakeParams, changes: dict[str, Any], place: str) -> None:
    train = small_params(**{"train.precision": "bf16", "train.convolution": "strips", **changes}).train
    with pytest.raises(UserError, match=f"strips is for CPUs in plain bf16, this is {place}; set it to auto"):
        select(train)
    assert select(train.model_copy(update={"convolution": "auto"})).convolution != "strips"
