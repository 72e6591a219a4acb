"""Figures: drawn from a frame and a mapping, the same bytes each time, no pyplot, no surprise on odd curves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from report_case import ACCEPTED, REFUSED, range_curve, report_inputs

from onecycle.data import Dataset
from onecycle.figures import METHODS, loss_limits, lr_range_figure
from onecycle.png import save_png
from onecycle.report import figures
from onecycle.report.figures import confusion


def words(figure: Figure) -> str:
    return " ".join(text.get_text() for text in figure.findobj(mpl.text.Text))


def marked(figure: Figure) -> set[float]:
    """Rates of the vertical lines in the upper panel."""
    lines = (np.asarray(line.get_xdata(), float) for line in figure.axes[0].lines)
    return {float(x[0]) for x in lines if len(x) == 2 and x[0] == x[1]}


def png(figure: Figure, folder: Path) -> bytes:
    path = folder / "figure.png"
    save_png(figure, path)
    return path.read_bytes()


def test_the_range_test_marks_and_names_both_rates() -> None:
    figure = lr_range_figure(range_curve(), ACCEPTED)
    assert marked(figure) == {0.01, 0.001}
    assert "LRMAX 0.01" in words(figure)
    assert "LRMIN 0.001" in words(figure)
    assert [axes.get_xscale() for axes in figure.axes] == ["log", "log"]


def test_a_refused_range_test_says_why_and_marks_nothing() -> None:
    figure = lr_range_figure(range_curve(), REFUSED)
    assert marked(figure) == set()
    assert "too flat to be read" in words(figure).replace("\n", " ")


@pytest.mark.parametrize("method", sorted(METHODS))
def test_every_method_of_the_params_has_words_and_they_fit(method: str) -> None:
    figure = lr_range_figure(range_curve(), {**ACCEPTED, "method": method, "criterion": "accuracy"})
    assert METHODS[method] in words(figure)
    FigureCanvasAgg(figure).draw()
    headline = next(text for text in figure.findobj(mpl.text.Text) if text.get_text() == figure.get_suptitle())
    assert headline.get_window_extent().x1 <= figure.bbox.x1


@pytest.mark.parametrize("steps", [0, 1, 20])
def test_a_range_test_that_ended_early_is_still_drawn(steps: int, tmp_path: Path) -> None:
    assert png(lr_range_figure(range_curve().head(steps), REFUSED), tmp_path).startswith(b"\x89PNG")


def test_what_diverges_leaves_the_panel() -> None:
    curve = range_curve()
    curve.loc[90:, ["loss", "smoothed_loss"]] = 1e6
    curve.loc[97:, ["loss", "smoothed_loss"]] = np.nan
    low, high = loss_limits(curve)
    assert 1 < low < curve["smoothed_loss"].min() < 2.4 < high < 3


def test_the_same_figure_gives_the_same_bytes_whatever_the_users_settings(tmp_path: Path) -> None:
    first = png(lr_range_figure(range_curve(), ACCEPTED), tmp_path)
    with mpl.rc_context({"figure.dpi": 33, "font.size": 30, "axes.facecolor": "red", "savefig.bbox": "tight"}):
        second = png(lr_range_figure(range_curve(), ACCEPTED), tmp_path)
    assert first == second
    assert b"Software" not in first


def test_the_report_draws_every_figure_once_and_alike(digits: Dataset, small_params: Any, tmp_path: Path) -> None:
    inputs = report_inputs(digits, small_params())
    drawn = {name: png(figure, tmp_path) for name, figure in figures(inputs).items()}
    assert list(drawn) == [
        "curves", "schedule", "confusion", "per_class", "reliability",
        "gallery_worst", "gallery_per_class", "gallery_top_pair", "gallery_unsure",
    ]  # fmt: skip
    assert len(set(drawn.values())) == len(drawn)
    assert drawn["gallery_worst"] == png(figures(inputs)["gallery_worst"], tmp_path)


def test_the_confusion_figure_holds_every_count(digits: Dataset, small_params: Any) -> None:
    inputs = report_inputs(digits, small_params())
    shown = words(figures(inputs)["confusion"]).split()
    assert all(str(count) in shown for count in inputs.confusion["count"])


def test_the_confusion_figure_of_many_classes_has_room_for_their_names(tmp_path: Path) -> None:
    names = [f"class {k}" for k in range(100)]
    counts = pd.DataFrame(
        [(one, other, 90 if one == other else 0) for one in names for other in names],
        columns=["actual", "predicted", "count"],
    )
    figure = confusion(counts, names)
    [axes] = figure.axes
    assert [label.get_text() for label in axes.get_yticklabels()] == names
    assert not axes.texts  # of 10,000 counts none could be read
    height = figure.get_figheight() * 72 / 100  # points, for a row
    assert axes.get_yticklabels()[0].get_fontsize() < height
    assert png(figure, tmp_path)
