"""The picture of `onecycle summary`: a line a recipe, a dot a run, the mean and its interval."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from onecycle.errors import UserError
from onecycle.figures import BLUE, INK, VERMILION, style
from onecycle.numbers import mean_and_deviation
from onecycle.png import save_png
from onecycle.summary import Group

LABEL_WIDTH = 30
"""Characters, at which the name of a recipe goes on in another line."""
LABEL_LINES = 4


def write_picture(groups: Sequence[Group], file: Path) -> None:
    """Draw the groups into a PNG.

    Raises:
        UserError: the file cannot be written, or is to be no PNG.
    """
    if file.suffix.lower() != ".png":
        raise UserError(f"--picture must end in .png, got {file}")
    if not file.parent.is_dir():
        raise UserError(f"{file} cannot be written: there is no folder {file.parent}")
    try:
        save_png(summary_figure(groups), file)
    except OSError as error:
        raise UserError(f"{file} cannot be written: {error.strerror}") from None


def summary_figure(groups: Sequence[Group]) -> Figure:
    """Test accuracy of each group's runs, in the order given, the first on top."""
    labels = [
        textwrap.fill(group.label, LABEL_WIDTH, max_lines=LABEL_LINES, placeholder=" …", break_on_hyphens=False)
        for group in groups
    ]
    heights = [max(2, label.count("\n") + 1) for label in labels]
    with style():
        figure = Figure(figsize=(8, 1.3 + 0.24 * sum(heights)), layout="constrained")
        axes = figure.subplots()
        top = 0.0
        places = []
        for group, height in zip(groups, heights, strict=True):
            place = top + height / 2
            places.append(place)
            top += height
            mean = group.metrics["accuracy"]
            if mean.low is not None and mean.high is not None:
                axes.hlines(place, mean.low, mean.high, color=BLUE, linewidth=7, alpha=0.25)
            axes.plot([mean.value], [place], "|", color=VERMILION, markersize=17, markeredgewidth=2.4)
            values = group.values("accuracy")
            axes.plot(values, [place] * len(values), "o", color=BLUE, markersize=5, alpha=0.75, markeredgewidth=0)
            axes.annotate(
                f"{mean_and_deviation(mean)}\n{mean.n} run{'s' if mean.n > 1 else ''}",
                (1.015, place),
                xycoords=("axes fraction", "data"),
                va="center",
                color=INK,
                fontsize=9,
                annotation_clip=False,
            )
        axes.set_yticks(places, labels, color=INK)
        axes.set_ylim(top, 0)
        axes.margins(x=0.08)
        axes.xaxis.set_major_formatter(PercentFormatter(1, symbol=" %"))
        axes.set_xlabel("test accuracy")
        axes.grid(visible=False, axis="y")
        title = "Each run a dot; the mean of a recipe and its 95 % interval"
        figure.suptitle(title, x=0.01, ha="left", fontsize=11, fontweight="bold", color=INK)
    return figure
