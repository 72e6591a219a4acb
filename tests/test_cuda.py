"""What only a CUDA device can show; left out where there is none."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from test_training import assert_equal, assert_it_repeats_and_resumes_to_the_bit, make_run, outcome

from onecycle.augment import Batched
from onecycle.data import Dataset
from onecycle.errors import UserError
from onecycle.params import Params

MakeParams = Callable[..., Params]

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")

ON_CUDA = {"train.device": "cuda", "train.compile": False, "model.width": 16}


def test_augmented_on_the_device_pixels_are_the_same(small_params: MakeParams, digits: Dataset) -> None:
    mean, index = np.full(3, 0.5), torch.arange(200)
    for changes in ({}, {"augment.border": "reflect", "augment.cutout_overhang": True, "augment.cutout_holes": 2}):
        augment = small_params(**changes).augment
        images = torch.from_numpy(digits.train_images[:200])
        here = Batched(images, augment, mean, 3)(index, 1)
        there = Batched(images.cuda(), augment, mean, 3)(index.cuda(), 1)
        assert torch.equal(here, there.cpu())


@pytest.mark.parametrize("precision", ["bf16", "fp16", "fp32"])
@pytest.mark.parametrize(("optimizer", "rate"), [("adam", 0.01), ("sgd", 0.02)])
def test_it_learns(small_params: MakeParams, digits: Dataset, precision: str, optimizer: str, rate: float) -> None:
    changes = {"train.precision": precision, "optimizer.name": optimizer, "epochs": 8, "one_cycle.max_lr": rate}
    history, weights = outcome(make_run(small_params(**ON_CUDA, **changes), digits))
    assert history[-1].train_loss < history[0].train_loss / 2
    assert history[-1].held_out_accuracy > 0.7
    assert all(weight.is_cuda for weight in weights.values())


@pytest.mark.parametrize("compiled", [False, True], ids=["plain", "compiled"])
def test_it_trains_like_the_cpu(small_params: MakeParams, digits: Dataset, compiled: bool) -> None:
    common = {"augment.backend": "batched", "train.precision": "fp32", "model.width": 16, "epochs": 2}
    common |= {"one_cycle.max_lr": 0.001}  # a rate at which rounding does not grow
    here, _ = outcome(make_run(small_params(**common), digits))
    there, _ = outcome(make_run(small_params(**{**ON_CUDA, **common, "train.compile": compiled}), digits))
    for one, other in zip(here, there, strict=True):
        assert one.train_loss == pytest.approx(other.train_loss, abs=0.05)


def test_deterministic_it_repeats_and_resumes_to_the_bit(small_params: MakeParams, digits: Dataset) -> None:
    try:
        assert_it_repeats_and_resumes_to_the_bit(small_params(**ON_CUDA, **{"train.deterministic": True}), digits)
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("compiled", [False, True], ids=["plain", "compiled"])
def test_a_loss_that_is_not_finite_changes_no_weight(small_params: MakeParams, digits: Dataset, compiled: bool) -> None:
    run = make_run(small_params(**{**ON_CUDA, "train.compile": compiled}), digits)
    before: dict[str, torch.Tensor] = {}

    def on_step() -> None:
        if run.state.step == 2:
            with torch.no_grad():
                run.classifier.std.fill_(float("nan"))
            before.update({name: weight.detach().clone() for name, weight in run.classifier.named_parameters()})

    with pytest.raises(UserError, match=r"training loss is nan at step 2 \(epoch 1"):
        outcome(run, on_step)
    assert_equal(before, dict(run.classifier.named_parameters()))
