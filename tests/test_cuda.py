"""What only a CUDA device can show; left out where there is none."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from test_training import assert_equal, assert_it_repeats_and_resumes_to_the_bit, make_run, outcome

from onecycle.augment import Batched
from onecycle.data import Dataset
from onecycle.errors import UserError
from onecycle.loader import Loader
from onecycle.params import Params

MakeParams = Callable[..., Params]

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
    pytest.mark.filterwarnings(  # the compiler's own, of some versions of torch
        "ignore:`torch.jit.script_method` is:DeprecationWarning",
        "ignore:TensorFloat32 tensor cores:UserWarning",
        "ignore:The CUDA Graph is empty:UserWarning",
    ),
]

ON_CUDA = {"train.device": "cuda", "train.compile": False, "model.width": 16}
LAUNCHES = pytest.mark.parametrize("compiled", [False, "auto", True], ids=["plain", "graphs", "compiled"])


def test_augmented_on_the_device_pixels_are_the_same(small_params: MakeParams, digits: Dataset) -> None:
    mean, index = np.full(3, 0.5), torch.arange(200)
    for changes in ({}, {"augment.border": "reflect", "augment.cutout_overhang": True, "augment.cutout_holes": 2}):
        augment = small_params(**changes).augment
        images = torch.from_numpy(digits.train_images[:200])
        here = Batched(images, augment, mean, 3)(index, 1)
        there = Batched(images.cuda(), augment, mean, 3)(index.cuda(), 1)
        assert torch.equal(here, there.cpu())


def test_batches_of_loader_processes_arrive_as_on_the_cpu(small_params: MakeParams, digits: Dataset) -> None:
    augment = small_params(**{"augment.backend": "albumentations"}).augment
    here, there = (
        Loader(
            digits.train_images,
            digits.train_labels,
            augment,
            np.full(3, 0.5),
            batch_size=64,
            seed=1,
            device=torch.device(kind),
            workers=workers,
        )
        for kind, workers in (("cpu", 0), ("cuda", 2))
    )
    for one, other in zip(here.epoch(1), there.epoch(1), strict=True):
        assert all(tensor.is_cuda for tensor in other)
        assert all(map(torch.equal, one, (tensor.cpu() for tensor in other)))


@pytest.mark.parametrize("precision", ["bf16", "fp16", "fp32"])
@pytest.mark.parametrize(("optimizer", "rate"), [("adam", 0.01), ("sgd", 0.02)])
def test_it_learns(small_params: MakeParams, digits: Dataset, precision: str, optimizer: str, rate: float) -> None:
    changes = {"train.precision": precision, "optimizer.name": optimizer, "epochs": 8, "one_cycle.max_lr": rate}
    history, weights = outcome(make_run(small_params(**ON_CUDA, **changes), digits))
    assert history[-1].train_loss < history[0].train_loss / 2
    assert history[-1].held_out_accuracy > 0.6  # of 32 images, and no two runs are alike
    assert all(weight.is_cuda for weight in weights.values())


@LAUNCHES
def test_it_trains_like_the_cpu(small_params: MakeParams, digits: Dataset, compiled: object) -> None:
    common = {"augment.backend": "batched", "train.precision": "fp32", "model.width": 16, "epochs": 2}
    common |= {"one_cycle.max_lr": 0.001, "train.convolution": "direct"}  # a rate at which rounding does not grow
    here, _ = outcome(make_run(small_params(**common), digits))
    there, _ = outcome(make_run(small_params(**{**ON_CUDA, **common, "train.compile": compiled}), digits))
    for one, other in zip(here, there, strict=True):
        assert one.train_loss == pytest.approx(other.train_loss, abs=0.05)


@pytest.fixture
def deterministic() -> Iterator[dict[str, object]]:
    yield {**ON_CUDA, "train.deterministic": True}
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("changes", [{}, {"train.compile": "auto", "model.dropout": 0.1}], ids=["plain", "graphs"])
def test_deterministic_it_repeats_and_resumes_to_the_bit(
    small_params: MakeParams, digits: Dataset, deterministic: dict[str, object], changes: dict[str, object]
) -> None:
    assert_it_repeats_and_resumes_to_the_bit(small_params(**{**deterministic, **changes}), digits)


def test_in_graphs_it_is_the_same_to_the_bit(
    small_params: MakeParams, digits: Dataset, deterministic: dict[str, object]
) -> None:
    changes = {"optimizer.l1": 0.0001, "train.label_smoothing": 0.1}
    plain, weights = outcome(make_run(small_params(**{**deterministic, **changes}), digits))
    run = make_run(small_params(**{**deterministic, **changes, "train.compile": "auto"}), digits)
    assert run.objective.forward.__qualname__.startswith("make_graphed_callables")
    graphs, same_weights = outcome(run)
    assert graphs == plain
    assert_equal(same_weights, weights)


@LAUNCHES
def test_a_loss_that_is_not_finite_changes_no_weight(
    small_params: MakeParams, digits: Dataset, compiled: object
) -> None:
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
