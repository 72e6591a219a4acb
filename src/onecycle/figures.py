"""The look every matplotlib figure of this project shares, and the range test's figure.

No pyplot: a `Figure` of its own has no global state, needs no display and is freed with its last reference.
What the report draws besides lies in `report.figures`, so that a change there does not rerun the range test.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any, Final

import matplotlib as mpl
import matplotlib.style
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

BLUE: Final = "#0072b2"
VERMILION: Final = "#d55e00"
GREEN: Final = "#009e73"
INK: Final = "#1b1f24"
MUTED: Final = "#5b6470"
RULE: Final = "#d9dde2"
"""Okabe & Ito (2008): told apart with any colour vision, and in grey by their lightness."""

METHODS: Final = {
    "middle": "the middle of the rates that reach half of the gain",
    "minimum_over_two": "half the rate at the best point",
    "minimum_over_ten": "a tenth of the rate at the best point",
    "steepest": "steepest slope",
    "valley": "valley",
}
"""What rate `lr_range.method` takes from the curve, in words."""

_STYLE: Final[dict[str, Any]] = {
    "font.family": "DejaVu Sans",  # ships with matplotlib, so that every machine draws the same
    "font.size": 10,
    "text.color": INK,
    "axes.labelcolor": MUTED,
    "axes.edgecolor": RULE,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": RULE,
    "grid.linewidth": 0.6,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "xtick.minor.size": 0,
    "lines.linewidth": 1.8,
    "lines.solid_capstyle": "round",
    "legend.frameon": False,
    "figure.dpi": 144,
}


def style() -> AbstractContextManager[None]:
    """Draw with this project's settings inside the `with` block, whatever the user's matplotlibrc says."""
    return mpl.style.context(_STYLE, after_reset=True)


def lr_range_figure(curve: pd.DataFrame, suggestion: Mapping[str, Any]) -> Figure:
    """Loss and accuracy of a learning-rate range test against the rate, raw and smoothed (Smith 2015).

    Args:
        curve: one row an iteration: learning_rate, loss, accuracy, smoothed_loss, smoothed_accuracy.
        suggestion: as suggestion.json: accepted, max_lr and min_lr (numbers, or None where refused), method,
            criterion, reason, advice.

    Returns:
        Two panels that share a logarithmic axis, with LRMAX and LRMIN marked, or the reason of the refusal.
    """
    rate = curve["learning_rate"].to_numpy(float)
    with style():
        figure = Figure(figsize=(8, 5.6), layout="constrained")
        loss, accuracy = figure.subplots(2, 1, sharex=True, height_ratios=[3, 2])
        for axes, name, colour in ((loss, "loss", VERMILION), (accuracy, "accuracy", BLUE)):
            raw, smoothed = (curve[key].to_numpy(float) for key in (name, f"smoothed_{name}"))
            axes.plot(rate, raw, ".", color=colour, alpha=0.35, markersize=4, label="each step")
            axes.plot(rate, smoothed, color=colour, label="smoothed")
            axes.set(xscale="log", ylabel=f"training {name}")
            axes.legend(loc="upper left" if name == "accuracy" else "lower left")
            if suggestion["accepted"]:
                _mark(axes, suggestion, rate, smoothed, labelled=name == "loss")
        loss.set_ylim(*loss_limits(curve))
        accuracy.set_ylim(0, None)
        accuracy.set_xlabel("learning rate")
        figure.suptitle(_headline(suggestion), x=0.01, ha="left", fontsize=11, fontweight="bold")
    return figure


def loss_limits(curve: pd.DataFrame) -> tuple[float, float]:
    """Lower and upper end of a loss axis that shows the descent: what diverges above it leaves the panel."""
    smoothed = curve["smoothed_loss"].to_numpy(float)
    finite = smoothed[np.isfinite(smoothed)]
    if not finite.size:
        return 0.0, 1.0
    low, start = float(finite.min()), float(finite[: max(1, finite.size // 10)].max())
    margin = 0.25 * max(start - low, 0.02 * abs(start), 1e-6)
    return low - margin, start + margin


def _mark(axes: Axes, suggestion: Mapping[str, Any], rate: np.ndarray, smoothed: np.ndarray, *, labelled: bool) -> None:
    lowest, highest = float(suggestion["min_lr"]), float(suggestion["max_lr"])
    for name, value, line, side, shift in (("LRMAX", highest, "-", "left", 5), ("LRMIN", lowest, "--", "right", -5)):
        axes.axvline(value, color=INK, linestyle=line, linewidth=1)
        if labelled:
            axes.annotate(
                f"{name} {value:.3g}",
                (value, 1),
                xycoords=("data", "axes fraction"),
                xytext=(shift, -4),
                textcoords="offset points",
                ha=side,
                va="top",
                fontweight="bold",
            )
    axes.plot(highest, np.interp(np.log(highest), np.log(rate), smoothed), "o", color=INK, markersize=6)


def _headline(suggestion: Mapping[str, Any]) -> str:
    if suggestion["accepted"]:
        return f"LRMAX by the smoothed {suggestion['criterion']}: {METHODS[suggestion['method']]}"
    return textwrap.fill(f"No suggestion: {suggestion['reason']}", 84)
