"""The report's figures as pictures, for where a picture serves better than a page: the tracker."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from onecycle.evaluation import reliability
from onecycle.figures import BLUE, GREEN, INK, MUTED, VERMILION, style
from onecycle.report.galleries import Card, galleries, heat
from onecycle.report.inputs import ReportInputs
from onecycle.report.words import count, percent, rate

MOST_COUNTS = 20
"""Classes whose counts fit into the fields of a confusion matrix."""


def figures(inputs: ReportInputs) -> dict[str, Figure]:
    """Every figure by name; a gallery without images is left out."""
    drawn = {
        "curves": curves(inputs.history, inputs.held_out),
        "schedule": schedule(inputs.schedule),
        "confusion": confusion(inputs.confusion, inputs.classes),
        "per_class": per_class(inputs.per_class),
        "reliability": calibration(inputs.predictions, float(inputs.metrics["ece"])),
    }
    for chosen in galleries(inputs.galleries):
        drawn[f"gallery_{chosen.name}"] = gallery(inputs, chosen.title, chosen.cards)
    return drawn


def curves(history: pd.DataFrame, held_out: str) -> Figure:
    """Accuracy and loss of both splits per epoch with the gap between them shaded, and the gap of accuracies."""
    epoch = history["epoch"]
    with style():
        figure = Figure(figsize=(8, 8), layout="constrained")
        accuracy, loss, gap = figure.subplots(3, 1, sharex=True, height_ratios=[3, 3, 1.4])
        for axes, name in ((accuracy, "accuracy"), (loss, "loss")):
            train, held = history[f"train_{name}"], history[f"{held_out}_{name}"]
            axes.fill_between(epoch, train, held, color=GREEN, alpha=0.13, linewidth=0)
            axes.plot(epoch, train, color=VERMILION, label="train", marker=".")
            axes.plot(epoch, held, color=BLUE, label=held_out, marker=".")
            axes.set_ylabel(name)
            axes.legend(loc="best")
        loss.set_ylim(0, None)
        accuracy.yaxis.set_major_formatter(PercentFormatter(1, decimals=0, symbol=" %"))
        gap.plot(epoch, 100 * (history["train_accuracy"] - history[f"{held_out}_accuracy"]), color=GREEN, marker=".")
        gap.axhline(0, color=MUTED, linewidth=0.8)
        gap.set(ylabel="gap, points", xlabel="epoch")
        gap.xaxis.get_major_locator().set_params(integer=True)
        last = history.iloc[-1]
        _title(figure, f"Train {percent(last['train_accuracy'])}, {held_out} {percent(last[f'{held_out}_accuracy'])}")
    return figure


def schedule(steps: pd.DataFrame) -> Figure:
    """Rate and, where it cycles, momentum against the epoch."""
    columns = [name for name in ("learning_rate", "momentum") if name in steps and steps[name].notna().all()]
    with style():
        figure = Figure(figsize=(8, 2.2 * len(columns) + 1.2), layout="constrained")
        panels = figure.subplots(len(columns), 1, sharex=True, squeeze=False)[:, 0]
        for axes, name, colour in zip(panels, columns, (VERMILION, BLUE), strict=False):
            axes.plot(steps["epoch"], steps[name], color=colour)
            axes.set_ylabel(name.replace("_", " "))
        panels[0].set_ylim(0, None)
        panels[-1].set_xlabel("epoch")
        rates = steps["learning_rate"]
        _title(figure, f"{rate(rates.iloc[0])} → {rate(rates.max())} → {rate(rates.iloc[-1])}")
    return figure


def confusion(counts: pd.DataFrame, classes: Sequence[str]) -> Figure:
    """Images per true and predicted class; mistakes coloured by the square root of their count."""
    table = counts.pivot(index="actual", columns="predicted", values="count").loc[list(classes), list(classes)]
    images = table.to_numpy(int)
    size, diagonal = len(classes), np.eye(len(classes), dtype=bool)
    with style():
        side = max(6.8, 0.17 * size + 1.5)  # inches; room for every name
        figure = Figure(figsize=(side + 0.4, side), layout="constrained")
        axes = figure.subplots()
        for shown, colours in ((~diagonal, "Oranges"), (diagonal, "Blues")):
            values = np.ma.masked_where(~shown, np.sqrt(images))
            # the paler half of each palette, so that dark figures stay readable on every field
            axes.imshow(values, cmap=colours, vmin=0, vmax=1.8 * max(1.0, float(values.max())))
        few = size <= MOST_COUNTS
        for i, j in np.ndindex(size, size) if few else ():
            axes.text(j, i, f"{images[i, j]}", ha="center", va="center", fontsize=9)
        axes.set_xticks(range(size), classes, rotation=45 if few else 90, ha="right" if few else "center")
        axes.set_yticks(range(size), classes)
        if not few:
            axes.tick_params(labelsize=7)
        axes.set(xlabel="predicted", ylabel="true")
        axes.grid(visible=False)
        axes.spines[:].set_visible(False)
        _title(figure, f"{count(images[~diagonal].sum())} of {count(images.sum())} wrong")
    return figure


def per_class(rows: pd.DataFrame) -> Figure:
    """Recall as bars and precision as ticks, the class recognised least on top."""
    rows = rows.sort_values("recall", ascending=False, kind="stable")
    with style():
        figure = Figure(figsize=(8, 0.4 * len(rows) + 1.4), layout="constrained")
        axes = figure.subplots()
        place = np.arange(len(rows))
        axes.barh(place, rows["recall"], color=BLUE, alpha=0.75, height=0.62, label="recall")
        axes.plot(rows["precision"], place, "|", color=VERMILION, markersize=15, markeredgewidth=3, label="precision")
        axes.set_yticks(place, rows["class"])
        axes.set_xlim(0, 1)
        axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0, symbol=" %"))
        axes.grid(visible=False, axis="y")
        figure.legend(loc="outside upper right", ncols=2)
        weakest = rows.iloc[-1]
        _title(figure, f"Weakest: {weakest['class']}, {percent(weakest['recall'])} recognised")
    return figure


def calibration(predictions: pd.DataFrame, ece: float) -> Figure:
    """Reliability diagram: accuracy of each bin of confidence against its mean confidence; images below."""
    correct = (predictions["label"] == predictions["prediction"]).to_numpy()
    bins = reliability(predictions["confidence"].to_numpy(np.float32), correct)
    left, width = bins["low"], bins["high"] - bins["low"]
    with style():
        figure = Figure(figsize=(6.4, 7), layout="constrained")
        share, images = figure.subplots(2, 1, sharex=True, height_ratios=[4, 1])
        columns: dict[str, Any] = {"align": "edge", "color": BLUE, "alpha": 0.75, "edgecolor": "white"}
        share.bar(left, bins["accuracy"], width, label="accuracy", **columns)
        share.hlines(bins["confidence"], left, bins["high"], color=VERMILION, linewidth=3, label="mean confidence")
        share.plot([0, 1], [0, 1], color=MUTED, linestyle=":", linewidth=1.2)
        share.set(xlim=(0, 1), ylim=(0, 1), ylabel="accuracy")
        share.legend(loc="upper left")
        images.bar(left, bins["images"], width, **columns)
        images.set(yscale="log", ylim=(0.8, None), xlabel="confidence", ylabel="images")
        _title(figure, f"Expected calibration error {percent(ece, 2)}")
    return figure


def gallery(inputs: ReportInputs, title: str, cards: Sequence[Card]) -> Figure:
    """Each card's image, with Grad-CAM for the predicted class and, where another, for the true one."""
    tiles = 3 if cards[0].wrong else 2
    across = min(len(cards), 9 // tiles)
    down = -(-len(cards) // across)
    width, height = across * (tiles * 1.05 + 0.25), down * 1.4 + 0.35  # in tiles of 1.1 inches
    with style():
        figure = Figure(figsize=(1.1 * width + 0.2, 1.1 * height))
        axes = figure.add_axes((0, 0, 1, 1))
        axes.set_axis_off()
        for number, card in enumerate(cards):
            row, column = divmod(number, across)
            for tile in range(tiles):
                left, top = column * (tiles * 1.05 + 0.25) + tile * 1.05, row * 1.4 + 0.55
                _tile(axes, inputs, card, tile, (left, left + 1, top + 1, top))
                axes.text(left, top - 0.06, _caption(card, tile), fontsize=7)
        axes.set(xlim=(-0.1, width), ylim=(height, 0), aspect="equal")
        axes.text(0, 0.25, title, fontsize=11, fontweight="bold")
    return figure


def _tile(axes: Axes, inputs: ReportInputs, card: Card, tile: int, extent: tuple[float, float, float, float]) -> None:
    """The pixels as they are, or in grey below the map for the predicted (1) or the true class (2)."""
    image = inputs.gallery_images[card.row]
    if tile == 0:
        axes.imshow(image, interpolation="nearest", extent=extent)
        return
    grey = image @ np.array([0.299, 0.587, 0.114])
    axes.imshow(grey, cmap="gray", vmin=0, vmax=255, interpolation="nearest", extent=extent)
    cam = (inputs.cam_predicted if tile == 1 else inputs.cam_true)[card.row]
    axes.imshow(heat(cam), interpolation="bilinear", extent=extent)


def _caption(card: Card, tile: int) -> str:
    if tile == 0:
        return f"{card.label}, #{card.index}"
    if tile == 1:
        return f"{card.prediction} {percent(card.confidence)}"
    return f"{card.label} {percent(card.label_probability)}"


def _title(figure: Figure, text: str) -> None:
    figure.suptitle(text, x=0.01, ha="left", fontsize=11, fontweight="bold", color=INK)
