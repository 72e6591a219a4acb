"""How good the run is, in words a reader can rely on: an accuracy stands against others with its interval."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from onecycle.params import Params
from onecycle.report.words import listed, percent

TARGET = 0.90
OUTSTANDING = 0.938
"""What the exercise asks of CIFAR-10's test set, and what it calls outstanding."""

STUDENT_PROJECTS = {
    "S0": (0.9308, "custom ResNet, Adam, batch 512"),
    "S1": (0.9305, "custom ResNet, Adam, batch 256"),
    "S2": (0.8923, "custom ResNet, SGD, batch 512"),
    "S3": (0.9305, "custom ResNet, Adam, batch 512"),
    "S4": (0.8776, "ResNet-18, Adam or SGD, batch 512"),
}
"""Test accuracy after 24 epochs of five public student projects that solve the same exercise, one run each."""


@dataclass(frozen=True)
class Row:
    """A line of the comparison: its accuracy's place on the axis, and its interval's for this run."""

    name: str
    note: str
    accuracy: float
    at: float
    interval: tuple[float, float] | None = None


@dataclass(frozen=True)
class Verdict:
    """`sentences` below the accuracy; `rows` and `targets` (name → place) are empty where nothing compares."""

    sentences: list[str]
    rows: list[Row]
    targets: dict[str, float]


def verdict(params: Params, metrics: Mapping[str, Any]) -> Verdict:
    """Hold the test accuracy and its 95 % interval against the targets and the five projects.

    Only the whole CIFAR-10 test set compares; other data gets a sentence that says so.
    """
    if params.data.dataset != "cifar10":
        return Verdict(
            ["This is not CIFAR-10: it shows the pipeline at work, and compares with none of its figures."], [], {}
        )
    if params.data.limit is not None:
        return Verdict([f"A trial: {metrics['n']:,} of CIFAR-10’s test images compare with no full run."], [], {})
    accuracy, low, high = (float(metrics[key]) for key in ("accuracy", "accuracy_low", "accuracy_high"))
    projects = sorted(STUDENT_PROJECTS.items(), key=lambda item: -item[1][0])
    left = math.floor(100 * min(low, TARGET, projects[-1][1][0]) - 0.5) / 100
    right = min(1.0, math.ceil(100 * max(high, OUTSTANDING, projects[0][1][0]) + 0.5) / 100)

    def at(value: float) -> float:
        return round((value - left) / (right - left), 5)

    rows = [Row(name, note, value, at(value)) for name, (value, note) in projects]
    rows.append(Row("This run", "", accuracy, at(accuracy), (at(low), at(high))))
    return Verdict(
        [_against_targets(low, high), _against_projects(low, high)],
        sorted(rows, key=lambda row: -row.accuracy),
        {percent(TARGET, 0): at(TARGET), percent(OUTSTANDING, 1): at(OUTSTANDING)},
    )


def _against_targets(low: float, high: float) -> str:
    def stands(target: float) -> str:
        return "above" if low > target else "below" if high < target else "on both sides of"

    return (
        f"The interval lies {stands(TARGET)} the exercise’s target of {percent(TARGET, 0)} and "
        f"{stands(OUTSTANDING)} the {percent(OUTSTANDING)} it calls outstanding."
    )


def _against_projects(low: float, high: float) -> str:
    groups = {
        "below the interval": [name for name, (value, _) in STUDENT_PROJECTS.items() if value < low],
        "within it": [name for name, (value, _) in STUDENT_PROJECTS.items() if low <= value <= high],
        "above it": [name for name, (value, _) in STUDENT_PROJECTS.items() if value > high],
    }
    parts = [f"{listed(names)} {where}" for where, names in groups.items() if names]
    return f"Five public student projects solved the same exercise: {', '.join(parts)}."
