"""One Cycle: the peak where it is said to be, the ends as they are said to be, and torch's own schedule as witness."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import PARAMS_FILE
from torch.optim.lr_scheduler import OneCycleLR

from onecycle.errors import UserError
from onecycle.history import schedule_frame, summary
from onecycle.params import OneCycleParams, load
from onecycle.schedule import one_cycle, peak_rate, read_suggestion
from onecycle.training import Epoch


def cycle(**changes: Any) -> OneCycleParams:
    return OneCycleParams.model_validate(load(PARAMS_FILE).one_cycle.model_dump() | changes)


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


def test_a_run_that_ended_early_tells_of_the_steps_it_took_and_of_the_peak_it_was_given() -> None:
    whole = one_cycle(cycle(max_at_epoch=2), 0.01, epochs=4, steps_per_epoch=10)
    frame = schedule_frame(whole, steps_per_epoch=10, epochs=1)
    assert frame["learning_rate"].tolist() == whole.learning_rate[:10].tolist()
    assert whole.momentum is not None and frame["momentum"].tolist() == whole.momentum[:10].tolist()
    assert frame["epoch"].iloc[-1] == 1
    last = Epoch(1, float(whole.learning_rate[9]), None, 1.0, 0.5, 1.0, 0.5)
    metrics = summary([last], "validation", 1, whole, parameters=1)
    assert (metrics["max_lr"], metrics["last_lr"]) == (0.01, last.learning_rate)
    unmoved = one_cycle(cycle(cycle_momentum=False), 0.01, 4, 10)
    assert schedule_frame(unmoved, 10, 4)["momentum"].isna().all()


@pytest.mark.parametrize(
    "content", [None, "<<<<<<< HEAD", '{"accepted": true', "[]", '{"accepted": true, "max_lr": null}', "{}"]
)
def test_what_is_no_suggestion_is_refused(tmp_path: Path, content: str | None) -> None:
    file = tmp_path / "suggestion.json"
    if content is not None:
        file.write_text(content, encoding="utf-8")
    with pytest.raises(UserError, match=r"suggestion.json holds no suggestion \(.*\); run `dvc repro lr_range`"):
        read_suggestion(file)


def test_peak_rate() -> None:
    refused = {"accepted": False, "max_lr": None, "reason": "The curve is flat.", "advice": "Raise lr_range.end_lr."}
    assert peak_rate("auto", {"accepted": True, "max_lr": 0.02}) == 0.02
    assert peak_rate(0.5, refused) == 0.5
    with pytest.raises(UserError, match=r"The curve is flat\. Raise lr_range\.end_lr\. Or set one_cycle\.max_lr"):
        peak_rate("auto", refused)
