"""The networks, and the classifier that is shipped: normalise + network + softmax.

The custom ResNet is the exercise's, after David Page's "How to train your ResNet" (2018): four 3×3 layers of 64, 128,
256 and 512 channels, the second and fourth with a residual branch of two convolutions. ResNet-18 is He et al.'s
(arXiv:1512.03385) in its usual CIFAR form: a 3×3 stem without pooling, BasicBlocks 2-2-2-2.
"""

from __future__ import annotations

import copy
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from onecycle.errors import UserError
from onecycle.params import ModelParams


def _conv_bn_relu(inputs: int, outputs: int, dropout: float, stride: int = 1, pool: bool = False) -> nn.Sequential:
    """3×3 convolution without bias (→ 2×2 max pooling) → batch norm → ReLU (→ dropout)."""
    layers: list[nn.Module] = [nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)]
    if pool:
        layers.append(nn.MaxPool2d(2))
    layers += [nn.BatchNorm2d(outputs), nn.ReLU()]
    if dropout:
        layers.append(nn.Dropout(dropout))
    return nn.Sequential(*layers)


class _Scaled(nn.Module):
    """x = factor · x."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self._factor = factor

    def forward(self, x: Tensor) -> Tensor:
        return x * self._factor


def _head(pool: nn.Module, classes: int, model: ModelParams) -> nn.Sequential:
    """4×4 pooling of the last layer's 8 · width channels → linear (→ scale): the logits."""
    layers: list[nn.Module] = [pool, nn.Flatten(), nn.Linear(8 * model.width, classes, bias=model.fc_bias)]
    if model.logit_scale != 1:
        layers.append(_Scaled(model.logit_scale))
    return nn.Sequential(*layers)


class ResidualLayer(nn.Module):
    """x = pooled convolution, then x + branch(x), with a branch of two convolutions."""

    def __init__(self, inputs: int, outputs: int, dropout: float) -> None:
        super().__init__()
        self.down = _conv_bn_relu(inputs, outputs, dropout, pool=True)
        self.branch = nn.Sequential(_conv_bn_relu(outputs, outputs, dropout), _conv_bn_relu(outputs, outputs, dropout))

    def forward(self, x: Tensor) -> Tensor:
        x = self.down(x)
        return x + cast(Tensor, self.branch(x))


class CustomResNet(nn.Module):
    """(N, 3, 32, 32) float → (N, classes) logits. 6,573,130 parameters at width 64 with 10 classes and FC bias."""

    def __init__(self, classes: int, model: ModelParams) -> None:
        super().__init__()
        width, dropout = model.width, model.dropout
        self.prep = _conv_bn_relu(3, width, dropout)
        self.layer1 = ResidualLayer(width, 2 * width, dropout)
        self.layer2 = _conv_bn_relu(2 * width, 4 * width, dropout, pool=True)
        self.layer3 = ResidualLayer(4 * width, 8 * width, dropout)
        self.head = _head(nn.MaxPool2d(4), classes, model)

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.head(self.layer3(self.layer2(self.layer1(self.prep(x))))))


class BasicBlock(nn.Module):
    """Two 3×3 convolutions and a shortcut, a 1×1 projection where shape changes."""

    def __init__(self, inputs: int, outputs: int, stride: int, dropout: float) -> None:
        super().__init__()
        self.branch = nn.Sequential(
            *_conv_bn_relu(inputs, outputs, dropout, stride),
            nn.Conv2d(outputs, outputs, 3, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
        )
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            # A projection of every stride-th pixel, which are picked first: in the weights' gradient of a strided 1×1
            # with fewer than 8 channels, torch 2.15's oneDNN writes past the end on CPUs that have AVX2 at most.
            pick = nn.AvgPool2d(1, stride)
            self.shortcut = nn.Sequential(pick, nn.Conv2d(inputs, outputs, 1, bias=False), nn.BatchNorm2d(outputs))
        self.end = nn.Sequential(nn.ReLU(), *([nn.Dropout(dropout)] if dropout else []))

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.end(self.branch(x) + self.shortcut(x)))


