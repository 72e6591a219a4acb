"""One Cycle (Smith & Topin 2017, arXiv:1708.07120): rate and momentum of every optimiser step, as arrays.

The rate climbs from max_lr / div_factor to max_lr, reached exactly at the last step of epoch `max_at_epoch`, and comes
down to first rate / final_div_factor, reached exactly at the last step of training. With final_div_factor 1 the last
rate is the first: no annihilation. Momentum mirrors the rate. It equals torch's
`OneCycleLR(pct_start=max_at_epoch/epochs)`, which a test proves; as arrays it can be written, drawn and entered at any
step.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onecycle.errors import UserError
from onecycle.params import OneCycleParams


@dataclass(frozen=True)
class Schedule:
    """Per optimiser step, (steps,) float64 each; momentum is None where the optimiser's own stays."""

    learning_rate: NDArray[np.float64]
    momentum: NDArray[np.float64] | None


def read_suggestion(path: Path) -> Mapping[str, Any]:
    """What the range test suggests, for `peak_rate`. Raises `UserError` where the file holds none."""
    try:
        suggestion: Mapping[str, Any] = json.loads(path.read_bytes())
        wanted = ("max_lr",) if suggestion["accepted"] else ("reason", "advice")
        if any(suggestion[key] is None for key in wanted):
            raise ValueError(f"lacks {' or '.join(wanted)}")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} holds no suggestion ({error}); run `dvc repro lr_range`") from None
    return suggestion


def peak_rate(max_lr: float | str, suggestion: Mapping[str, Any]) -> float:
    """`one_cycle.max_lr` if it is a number, else what the range test suggests (suggestion.json).

    Raises:
        UserError: max_lr is auto and the range test refused to suggest a rate.
    """
    if not isinstance(max_lr, str):
        return max_lr
    if not suggestion["accepted"]:
        raise UserError(
            f"one_cycle.max_lr is auto, but the range test suggests no rate: {suggestion['reason']} "
            f"{suggestion['advice']} Or set one_cycle.max_lr to a number"
        )
    return float(suggestion["max_lr"])


def one_cycle(cycle: OneCycleParams, max_lr: float, epochs: int, steps_per_epoch: int) -> Schedule:
    """The schedule for `epochs` × `steps_per_epoch` steps with its peak at `max_lr`."""
    steps = epochs * steps_per_epoch
    peak = min(max(round(cycle.max_at_epoch * steps_per_epoch) - 1, 1), steps - 1)  # step 0 is the first rate's
    first, last = max_lr / cycle.div_factor, max_lr / cycle.div_factor / cycle.final_div_factor
    rates = _up_and_down(first, max_lr, last, peak, steps, cycle.anneal)
    if not cycle.cycle_momentum:
        return Schedule(rates, None)
    high, low = cycle.max_momentum, cycle.base_momentum
    return Schedule(rates, _up_and_down(high, low, high, peak, steps, cycle.anneal))


def _up_and_down(first: float, turn: float, last: float, peak: int, steps: int, anneal: str) -> NDArray[np.float64]:
    """(steps,) values: `first` at step 0, `turn` at step `peak`, `last` at the last step."""
    step = np.arange(steps, dtype=np.float64)
    rising = step <= peak
    done = np.where(rising, step / max(peak, 1), (step - peak) / max(steps - 1 - peak, 1))
    if anneal == "cosine":
        done = (1 - np.cos(np.pi * done)) / 2
    start, end = np.where(rising, first, turn), np.where(rising, turn, last)
    return np.asarray(start * (1 - done) + end * done)  # exact at both ends
