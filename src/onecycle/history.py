"""Training as tables: one row an epoch, one row a step, and the figures that stand for the whole run."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from onecycle.schedule import Schedule
from onecycle.training import Epoch


def history_frame(history: Sequence[Epoch], held_out: str) -> pd.DataFrame:
    """history.csv: losses, accuracies, last rate and momentum of each epoch; `held_out` is validation or test."""
    return pd.DataFrame([vars(epoch) for epoch in history]).rename(
        columns={"held_out_loss": f"{held_out}_loss", "held_out_accuracy": f"{held_out}_accuracy"}
    )


def schedule_frame(schedule: Schedule, steps_per_epoch: int, epochs: int) -> pd.DataFrame:
    """schedule.csv: rate and momentum of each step of the epochs trained, and how many are done after it."""
    step = np.arange(epochs * steps_per_epoch)
    return pd.DataFrame(
        {
            "step": step,
            "epoch": (step + 1) / steps_per_epoch,
            "learning_rate": schedule.learning_rate[step],
            "momentum": np.nan if schedule.momentum is None else schedule.momentum[step],
        }
    )


def summary(
    history: Sequence[Epoch], held_out: str, kept_epoch: int, schedule: Schedule, parameters: int
) -> dict[str, float]:
    """metrics.json of the train stage: the kept epoch's figures, the rate's ends and peak, the network's size."""
    kept = history[kept_epoch - 1]
    return {
        "epochs": len(history),
        "kept_epoch": kept_epoch,
        "train_loss": kept.train_loss,
        "train_accuracy": kept.train_accuracy,
        f"{held_out}_loss": kept.held_out_loss,
        f"{held_out}_accuracy": kept.held_out_accuracy,
        "max_lr": float(schedule.learning_rate.max()),
        "min_lr": float(schedule.learning_rate[0]),
        "last_lr": history[-1].learning_rate,
        "parameters": parameters,
    }
