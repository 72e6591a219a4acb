"""The range test on real digits, and the suggestion on curves whose answer is known."""

from __future__ import annotations

import copy
import json
import math
import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict
from io import StringIO
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import torch_lr_finder
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F

from onecycle.lr_range import Curve, range_test, suggest
from onecycle.params import LRRangeParams, load

SHIPPED = load(Path(__file__).parents[1] / "params.yaml").lr_range
METHODS = ("minimum_over_two", "minimum_over_ten", "steepest", "valley")
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


def test_the_same_sweep_gives_the_same_bytes(real_curve: Curve) -> None:
    assert sweep().to_frame(3.0).to_csv() == real_curve.to_frame(3.0).to_csv()


# the curve


def test_a_curve_survives_its_file(real_curve: Curve) -> None:
    frame = pd.read_csv(StringIO(real_curve.to_frame(3.0).to_csv(index=False)))
    columns = ["iteration", "learning_rate", "loss", "accuracy", "smoothed_loss", "smoothed_accuracy"]
    assert list(frame.columns) == columns
    assert frame["iteration"].tolist() == list(range(len(real_curve)))
    again = Curve.from_frame(frame, classes=10)
    pd.testing.assert_frame_equal(again.to_frame(3.0), real_curve.to_frame(3.0), check_exact=True)


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


# the suggestion, where the answer is known


def drawn(
    shape: Callable[[np.ndarray], np.ndarray], noise: float = 0.0, seed: int = 0, **changes: object
) -> tuple[Curve, LRRangeParams]:
    """A curve of that loss per decimal logarithm of the rate; its accuracy tells the same tale."""
    sweep = {"start_lr": 0.00001, "end_lr": 1.0, "iterations": 100}
    params = lr_range(**(sweep | {"smoothing": 3.0, "criterion": "loss", "method": "steepest"} | changes))
    rate = np.geomspace(params.start_lr, params.end_lr, params.iterations)
    loss = shape(np.log10(rate)) + np.random.default_rng(seed).normal(0, noise, rate.size)
    return Curve(rate, loss, np.clip(1 - 0.9 * loss / BLIND, 0, 1), classes=10), params


def step_down(at: float, decades: float = 1.0) -> Callable[[np.ndarray], np.ndarray]:
    """From 1 to 0, steepest at 10**at."""
    return lambda x: 1 / (1 + np.exp(4 * (x - at) / decades))


def healthy(x: np.ndarray) -> np.ndarray:
    """Learns best at 0.001, blows up above 0.1."""
    return 1.4 + step_down(-3)(x) + np.where(x > -1, 40 * (x + 1) ** 2, 0)


@pytest.mark.parametrize("criterion", ["loss", "accuracy"])
def test_steepest_is_where_the_curve_is_steepest(criterion: str) -> None:
    curve, params = drawn(healthy, criterion=criterion)
    suggestion = suggest(curve, params, div_factor=10)
    assert suggestion.accepted
    assert suggestion.max_lr == pytest.approx(1e-3, rel=0.13)  # one step of the sweep is 12 %
    assert suggestion.max_lr in curve.learning_rate
    assert suggestion.min_lr == pytest.approx(suggestion.max_lr / 10)
    assert (suggestion.criterion, suggestion.reason, suggestion.advice) == (criterion, None, None)


@pytest.mark.parametrize(("method", "rate"), [("minimum_over_two", 5e-3), ("minimum_over_ten", 1e-3)])
def test_the_minimum_s_methods_take_a_share_of_the_best_rate(method: str, rate: float) -> None:
    curve, params = drawn(lambda x: 1.5 + 0.2 * (x + 2) ** 2, method=method)
    assert suggest(curve, params, 10).max_lr == pytest.approx(rate, rel=0.13)


def test_valley_is_the_middle_of_the_longest_descent() -> None:
    def straight_descent(x: np.ndarray) -> np.ndarray:
        return np.interp(x, [-5, -4, -2, 0], [2.2, 2.2, 1.0, 2.2])

    curve, params = drawn(straight_descent, method="valley", smoothing=0)
    assert suggest(curve, params, 10).max_lr == pytest.approx(1e-3, rel=0.3)  # fastai rounds down, three times


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize(
    ("method", "low", "high"),
    [
        ("steepest", 4e-4, 2.5e-3),
        ("valley", 3e-4, 4e-3),
        ("minimum_over_two", 5e-3, 5e-2),
        ("minimum_over_ten", 1e-3, 1e-2),
    ],
)
def test_noise_moves_the_answer_little(method: str, low: float, high: float, seed: int) -> None:
    max_lr = suggest(*drawn(healthy, noise=0.05, seed=seed, method=method), 10).max_lr
    assert max_lr is not None
    assert low < max_lr < high


