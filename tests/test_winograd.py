"""Winograd's convolutions: the same values and gradients as torch's own, and only where they are asked for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from convolution_case import given_to, with_gradients
from torch import Tensor
from torch.nn import functional as F

from onecycle import winograd
from onecycle.device import Compute, InPrecision, select
from onecycle.errors import UserError
from onecycle.model import build_classifier
from onecycle.params import Params
from onecycle.winograd import FEWEST_CHANNELS, convolve

MakeParams = Callable[..., Params]
WINOGRAD = Compute(torch.device("cpu"), torch.float32, "winograd")


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def direct(images: Tensor, weights: Tensor) -> Tensor:
    return F.conv2d(images, weights, padding=1)


@pytest.mark.parametrize(
    "shape",
    [(1, 1, 1, 4, 4), (2, 3, 5, 8, 12), (9, 64, 96, 32, 32), (600, 8, 4, 4, 4), (69, 6, 7, 16, 8), (0, 3, 4, 8, 8)],
    ids=["one tile", "wide", "chunks of eight", "two chunks", "a last chunk that is smaller", "no images"],
)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["nchw", "nhwc"])
def test_values_and_gradients_are_those_of_a_convolution(
    shape: tuple[int, int, int, int, int], layout: torch.memory_format
) -> None:
    count, inputs, outputs, height, width = shape
    images = random(count, inputs, height, width).to(memory_format=layout)
    weights = random(outputs, inputs, 3, 3, seed=1).to(memory_format=layout)
    upstream = random(count, outputs, height, width, seed=2).to(memory_format=layout)
    exact = with_gradients(direct, images.double(), weights.double(), upstream)
    ours = with_gradients(convolve, images, weights, upstream)
    for name, one, other in zip(("values", "by images", "by weights"), ours, exact, strict=True):
        assert one.dtype == torch.float32
        assert one.shape == other.shape
        assert (one - other).norm() <= 1e-5 * other.norm(), name


def test_images_that_need_no_gradient_get_none() -> None:
    images, weights, upstream = random(2, 4, 8, 8), random(4, 4, 3, 3).requires_grad_(), random(2, 4, 8, 8)
    (gradient,) = torch.autograd.grad(convolve(images, weights), weights, upstream)
    (exact,) = torch.autograd.grad(direct(images, weights), weights, upstream)
    torch.testing.assert_close(gradient, exact, rtol=1e-3, atol=1e-3)
    assert not convolve(images, weights.detach()).requires_grad


def test_the_result_may_be_changed_in_place() -> None:
    images, weights = random(2, 4, 8, 8), random(4, 4, 3, 3).requires_grad_()
    torch.autograd.backward(convolve(images, weights).add_(1).relu_().sum())
    assert weights.grad is not None and convolve(images, weights).is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    ("changes", "taken"),
    [
        ({}, True),
        ({"stride": 2}, False),
        ({"padding": 0}, False),
        ({"dilation": 2}, False),
        ({"groups": 2}, False),
        ({"bias": True}, False),
        ({"kernel_size": 1, "padding": 0}, False),
        ({"in_channels": FEWEST_CHANNELS - 1}, False),
        ({"out_channels": FEWEST_CHANNELS - 1}, False),
        ({"dtype": torch.float64}, False),
    ],
    ids=lambda value: str(value),
)
def test_the_mode_takes_what_gains_by_it(changes: dict[str, Any], taken: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    common = {"in_channels": FEWEST_CHANNELS, "out_channels": FEWEST_CHANNELS, "kernel_size": 3, "padding": 1}
    torch.manual_seed(187)  # of 400, the weights whose rounding keeps furthest from the bounds; some cross them
    layer = torch.nn.Conv2d(**{**common, "bias": False, **changes})
    images = random(2, layer.in_channels, 8, 8).to(layer.weight.dtype)
    shapes = given_to(winograd, monkeypatch)
    with WINOGRAD.convolving():
        ours = layer(images)
    assert bool(shapes) == taken
    theirs = layer(images)
    assert torch.equal(ours, theirs) != taken
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("side", [6, 7])
def test_the_mode_leaves_sides_that_tiles_do_not_fill(side: int, monkeypatch: pytest.MonkeyPatch) -> None:
    layer = torch.nn.Conv2d(FEWEST_CHANNELS, FEWEST_CHANNELS, 3, padding=1, bias=False)
    shapes = given_to(winograd, monkeypatch)
    with WINOGRAD.convolving():
        layer(random(1, FEWEST_CHANNELS, side, 8))
        layer(random(1, FEWEST_CHANNELS, 8, side))
    assert not shapes


def test_all_of_the_exercise_s_network_but_its_first_layer_is_taken(
    small_params: MakeParams, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    classifier = build_classifier(small_params(**{"model.width": 64}).model, 10, [0.5] * 3, [0.25] * 3).eval()
    images = torch.randint(256, (2, 32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    shapes = given_to(winograd, monkeypatch)
    with torch.inference_mode():
        ours = InPrecision(classifier, WINOGRAD)(images)
        assert [weights[0] for _, weights in shapes] == [128, 128, 128, 256, 512, 512, 512]
        theirs = InPrecision(classifier, Compute(torch.device("cpu"), torch.float32))(images)
    assert len(shapes) == 7
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("precision", "convolution", "taken"),
    [("fp32", "auto", True), ("fp32", "winograd", True), ("fp32", "direct", False), ("bf16", "auto", False)],
)
def test_who_asks_for_it_gets_it(small_params: MakeParams, precision: str, convolution: str, taken: bool) -> None:
    changes = {"train.precision": precision, "train.convolution": convolution}
    compute = select(small_params(**changes).train)
    assert (compute.convolution == "winograd") == taken
    assert str(compute).endswith(", winograd") == taken


@pytest.mark.parametrize(
    ("changes", "place"),
    [({"train.precision": "bf16"}, "cpu, bfloat16"), ({"train.compile": True}, "cpu, float32, compiled")],
    ids=["bf16", "compiled"],
)
def test_where_it_is_of_no_use_it_is_refused(small_params: MakeParams, changes: dict[str, Any], place: str) -> None:
    train = small_params(**{"train.convolution": "winograd", **changes}).train
    with pytest.raises(UserError, match=f"winograd is for CPUs in plain fp32, this is {place}; set it to auto"):
        select(train)
    assert select(train.model_copy(update={"convolution": "auto"})).convolution != "winograd"
