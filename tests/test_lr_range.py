"""The range test on real digits, and the suggestion on curves whose answer is known."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from contextlib import suppress
from io import StringIO
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import torch_lr_finder
from conftest import command, set_params
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F

from onecycle import paths
from onecycle.lr_range import Curve, mean_curve, range_test
from onecycle.params import LRRangeParams, load
from onecycle.suggestion import suggest

SHIPPED = load(Path(__file__).parents[1] / "params.yaml").lr_range
METHODS = ("middle", "minimum_over_two", "minimum_over_ten", "steepest", "valley")
BLIND = math.log(10)
CPU = torch.device("cpu")


def lr_range(**changes: object) -> LRRangeParams:
    return LRRangeParams.model_validate(SHIPPED.model_dump() | changes)


class Digits(nn.Module):
    """uint8 (N, 8, 8) → (N, 10) logits, with batch norm."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            *(nn.Conv2d(1, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(16, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32), nn.ReLU()),
            *(nn.Flatten(), nn.Linear(512, 10)),
        )

    def forward(self, images: Tensor) -> Tensor:
        return self.layers(images[:, None].float() / 16)


def digits(batch_size: int = 128, seed: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
    """Endless shuffled batches."""
    source = load_digits()
    images, labels = torch.from_numpy(source.images).to(torch.uint8), torch.from_numpy(source.target)
    generator = torch.Generator().manual_seed(seed)
    while True:
        for rows in torch.randperm(len(labels), generator=generator).split(batch_size)[:-1]:
            yield images[rows], labels[rows]


def fresh(kind: str = "adam", seed: int = 0) -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(seed)
    network = Digits()
    groups: list[dict[str, Any]] = [
        {"params": [p for p in network.parameters() if p.ndim > 1], "lr": 0.3},
        {"params": [p for p in network.parameters() if p.ndim == 1], "lr": 0.1},
    ]
    return network, torch.optim.Adam(groups) if kind == "adam" else torch.optim.SGD(groups, momentum=0.9)


def sweep(kind: str = "adam", seed: int = 0, batch_size: int = 128, **changes: object) -> Curve:
    network, optimizer = fresh(kind, seed)
    return range_test(network, optimizer, F.cross_entropy, digits(batch_size, seed), lr_range(**changes), CPU)


@pytest.fixture(scope="module")
def real_curve() -> Curve:
    return sweep()


# the sweep


def test_the_curve_is_that_of_a_sweep_written_out_by_hand() -> None:
    curve = sweep(iterations=20, end_lr=0.01)

    network, optimizer = fresh()
    expected = []
    for rate, (images, labels) in zip(np.geomspace(SHIPPED.start_lr, 0.01, 20), digits(), strict=False):
        for group in optimizer.param_groups:
            group["lr"] = rate
        logits = network(images)
        loss = F.cross_entropy(logits, labels)
        expected.append((rate, loss.item(), (logits.argmax(1) == labels).double().mean().item()))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    rates, losses, accuracies = np.array(expected).T
    np.testing.assert_allclose(curve.learning_rate, rates, rtol=1e-12)
    np.testing.assert_allclose(curve.loss, losses, rtol=1e-4)
    np.testing.assert_allclose(curve.accuracy, accuracies, atol=0.01)
    assert curve.classes == 10


def test_recorded_rates_are_those_of_the_steps_taken() -> None:
    network, optimizer = fresh()
    applied: list[list[float]] = []
    optimizer.register_step_pre_hook(lambda taken, *_: applied.append([g["lr"] for g in taken.param_groups]))
    curve = range_test(network, optimizer, F.cross_entropy, digits(), lr_range(iterations=25), CPU)
    assert applied == [[rate, rate] for rate in curve.learning_rate.tolist()]


def from_step(step: int, change: Callable[[Tensor], Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
    """Cross entropy, changed from `step` on."""
    steps = iter(range(10**6))

    def loss(logits: Tensor, labels: Tensor) -> Tensor:
        value = F.cross_entropy(logits, labels)
        return change(value) if next(steps) >= step else value

    return loss


def interrupted(_: Tensor) -> Tensor:
    raise KeyboardInterrupt


@pytest.mark.parametrize("kind", ["adam", "sgd"])
@pytest.mark.parametrize("ending", ["complete", "diverged", "nan", "inf", "interrupted"])
def test_everything_is_as_it_was_however_the_sweep_ends(ending: str, kind: str) -> None:
    changes = {"start_lr": 1.0, "end_lr": 1e9} if ending == "diverged" else {"end_lr": 0.01}
    loss = {
        "complete": F.cross_entropy,
        "diverged": F.cross_entropy,
        "nan": from_step(12, lambda value: value * math.nan),
        "inf": from_step(12, lambda value: value * math.inf),
        "interrupted": from_step(12, interrupted),
    }[ending]
    network, optimizer = fresh(kind)
    for images, labels in islice(digits(), 3):  # moments and running statistics that could be lost
        F.cross_entropy(network(images), labels).backward()
        optimizer.step()
    network.eval()
    before = copy.deepcopy((network.state_dict(), optimizer.state_dict()))
    probe, _ = next(digits(seed=9))
    answers = network(probe)

    curve = None
    with suppress(KeyboardInterrupt):
        curve = range_test(network, optimizer, loss, digits(), lr_range(iterations=30, **changes), CPU)

    if curve is None:
        assert ending == "interrupted"
    elif ending == "diverged":
        assert 0 < len(curve) < 30
    else:
        assert len(curve) == {"complete": 30, "nan": 12, "inf": 12}[ending]
    torch.testing.assert_close((network.state_dict(), optimizer.state_dict()), before, rtol=0, atol=0)
    assert torch.equal(network(probe), answers)
    assert not network.training
    assert all(parameter.grad is None for parameter in network.parameters())


def test_the_sweep_ends_at_the_first_loss_five_times_the_lowest() -> None:
    curve = sweep(start_lr=0.001, end_lr=1000.0, iterations=60)
    diverged = curve.loss > 5 * np.minimum.accumulate(curve.loss)
    assert diverged.nonzero()[0].tolist() == [len(curve) - 1]


def test_too_few_batches_are_refused_and_cost_no_weights() -> None:
    network, optimizer = fresh()
    before = copy.deepcopy(network.state_dict())
    with pytest.raises(ValueError, match="got 7 batches, it takes 30"):
        range_test(network, optimizer, F.cross_entropy, islice(digits(), 7), lr_range(iterations=30), CPU)
    torch.testing.assert_close(network.state_dict(), before, rtol=0, atol=0)


def test_a_scheduled_optimiser_is_refused() -> None:
    network, optimizer = fresh()
    torch.optim.lr_scheduler.StepLR(optimizer, 1)
    with pytest.raises(ValueError, match="without a scheduler"):
        range_test(network, optimizer, F.cross_entropy, digits(), lr_range(), CPU)


def test_an_optimiser_is_free_for_a_scheduler_afterwards() -> None:
    network, optimizer = fresh()
    range_test(network, optimizer, F.cross_entropy, digits(), lr_range(iterations=20), CPU)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1)
    assert scheduler.get_last_lr() == [0.3, 0.1]


def test_without_a_terminal_nothing_is_printed(capfd: pytest.CaptureFixture[str]) -> None:
    bar = torch_lr_finder.lr_finder.tqdm
    sweep(iterations=20)
    sweep(iterations=20, start_lr=1.0, end_lr=1e9)
    assert capfd.readouterr() == ("", "")
    assert torch_lr_finder.lr_finder.tqdm is bar
    assert not hasattr(torch_lr_finder.lr_finder, "print")


def test_the_mean_ends_where_the_first_sweep_broke_down() -> None:
    rates, classes = np.geomspace(1e-3, 1.0, 8), 10
    whole = Curve(rates, np.full(8, 2.0), np.full(8, 0.5), classes)
    short = Curve(rates[:5], np.array([2.0, 2.0, 2.0, 2.0, 12.0]), np.full(5, 0.1), classes)
    mean = mean_curve([whole, short, whole])
    assert len(mean) == 5 and mean.classes == classes
    np.testing.assert_allclose(mean.loss, [2, 2, 2, 2, 16 / 3])
    np.testing.assert_allclose(mean.accuracy, (0.5 + 0.1 + 0.5) / 3)


def test_the_same_sweep_gives_the_same_bytes(real_curve: Curve) -> None:
    assert sweep().to_frame(3.0).to_csv() == real_curve.to_frame(3.0).to_csv()


def test_the_stage_s_sweeps_start_from_the_same_weights_whatever_the_seed(workspace: Path) -> None:
    def curve(**changes: object) -> bytes:
        set_params(workspace, changes)
        command(workspace, "python", "-m", "stages.lr_range", ONECYCLE_TRACKING="off")
        return (workspace / paths.LR_RANGE_CURVE).read_bytes()

    kept = (workspace / paths.LR_RANGE_CURVE).read_bytes()
    assert curve(seed=5) == kept
    one = curve(**{"lr_range.sweeps": 1})
    assert one != kept
    assert curve(seed=0) == one


# the curve


def test_a_curve_survives_its_file(real_curve: Curve) -> None:
    frame = pd.read_csv(StringIO(real_curve.to_frame(3.0).to_csv(index=False)))
    columns = ["iteration", "learning_rate", "loss", "accuracy", "smoothed_loss", "smoothed_accuracy"]
    assert list(frame.columns) == columns
    assert frame["iteration"].tolist() == list(range(len(real_curve)))
    rate, loss, accuracy = (frame[name].to_numpy() for name in ("learning_rate", "loss", "accuracy"))
    again = Curve(rate, loss, accuracy, classes=10)
    pd.testing.assert_frame_equal(again.to_frame(3.0), real_curve.to_frame(3.0), check_exact=True)


def test_a_penalty_is_trained_against_and_not_recorded() -> None:
    def swept(penalty: Callable[[nn.Module], Tensor | None]) -> Curve:
        network, optimizer = fresh()
        return range_test(
            network,
            optimizer,
            F.cross_entropy,
            digits(),
            lr_range(iterations=20, end_lr=0.01),
            CPU,
            lambda: penalty(network),
        )

    plain, none = swept(lambda _: torch.tensor(0.0)), swept(lambda _: None)
    penalised = swept(lambda network: 10 * torch.stack([p.abs().sum() for p in network.parameters()]).sum())
    assert plain.loss.tolist() == none.loss.tolist()
    assert penalised.loss[0] == plain.loss[0]
    assert penalised.loss[-1] > plain.loss[-1] + 0.1


@pytest.mark.parametrize(
    ("rate", "loss", "message"),
    [
        ([0.1, 0.2], [1.0], "one length"),
        ([0.1, 0.2], [1.0, math.nan], "finite"),
        ([0.2, 0.1], [1.0, 1.0], "grow"),
        ([0.0, 0.1], [1.0, 1.0], "positive"),
    ],
)
def test_what_is_no_curve_is_refused(rate: list[float], loss: list[float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Curve(np.array(rate), np.array(loss), np.array(loss), 10)


def test_smoothing_cuts_what_is_worse_than_a_blind_guess() -> None:
    curve = Curve(np.array([0.1, 0.2, 0.3]), np.array([4.0, 1e30, 2.0]), np.array([0.05, 0.5, 0.3]), classes=10)
    np.testing.assert_allclose(curve.smoothed("loss", 0), [BLIND, BLIND, 2.0])
    np.testing.assert_allclose(curve.smoothed("accuracy", 0), [0.1, 0.5, 0.3])


def test_smoothing_gives_no_step_more_than_twice_its_weight() -> None:
    loss = np.zeros(50)
    loss[-1] = 1
    smoothed = Curve(np.geomspace(0.1, 1, 50), loss, loss, classes=10).smoothed("loss", 2.0)
    assert smoothed.sum() == pytest.approx(1)
    assert smoothed.max() <= 2 / (2.0 * math.sqrt(2 * math.pi))


# the two together


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("criterion", ["loss", "accuracy"])
def test_real_digits_get_a_rate(real_curve: Curve, criterion: str, method: str) -> None:
    suggestion = suggest(real_curve, lr_range(criterion=criterion, method=method), 10)
    assert suggestion.max_lr is not None, suggestion.reason
    assert 1e-4 < suggestion.max_lr < 1e-1


@pytest.mark.parametrize(
    ("start_lr", "end_lr", "advice"),
    [
        (1e-7, 1e-6, "Raise lr_range.end_lr"),
        (0.01, 0.011, "Lower lr_range.start_lr"),
        (0.01, 1.0, "Lower lr_range.start_lr"),
        (1e6, 1e9, "Lower lr_range.start_lr"),
    ],
)
def test_real_digits_get_none_from_a_bad_range(start_lr: float, end_lr: float, advice: str) -> None:
    bad = {"start_lr": start_lr, "end_lr": end_lr}
    curve = sweep(**bad)
    for method in METHODS:
        suggestion = suggest(curve, lr_range(**bad, method=method), 10)
        assert not suggestion.accepted, method
        assert advice in (suggestion.advice or ""), method
