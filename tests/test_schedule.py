"""One Cycle: the peak where it is said to be, the ends as they are said to be, and torch's own schedule as witness."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.optim.lr_scheduler import OneCycleLR

from onecycle.errors import UserError
from onecycle.params import OneCycleParams, load
from onecycle.schedule import one_cycle, peak_rate


def cycle(**changes: Any) -> OneCycleParams:
    return OneCycleParams.model_validate(load(Path("params.yaml")).one_cycle.model_dump() | changes)


def test_the_exercise_s_cycle() -> None:
    """24 epochs, peak at the end of epoch 5, the last rate is the first: no annihilation."""
    schedule = one_cycle(cycle(), 0.01, epochs=24, steps_per_epoch=97)
    rates = schedule.learning_rate
    assert len(rates) == 24 * 97
    assert rates.argmax() == 5 * 97 - 1
    assert rates.max() == 0.01
    assert rates[0] == rates[-1] == pytest.approx(0.0001, rel=1e-15)
    assert (np.diff(rates[: 5 * 97]) > 0).all()
    assert (np.diff(rates[5 * 97 - 1 :]) < 0).all()
    assert schedule.momentum is not None
    assert schedule.momentum.argmin() == 5 * 97 - 1
    assert (schedule.momentum[0], schedule.momentum.min(), schedule.momentum[-1]) == (0.95, 0.85, 0.95)


@pytest.mark.parametrize("anneal", ["linear", "cosine"])
@pytest.mark.parametrize("final_div_factor", [1, 10_000])
@pytest.mark.parametrize("max_at_epoch", [5, 0.5, 23.5])
def test_equals_torch(anneal: str, final_div_factor: float, max_at_epoch: float) -> None:
    epochs, steps = 24, 20
    wanted = cycle(anneal=anneal, final_div_factor=final_div_factor, max_at_epoch=max_at_epoch)
    ours = one_cycle(wanted, 0.01, epochs, steps)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0, momentum=0.9)
    theirs = OneCycleLR(
        optimizer,
        max_lr=0.01,
        total_steps=epochs * steps,
        pct_start=max_at_epoch / epochs,
        anneal_strategy="cos" if anneal == "cosine" else "linear",
        div_factor=wanted.div_factor,
        final_div_factor=final_div_factor,
    )
    rates, momenta = [], []
    for step in range(epochs * steps):
        rates.append(optimizer.param_groups[0]["lr"])
        momenta.append(optimizer.param_groups[0]["momentum"])
        optimizer.step()
        if step < epochs * steps - 1:
            theirs.step()
    np.testing.assert_allclose(ours.learning_rate, rates, rtol=0, atol=1e-15)
    np.testing.assert_allclose(ours.momentum, momenta, rtol=0, atol=1e-15)


def test_annihilation_is_a_choice() -> None:
    rates = one_cycle(cycle(div_factor=25, final_div_factor=100), 0.5, 10, 10).learning_rate
    assert rates[0] == pytest.approx(0.02)
    assert rates[-1] == pytest.approx(0.0002)


def test_momentum_may_stay() -> None:
    assert one_cycle(cycle(cycle_momentum=False), 0.01, 4, 10).momentum is None


@pytest.mark.parametrize(("epochs", "steps"), [(1, 1), (1, 2), (2, 1), (1, 3)])
def test_very_short_runs_have_a_schedule(epochs: int, steps: int) -> None:
    rates = one_cycle(cycle(max_at_epoch=0.1), 0.01, epochs, steps).learning_rate
    assert len(rates) == epochs * steps
    assert np.isfinite(rates).all()
    assert (rates > 0).all()
    assert (rates <= 0.01).all()


def test_the_steps_that_were_taken() -> None:
    whole = one_cycle(cycle(), 0.01, 4, 10)
    taken = whole.first(15)
    assert taken.momentum is not None and whole.momentum is not None
    assert (taken.learning_rate.tolist(), taken.momentum.tolist()) == (
        whole.learning_rate[:15].tolist(),
        whole.momentum[:15].tolist(),
    )
    assert one_cycle(cycle(cycle_momentum=False), 0.01, 4, 10).first(3).momentum is None


def test_peak_rate() -> None:
    refused = {"accepted": False, "max_lr": None, "reason": "The curve is flat.", "advice": "Raise lr_range.end_lr."}
    assert peak_rate("auto", {"accepted": True, "max_lr": 0.02}) == 0.02
    assert peak_rate(0.5, refused) == 0.5
    with pytest.raises(UserError, match=r"The curve is flat\. Raise lr_range\.end_lr\. Or set one_cycle\.max_lr"):
        peak_rate("auto", refused)
