"""Figures as files that depend on nothing but the figure."""

from __future__ import annotations

from pathlib import Path

import matplotlib.style
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure


def save_png(figure: Figure, path: Path) -> None:
    """Write `figure` at its own resolution; the same figure gives the same bytes (no date, no version)."""
    FigureCanvasAgg(figure)
    with matplotlib.style.context({}, after_reset=True):  # whatever the user's matplotlibrc says
        figure.savefig(path, format="png", dpi="figure", metadata={"Software": None})