def test_unlearning_a_random_start_is_not_taken_for_learning() -> None:
    curve, params = drawn(lambda x: 1.2 + 1.1 * step_down(-2)(x) + 3 * step_down(-4)(x))
    assert suggest(curve, params, 10).max_lr == pytest.approx(1e-2, rel=0.13)


def test_the_way_down_from_a_spike_is_not_taken_for_learning() -> None:
    def spike(x: np.ndarray) -> np.ndarray:
        return healthy(np.minimum(x, -1)) + np.interp(x, [-1.5, -1, -0.5], [0, 50, 0.3])

    curve, params = drawn(spike)
    assert suggest(curve, params, 10).max_lr == pytest.approx(1e-3, rel=0.13)


def test_making_up_for_a_small_rise_is_not_taken_for_learning() -> None:
    def stumble(x: np.ndarray) -> np.ndarray:
        return np.interp(x, [-5, -4, -2.5, -2.2, -1.9, -1, 0], [2.2, 2.2, 1.4, 1.75, 1.5, 1.5, 2.2])

    max_lr = suggest(*drawn(stumble, smoothing=2.0), 10).max_lr
    assert max_lr is not None
    assert 1e-4 < max_lr < 10**-2.5


def test_a_small_drop_at_the_start_does_not_outweigh_the_descent() -> None:
    curve, params = drawn(lambda x: 1.0 + step_down(-2)(x) + 0.2 * step_down(-4.7, decades=0.1)(x), smoothing=0.5)
    assert suggest(curve, params, 10).max_lr == pytest.approx(1e-2, rel=0.13)


def test_a_descent_may_end_in_a_sharp_turn() -> None:
    def sharp(x: np.ndarray) -> np.ndarray:
        return np.where(x < -2, 2.2 - np.clip((x + 4) / 2, 0, 1) ** 1.5, 1.3 + 4 * (x + 2))

    max_lr = suggest(*drawn(sharp, smoothing=0), 10).max_lr
    assert max_lr is not None
    assert 2e-3 < max_lr < 1e-2


def test_what_follows_a_breakdown_is_not_read() -> None:
    def wreck(x: np.ndarray) -> np.ndarray:
        return np.interp(x, [-5, -4, -3, -2.5, -2, -1, -0.5, 0], [2.2, 2.2, 1.7, 1.6, 2.2, 2.2, 0.5, 2.2])

    max_lr = suggest(*drawn(wreck), 10).max_lr
    assert max_lr is not None
    assert 1e-4 < max_lr < 1e-2


# the suggestion, where there is none


def falls_to(level: float) -> Callable[[np.ndarray], np.ndarray]:
    """A straight line from 2.3 at 0.00001 to `level` at 1."""
    return lambda x: np.interp(x, [-5, 0], [2.3, level])


REFUSED = {
    "flat": (lambda x: 2.2 + 0 * x, {}, "too flat", "Raise lr_range.end_lr, for example to 10."),
    "too small a fall": (lambda x: 2.25 + 0.05 * step_down(-3)(x), {}, "too flat", "Raise lr_range.end_lr"),
    "straight": (falls_to(1.3), {}, "falls from the first steps|has not turned", "Lower lr_range.start_lr|Raise"),
    "falls at once": (
        lambda x: 1.4 + 0.9 * np.exp(-3 * (x + 5)),
        {},
        "first steps",
        "start_lr, for example to 0.000001.",
    ),
    "steepest near the start": (lambda x: 1.4 + step_down(-4.8)(x), {}, "first steps", "Lower lr_range.start_lr"),
    "steepest at the end": (lambda x: 1.0 + 1.3 * step_down(0.2)(x), {}, "has not turned", "Raise lr_range.end_lr"),
    "ever steeper": (lambda x: 2.3 - ((x + 5) / 5) ** 3, {}, "has not turned", "Raise lr_range.end_lr"),
    "blown up": (lambda x: 2.4 + 30 * (x + 5), {}, "blew up", "Lower lr_range.start_lr, for example to 0.0000001"),
    "too short": (healthy, {"iterations": 20, "smoothing": 6.0}, "20 steps are too few", "Raise lr_range.iterations"),
}


