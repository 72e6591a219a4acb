"""Grad-CAM by hand, against its closed form for a linear head, and on both real networks."""

from __future__ import annotations

from typing import Literal

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from onecycle.errors import UserError
from onecycle.gradcam import gradcam
from onecycle.model import Classifier, build_classifier
from onecycle.params import ModelParams

CPU = torch.device("cpu")


def unscaled(network: nn.Module) -> Classifier:
    """A classifier whose network sees the pixels' own values."""
    return Classifier(network, [0.0] * 3, [1 / 255] * 3).eval()


def constant(classes: int, n: int) -> NDArray[np.int64]:
    return np.full(n, classes, dtype=np.int64)


class TwoLayers(nn.Module):
    """layer1: the image as it is; then ReLU of (sum of red - 10), (sum of green); head: a matrix, and one pixel."""

    def __init__(self) -> None:
        super().__init__()
        self.layer1 = nn.Identity()
        self.head = nn.Linear(2, 3, bias=False)
        self.head.weight.data = torch.tensor([[2.0, 0.0], [1.0, 4.0], [-1.0, -4.0]])

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer1(x)
        red, green, _blue = x.sum(dim=(2, 3)).unbind(1)
        sums = self.head(torch.stack([red - 10, green], dim=1).relu())
        return torch.cat([sums, x[:, :1, 0, 0]], dim=1)


def test_two_layers_by_hand() -> None:
    images = np.zeros((2, 8, 8, 3), dtype=np.uint8)
    images[:, 0, 0] = [8, 0, 255]
    images[:, 0, 1] = [4, 2, 255]
    images[:, 1, 0] = [0, 3, 255]
    images[1, 0, 0] = [5, 0, 255]  # red sums to 9: the first unit is off and its gradient 0

    targets = [constant(c, 2) for c in range(4)]
    of_zero, of_one, of_two, of_three = gradcam(unscaled(TwoLayers()), images, targets, "layer1", CPU)

    # d logit / d (red, green, blue) of a pixel: class 0 (2, 0, 0), class 1 (1, 4, 0), class 2 (-1, -4, 0)
    expected = np.zeros((2, 8, 8))
    expected[0, 0, :2] = 8 / 8, 4 / 8
    assert of_zero == pytest.approx(expected)  # the second image's map stays 0
    expected[0, 0, :2], expected[0, 1, 0] = (8 / 12, 12 / 12), 12 / 12
    expected[1, 0, 1], expected[1, 1, 0] = 8 / 12, 12 / 12
    assert of_one == pytest.approx(expected)
    assert (of_two == 0).all()

    # class 3 looks at one pixel's red, but a channel has one weight: its gradient's mean, (1/64, 0, 0)
    expected = np.zeros((2, 8, 8))
    expected[0, 0, :2] = 8 / 8, 4 / 8
    expected[1, 0, :2] = 5 / 5, 4 / 5
    assert of_three == pytest.approx(expected)


class PooledLinear(nn.Module):
    """Convolution → average over pixels → linear: Grad-CAM is then Zhou et al.'s CAM, Σ_k w_ck A_k."""

    def __init__(self) -> None:
        super().__init__()
        self.layer2 = nn.Conv2d(3, 5, 3, padding=1)
        self.head = nn.Linear(5, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer2(x).mean(dim=(2, 3)))


class InPlace(TwoLayers):
    """The same, and what follows the layer overwrites what that gave."""

    def forward(self, x: Tensor) -> Tensor:
        images = self.layer1(x)
        assert isinstance(images, Tensor)
        images.mul_(1)
        red, green, _blue = images.sum(dim=(2, 3)).unbind(1)
        return torch.as_tensor(self.head(torch.stack([red - 10, green], dim=1).relu()))


