"""The networks have the size the exercise states, the classifier normalises and its file comes back."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch

from onecycle.errors import UserError
from onecycle.model import build_classifier, build_network, load_classifier, save_classifier, summarise
from onecycle.params import ModelParams


def model_params(**changes: Any) -> ModelParams:
    return ModelParams.model_validate(
        {"name": "custom_resnet", "width": 64, "fc_bias": True, "dropout": 0.0, "logit_scale": 1.0, **changes}
    )


@pytest.mark.parametrize(
    ("changes", "parameters"),
    [
        ({}, 6_573_130),
        ({"fc_bias": False}, 6_573_120),
        ({"name": "resnet18"}, 11_173_962),
    ],
)
def test_size(changes: dict[str, Any], parameters: int) -> None:
    network = build_network(model_params(**changes), 10)
    assert sum(parameter.numel() for parameter in network.parameters()) == parameters


def test_the_custom_resnet_is_the_exercise_s() -> None:
    network = build_network(model_params(), 10)
    shapes = {}
    for name in ("prep", "layer1", "layer2", "layer3"):
        network.get_submodule(name).register_forward_hook(
            lambda _module, _input, output, name=name: shapes.__setitem__(name, tuple(output.shape[1:]))
        )
    assert network(torch.zeros(2, 3, 32, 32)).shape == (2, 10)
    assert shapes == {"prep": (64, 32, 32), "layer1": (128, 16, 16), "layer2": (256, 8, 8), "layer3": (512, 4, 4)}
    kinds = [type(module).__name__ for module in network.get_submodule("layer1.down").modules()]
    assert kinds[1:] == ["Conv2d", "MaxPool2d", "BatchNorm2d", "ReLU"]
    assert all(conv.bias is None for conv in network.modules() if isinstance(conv, torch.nn.Conv2d))
    assert not any(isinstance(module, torch.nn.Softmax) for module in network.modules())


@pytest.mark.parametrize("name", ["custom_resnet", "resnet18"])
def test_the_logits_scale(name: str) -> None:
    plain = build_network(model_params(name=name, width=8), 10).eval()
    scaled = build_network(model_params(name=name, width=8, logit_scale=0.125), 10).eval()
    scaled.load_state_dict(plain.state_dict())
    images = torch.randn(4, 3, 32, 32)
    assert torch.equal(scaled(images), plain(images) / 8)


@pytest.mark.parametrize("name", ["custom_resnet", "resnet18"])
def test_width_and_dropout(name: str) -> None:
    network = build_network(model_params(name=name, width=8, dropout=0.5), 7)
    assert network(torch.zeros(2, 3, 32, 32)).shape == (2, 7)
    images = torch.randn(4, 3, 32, 32)
    network.train()
    assert not torch.equal(network(images), network(images))
    network.eval()
    assert torch.equal(network(images), network(images))


def test_the_classifier_normalises_and_gives_probabilities() -> None:
    classifier = build_classifier(model_params(width=4), 10, [0.5, 0.25, 0.0], [0.5, 0.25, 1.0]).eval()
    images = torch.randint(0, 256, (6, 32, 32, 3), dtype=torch.uint8)
    normalised = classifier.normalise(images)
    assert normalised.shape == (6, 3, 32, 32)
    assert normalised.is_contiguous(memory_format=torch.channels_last)
    expected = (images.double() / 255 - torch.tensor([0.5, 0.25, 0.0])) / torch.tensor([0.5, 0.25, 1.0])
    torch.testing.assert_close(normalised.double(), expected.permute(0, 3, 1, 2), rtol=0, atol=1e-6)
    probabilities = classifier(images)
    torch.testing.assert_close(probabilities.sum(dim=1), torch.ones(6))
    torch.testing.assert_close(probabilities, classifier.logits(images).softmax(dim=1))


def test_same_weights_same_bytes(tmp_path: Path) -> None:
    classifier = build_classifier(model_params(width=4), 3, [0.5] * 3, [0.2] * 3)
    for name in ("one.pt", "another.pt"):
        save_classifier(tmp_path / name, classifier.state_dict(), model_params(width=4), ("a", "b", "c"))
    assert (tmp_path / "one.pt").read_bytes() == (tmp_path / "another.pt").read_bytes()
    loaded, file = load_classifier(tmp_path / "one.pt")
    assert file.classes == ("a", "b", "c")
    assert file.params == model_params(width=4)
    assert not loaded.training
    images = torch.randint(0, 256, (5, 32, 32, 3), dtype=torch.uint8)
    assert torch.equal(loaded(images), classifier.eval()(images))


def test_a_damaged_or_missing_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="dvc checkout"):
        load_classifier(tmp_path / "model.pt")
    (tmp_path / "model.pt").write_bytes(b"not a model")
    with pytest.raises(UserError, match="no model of this project"):
        load_classifier(tmp_path / "model.pt")
    torch.save({"weights": torch.zeros(3)}, tmp_path / "other.pt")
    with pytest.raises(UserError, match="no model of this project"):
        load_classifier(tmp_path / "other.pt")


class Touching:
    """Its unpickling would make a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.path),)


def test_a_malicious_model_is_refused_and_never_executed(tmp_path: Path) -> None:
    torch.save({"model": {}, "classes": ["a"], "state": Touching(tmp_path / "touched")}, tmp_path / "model.pt")
    with pytest.raises(UserError, match="no model of this project"):
        load_classifier(tmp_path / "model.pt")
    assert not (tmp_path / "touched").exists()


def test_summary() -> None:
    text = summarise(build_classifier(model_params(), 10, [0.5] * 3, [0.2] * 3))
    assert "Total params: 6,573,130" in text
    assert "(layer1)" in text
