"""The charts of everything that runs along an axis: range test, schedule, training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from onecycle.figures import loss_limits
from onecycle.report.charts import Axis, Chart, Line, Mark, Words, around, line_chart
from onecycle.report.words import percent, points, rate


def range_test(curve: pd.DataFrame, suggestion: Mapping[str, Any]) -> list[Chart]:
    """Loss and accuracy against the rate, raw and smoothed, with LRMAX and LRMIN marked where they were tried.

    A test that blew up at its first steps has no curve: no chart.
    """
    if len(curve) < 2:
        return []
    x = Axis("learning rate", float(curve["learning_rate"].min()), float(curve["learning_rate"].max()), rate, log=True)
    marks = []
    if suggestion["accepted"]:
        marks = [
            Mark(float(x.at(suggestion["max_lr"])), f"LRMAX {rate(suggestion['max_lr'])}"),
            Mark(float(x.at(suggestion["min_lr"])), f"LRMIN {rate(suggestion['min_lr'])}", dashed=True, row=1),
        ]
        marks = [mark for mark in marks if 0 <= mark.at <= 1]  # LRMIN may be lower than any rate tried
    alt = f"{{}} of the range test against the learning rate. {_suggested(suggestion)}"

    def chart(name: str, y: Axis, words: Words, colour: str, size: str, shown: list[Mark]) -> Chart:
        line = Line("smoothed", colour, curve[f"smoothed_{name}"], words, points=curve[name])
        return line_chart(
            alt.format(name.capitalize()),
            x,
            y,
            curve["learning_rate"],
            [line],
            marks=shown,
            size=size,
            start=suggestion["max_lr"],
        )

    low, high = loss_limits(curve)
    bare = [Mark(mark.at, "", mark.dashed) for mark in marks]
    return [
        chart("loss", Axis("training loss", low, high, "{:.3g}".format), "{:.3f}".format, "train", "tall", marks),
        chart(
            "accuracy",
            Axis("training accuracy", *around([curve["smoothed_accuracy"]], floor=0), _whole_percent),
            percent,
            "held-out",
            "short",
            bare,
        ),
    ]


def schedule(steps: pd.DataFrame) -> list[Chart]:
    """Rate and, where it cycles, momentum against the epoch."""
    x = Axis("epoch", 0, float(steps["epoch"].max()), "{:.3g}".format)
    peak = steps.iloc[int(steps["learning_rate"].to_numpy().argmax())]
    marks = []
    if peak["learning_rate"] > steps["learning_rate"].iloc[-1]:  # else training ended on the way up
        words = f"peak {rate(peak['learning_rate'])}, end of epoch {peak['epoch']:.3g}"
        marks.append(Mark(float(x.at(peak["epoch"])), words))

    def chart(name: str, column: str, colour: str, size: str, floor: float | None, shown: list[Mark]) -> Chart:
        low, high = around([steps[column]], floor=floor, margin=0.1)
        alt = (
            f"{name.capitalize()} per optimiser step: {rate(steps[column].iloc[0])} at first, "
            f"{rate(peak[column])} at the highest rate, {rate(steps[column].iloc[-1])} at last."
        )
        line = Line(name, colour, steps[column], rate)
        return line_chart(
            alt,
            x,
            Axis(name, low, high, rate),
            steps["epoch"],
            [line],
            marks=shown,
            size=size,
            reading="epoch {:.2f}".format,
        )

    charts = [chart("learning rate", "learning_rate", "train", "tall", 0.0, marks)]
    if "momentum" in steps and steps["momentum"].notna().all():
        bare = [Mark(mark.at, "") for mark in marks]
        charts.append(chart("momentum", "momentum", "held-out", "short", None, bare))
    return charts


def training(history: pd.DataFrame, held_out: str, kept_epoch: int) -> list[Chart]:
    """Accuracy and loss of the training and the held-out split per epoch, and the gap between the accuracies."""
    epochs = history["epoch"]
    x = Axis("epoch", 0, float(epochs.max()), "{:.3g}".format)
    kept = [] if kept_epoch == epochs.iloc[-1] else [Mark(float(x.at(kept_epoch)), f"kept: epoch {kept_epoch}")]

    def pair(name: str, limits: tuple[float, float], tick: Words, words: Words) -> Chart:
        train, held = history[f"train_{name}"], history[f"{held_out}_{name}"]
        lines = [Line("train", "train", train, words), Line(held_out, "held-out", held, words)]
        alt = (
            f"{name.capitalize()} per epoch. After epoch {epochs.iloc[-1]}: train {words(train.iloc[-1])}, "
            f"{held_out} {words(held.iloc[-1])}."
        )
        return line_chart(alt, x, Axis(name, *limits, tick), epochs, lines, band=True, marks=kept)

    accuracy = [history["train_accuracy"], history[f"{held_out}_accuracy"]]
    loss = [history["train_loss"], history[f"{held_out}_loss"]]
    gap = accuracy[0] - accuracy[1]
    low, high = around([gap, np.zeros(1)], margin=0.1)
    return [
        pair("accuracy", (around(accuracy)[0], min(1.0, around(accuracy)[1])), _whole_percent, _percent_of_hundred),
        pair("loss", around(loss, floor=0), "{:.2g}".format, "{:.4f}".format),
        line_chart(
            f"Train accuracy minus {held_out} accuracy per epoch: {points(gap.iloc[-1])} after the last.",
            x,
            Axis("gap, points", low, high, lambda value: f"{100 * value:.3g}".replace("-", "−")),
            epochs,
            [Line(f"train − {held_out}", "gap", gap, points)],
            size="short",
        ),
    ]


def _suggested(suggestion: Mapping[str, Any]) -> str:
    if suggestion["accepted"]:
        return f"LRMAX is {rate(suggestion['max_lr'])}, LRMIN {rate(suggestion['min_lr'])}."
    return f"No rate is suggested: {suggestion['reason']}"


def _whole_percent(share: float) -> str:
    return percent(share, 0)


def _percent_of_hundred(share: float) -> str:
    return percent(share, 2)
