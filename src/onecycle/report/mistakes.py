"""What the page shows of predictions: confusion, classes, calibration, confused pairs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from onecycle.evaluation import reliability
from onecycle.report.charts import Axis, Chart, Line, around, bar_chart
from onecycle.report.words import count, percent


@dataclass(frozen=True)
class Cell:
    """One field of the confusion matrix; `strength` in [0, 100] is how much colour it gets."""

    images: int
    strength: int
    correct: bool
    reading: str


def confusion_rows(confusion: pd.DataFrame, classes: Sequence[str]) -> list[tuple[str, list[Cell]]]:
    """A row for each true class. Mistakes are coloured by the square root of their share, so that rare ones show."""
    counts = confusion.pivot(index="actual", columns="predicted", values="count").loc[list(classes), list(classes)]
    images = counts.to_numpy(int)
    share = images / np.maximum(images.sum(axis=1, keepdims=True), 1)
    mistakes = share * (1 - np.eye(len(classes)))
    worst = max(float(mistakes.max()), 1e-9)

    def cell(i: int, j: int) -> Cell:
        strength = share[i, j] if i == j else np.sqrt(mistakes[i, j] / worst)
        taken = "recognised" if i == j else f"taken for {classes[j]}"
        reading = f"{classes[i]} {taken}: {count(images[i, j])} of {count(images[i].sum())}, {percent(share[i, j])}"
        return Cell(int(images[i, j]), round(100 * float(strength)), i == j, reading)

    size = range(len(classes))
    return [(classes[i], [cell(i, j) for j in size]) for i in size]


def class_rows(per_class: pd.DataFrame) -> list[dict[str, Any]]:
    """class, precision, recall, f1, support; the class that is recognised least first."""
    return per_class.sort_values("recall", kind="stable").to_dict("records")  # type: ignore[return-value]


def pair_rows(pairs: Sequence[Mapping[str, Any]], per_class: pd.DataFrame) -> list[dict[str, Any]]:
    """Confused pairs with class names, the share of the class's images they make up, and a bar's length in [0, 1]."""
    names, support = list(per_class["class"]), list(per_class["support"])
    most = max((pair["count"] for pair in pairs), default=1)
    return [
        {
            "label": names[pair["label"]],
            "prediction": names[pair["prediction"]],
            "count": pair["count"],
            "share": pair["count"] / max(1, support[pair["label"]]),
            "median_loss": pair["median_loss"],
            "length": pair["count"] / most,
        }
        for pair in pairs
    ]


def calibration(predictions: pd.DataFrame) -> list[Chart]:
    """Accuracy against confidence in bins (reliability diagram), and how many images each bin holds."""
    correct = (predictions["label"] == predictions["prediction"]).to_numpy()
    bins = reliability(predictions["confidence"].to_numpy(np.float32), correct)
    x = Axis("confidence", 0, 1, lambda share: percent(share, 0))
    accuracy = Axis("accuracy", 0, 1, lambda share: percent(share, 0))
    images = Axis("images", 0.8, around([bins["images"]], margin=0.5)[1], count, log=True)
    edges = bins[["low", "high"]]
    words = [f"confidence {percent(low, 0)} to {percent(high, 0)}" for low, high in edges.to_numpy()]
    fullest = int(bins["images"].to_numpy().argmax())
    most = bins.iloc[fullest]
    lines = [
        Line("accuracy", "held-out", bins["accuracy"], percent),
        Line("confidence", "train", bins["confidence"], percent),
    ]
    return [
        bar_chart(
            f"Accuracy of the predictions in bins of confidence, against their mean confidence. In the fullest bin: "
            f"confidence {percent(most['confidence'])}, accuracy {percent(most['accuracy'])}.",
            x,
            accuracy,
            edges,
            lines,
            words,
            fullest,
            size="diagonal",
        ),
        bar_chart(
            f"Images in each bin of confidence, on a logarithmic scale; {count(most['images'])} in the fullest.",
            x,
            images,
            edges,
            [Line("images", "held-out", bins["images"], count)],
            words,
            fullest,
            size="short",
        ),
    ]