class ResNet18(nn.Module):
    """(N, 3, 32, 32) float → (N, classes) logits. 11,173,962 parameters at width 64 with 10 classes and FC bias."""

    def __init__(self, classes: int, model: ModelParams) -> None:
        super().__init__()
        width, dropout = model.width, model.dropout
        self.prep = _conv_bn_relu(3, width, dropout)
        self.layer1 = self._layer(width, width, 1, dropout)
        self.layer2 = self._layer(width, 2 * width, 2, dropout)
        self.layer3 = self._layer(2 * width, 4 * width, 2, dropout)
        self.layer4 = self._layer(4 * width, 8 * width, 2, dropout)
        self.head = _head(nn.AvgPool2d(4), classes, model)

    @staticmethod
    def _layer(inputs: int, outputs: int, stride: int, dropout: float) -> nn.Sequential:
        return nn.Sequential(BasicBlock(inputs, outputs, stride, dropout), BasicBlock(outputs, outputs, 1, dropout))

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.head(self.layer4(self.layer3(self.layer2(self.layer1(self.prep(x)))))))


def build_network(model: ModelParams, classes: int) -> nn.Module:
    """The network of `model`, freshly initialised from torch's global generator, in channels_last."""
    kind = {"custom_resnet": CustomResNet, "resnet18": ResNet18}[model.name]
    return kind(classes, model).to(memory_format=torch.channels_last)


class Classifier(nn.Module):
    """What is trained and what is shipped: uint8 (N, 32, 32, 3) images in, float32 (N, classes) probabilities out."""

    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
        """Take per-channel mean and standard deviation of the training images in [0, 1]."""
        super().__init__()
        self.network = network
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32))
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32))

    def normalise(self, images: Tensor) -> Tensor:
        """uint8 (N, H, W, 3) → float32 (N, 3, H, W) of zero mean and unit variance per channel, in channels_last."""
        return ((images.float() / 255 - self.mean) / self.std).permute(0, 3, 1, 2)

    def logits(self, images: Tensor) -> Tensor:
        """uint8 (N, H, W, 3) → (N, classes), for the loss, which takes its own softmax."""
        return cast(Tensor, self.network(self.normalise(images)))

    def forward(self, images: Tensor) -> Tensor:
        return self.logits(images).float().softmax(dim=1)


def build_classifier(model: ModelParams, classes: int, mean: Sequence[float], std: Sequence[float]) -> Classifier:
    """A freshly initialised classifier."""
    return Classifier(build_network(model, classes), mean, std)


@dataclass(frozen=True)
class ModelFile:
    """What models/model.pt holds beside the weights."""

    params: ModelParams
    classes: tuple[str, ...]


def save_classifier(path: Path, state: dict[str, Tensor], model: ModelParams, classes: Sequence[str]) -> None:
    """Write a classifier's state dict and how to rebuild it. Same weights, same bytes."""
    weights = {name: value.detach().to("cpu").contiguous() for name, value in state.items()}
    buffer = io.BytesIO()  # torch.save writes a path's stem into the archive
    torch.save({"model": model.model_dump(), "classes": list(classes), "state": weights}, buffer)
    path.write_bytes(buffer.getvalue())


def load_classifier(path: Path) -> tuple[Classifier, ModelFile]:
    """The classifier in `path`, on the CPU, in evaluation mode.

    Raises:
        UserError: the file is missing, damaged or no model of this project.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        file = ModelFile(ModelParams.model_validate(content["model"]), tuple(content["classes"]))
        classifier = build_classifier(file.params, len(file.classes), [0.0] * 3, [1.0] * 3)
        classifier.load_state_dict(content["state"])
    except FileNotFoundError:
        raise UserError(f"{path} is missing; run `dvc repro train` or `dvc checkout`") from None
    except Exception as error:  # torch.load and load_state_dict raise many types for a damaged file
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{path} is no model of this project ({reason}); run `dvc repro train`") from error
    return classifier.eval(), file


def summarise(classifier: Classifier, side: int = 32) -> str:
    """A table of the network's layers: output shape, parameters, multiply-adds for one `side`×`side` image."""
    from torchinfo import summary  # of the stages that import this module, only training needs it

    columns = ("output_size", "num_params", "mult_adds")
    network = copy.deepcopy(classifier.network).to("cpu").float()
    table = summary(
        network,
        (1, 3, side, side),
        mode="eval",
        verbose=0,
        depth=3,
        col_names=columns,
        row_settings=("var_names", "depth"),
        device="cpu",
    )
    return str(table).replace("Units.MEGABYTES", "M")  # torchinfo prints the name of its constant