def test_what_follows_may_work_in_place() -> None:
    images = np.random.default_rng(0).integers(0, 9, (4, 8, 8, 3), np.uint8)
    targets = [constant(c, 4) for c in range(3)]
    plain, in_place = (
        gradcam(unscaled(network), images, targets, "layer1", CPU) for network in (TwoLayers(), InPlace())
    )
    for one, other in zip(plain, in_place, strict=True):
        assert (one == other).all()
    assert plain[0].any()


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_linear_head_gives_class_activation_maps(memory_format: torch.memory_format) -> None:
    torch.manual_seed(0)
    network = PooledLinear().to(memory_format=memory_format).requires_grad_(False)  # frozen: no gradient to it
    classifier = unscaled(network)
    images = np.random.default_rng(0).integers(0, 256, (6, 8, 8, 3), dtype=np.uint8)
    classes = np.array([0, 1, 2, 3, 0, 1])
    maps = network.layer2(classifier.normalise(torch.from_numpy(images)))
    evidence = torch.einsum("nk,nkhw->nhw", network.head.weight[torch.from_numpy(classes)], maps).relu()
    expected = evidence / evidence.amax(dim=(1, 2), keepdim=True).clamp(min=1e-30)
    found, other = gradcam(classifier, images, (classes, (classes + 1) % 4), "layer2", CPU)
    assert found.dtype == np.float32
    assert found == pytest.approx(expected.numpy(), abs=1e-5)
    assert abs(found - other).max(axis=(1, 2)).min() > 0.1


def test_a_coarse_layer_is_refused() -> None:
    network = nn.Sequential()
    network.add_module("layer3", nn.AvgPool2d(2))
    network.add_module("head", nn.Flatten())
    with pytest.raises(UserError, match=r"gradcam_layer must have a map of at least 8×8, layer3's is 8×7"):
        gradcam(unscaled(network), np.zeros((1, 16, 14, 3), dtype=np.uint8), [constant(0, 1)], "layer3", CPU)


@pytest.mark.parametrize(
    ("name", "layer", "side"),
    [
        ("custom_resnet", "layer1", 16),
        ("custom_resnet", "layer2", 8),
        ("resnet18", "layer1", 32),
        ("resnet18", "layer2", 16),
    ],
)
def test_both_networks(name: Literal["custom_resnet", "resnet18"], layer: str, side: int) -> None:
    torch.manual_seed(0)
    model = ModelParams(name=name, width=4, fc_bias=True, dropout=0.5, logit_scale=1.0)
    classifier = build_classifier(model, 10, [0.5] * 3, [0.25] * 3)
    images = np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3), dtype=np.uint8)
    classifier.logits(torch.from_numpy(images))  # in training mode: gives batch norm some statistics
    classifier.eval()
    before = classifier(torch.from_numpy(images))
    targets = (np.arange(5), np.arange(5) + 5)

    found = gradcam(classifier, images, targets, layer, CPU)

    for maps in found:
        assert maps.shape == (5, side, side)
        assert maps.min() >= 0
        assert set(maps.max(axis=(1, 2))) <= {0, 1}
        assert maps.any()
    assert (found[0] != found[1]).any(axis=(1, 2)).all()
    plain = gradcam(classifier.to(memory_format=torch.contiguous_format), images, targets, layer, CPU)
    assert np.stack(plain) == pytest.approx(np.stack(found), abs=1e-4)
    alone = gradcam(classifier, images[2:3], [targets[0][2:3]], layer, CPU)
    assert alone[0][0] == pytest.approx(found[0][2], abs=1e-4)
    with torch.autocast("cpu", torch.bfloat16):  # as training computes
        rounded = gradcam(classifier, images, targets, layer, CPU)
    for exact, maps in zip(found, rounded, strict=True):
        assert maps.dtype == np.float32
        assert np.corrcoef(exact.ravel(), maps.ravel())[0, 1] > 0.95
    assert all(parameter.grad is None for parameter in classifier.parameters())
    assert torch.equal(classifier(torch.from_numpy(images)), before)
    assert not classifier.network.get_submodule(layer)._forward_hooks