@pytest.mark.parametrize("noise", [0.0, 0.05])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("case", REFUSED)
def test_no_edge_is_taken_for_an_answer(case: str, method: str, noise: float) -> None:
    shape, changes, reason, advice = REFUSED[case]
    for seed in range(4 if noise else 1):
        suggestion = suggest(*drawn(shape, noise, seed, method=method, **changes), 10)
        assert not suggestion.accepted
        assert suggestion.max_lr is None and suggestion.min_lr is None
        assert re.search(reason, suggestion.reason or "")
        assert re.search(advice, suggestion.advice or "")


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("unlearning", "noise"), [(0.0, 0.3), (3.0, 0.2)])
def test_scatter_is_not_taken_for_a_fall(unlearning: float, noise: float, method: str) -> None:
    def level(x: np.ndarray) -> np.ndarray:
        return 2.3 + np.where(x < -2, unlearning, 0)

    curves = [drawn(level, noise=noise, seed=seed, method=method) for seed in range(20)]
    assert sum(suggest(curve, params, 10).accepted for curve, params in curves) <= 1


@pytest.mark.parametrize("method", METHODS)
def test_scatter_is_not_taken_for_a_bend(method: str) -> None:
    curves = [drawn(falls_to(1.3), noise=0.15, seed=seed, method=method) for seed in range(20)]
    assert sum(suggest(curve, params, 10).accepted for curve, params in curves) <= 2


def test_a_suggestion_is_the_file_it_becomes() -> None:
    accepted, refused = (suggest(*drawn(shape), 10) for shape in (healthy, falls_to(2.3)))
    keys = ["accepted", "max_lr", "min_lr", "method", "criterion", "reason", "advice"]
    for suggestion in (accepted, refused):
        assert list(json.loads(json.dumps(asdict(suggestion), allow_nan=False))) == keys


def test_a_tenth_below_the_range_is_no_answer() -> None:
    curve, params = drawn(lambda x: np.interp(x, [-5, -4.4, -4, -3], [2.2, 2.2, 1.5, 2.2]), method="minimum_over_ten")
    suggestion = suggest(curve, params, 10)
    assert "low edge" in (suggestion.reason or "")
    assert "Lower lr_range.start_lr" in (suggestion.advice or "")


@given(
    seed=st.integers(0, 10**6),
    steps=st.integers(0, 60),
    iterations=st.sampled_from([20, 60]),
    smoothing=st.sampled_from([0.0, 0.5, 2.0, 10.0]),
    method=st.sampled_from(METHODS),
    criterion=st.sampled_from(["loss", "accuracy"]),
)
@settings(max_examples=500, deadline=None, derandomize=True)
def test_a_random_walk_gets_a_rate_inside_its_range_or_a_reason(
    seed: int, steps: int, iterations: int, smoothing: float, method: str, criterion: str
) -> None:
    random = np.random.default_rng(seed)
    loss = np.abs(2.5 + np.cumsum(random.standard_t(2, min(steps, iterations))) * random.choice([0.01, 0.1, 1]))
    rate = np.geomspace(SHIPPED.start_lr, SHIPPED.end_lr, iterations)[: loss.size]
    params = lr_range(iterations=iterations, smoothing=smoothing, method=method, criterion=criterion)
    suggestion = suggest(Curve(rate, loss, np.exp(-loss), classes=10), params, 10)
    if suggestion.max_lr is None:
        assert suggestion.reason and suggestion.advice
    else:
        assert rate[0] < suggestion.max_lr < rate[-1]


def cut_short(curve: Curve, at: int) -> Curve:
    return Curve(curve.learning_rate[:at], curve.loss[:at], curve.accuracy[:at], curve.classes)


@pytest.mark.parametrize(
    ("steps", "reason"), [(0, "before the first step"), (8, "after 8 steps"), (22, "before the loss fell")]
)
@pytest.mark.parametrize("method", METHODS)
def test_a_blow_up_before_anything_was_learned_is_refused(method: str, steps: int, reason: str) -> None:
    curve, params = drawn(healthy, method=method)
    suggestion = suggest(cut_short(curve, steps), params, 10)
    assert reason in (suggestion.reason or "")


def test_a_blow_up_in_mid_descent_leaves_only_the_careful_methods() -> None:
    curve, params = drawn(lambda x: 2.3 - ((x + 5) / 5) ** 3)
    curve = cut_short(curve, 90)
    refused = suggest(curve, params, 10)
    assert "fell until training blew up, at a rate of 0.313" in (refused.reason or "")
    assert "minimum_over_ten" in (refused.advice or "")
    careful = suggest(curve, params.model_copy(update={"method": "minimum_over_ten"}), 10)
    assert careful.max_lr == pytest.approx(curve.learning_rate[-1] / 10, rel=0.13)


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
@pytest.mark.parametrize("method", METHODS)
def test_real_digits_get_none_from_a_bad_range(start_lr: float, end_lr: float, advice: str, method: str) -> None:
    bad = {"start_lr": start_lr, "end_lr": end_lr, "method": method}
    suggestion = suggest(sweep(**bad), lr_range(**bad), 10)
    assert not suggestion.accepted
    assert advice in (suggestion.advice or "")
