"""Small images in labelled rows, as a matplotlib figure: samples of a data set, originals beside their augmentations.

    figure = image_grid([images[labels == k][:10] for k in range(10)], classes, "Ten training images of each class")
    save_png(figure, Path("samples.png"))

Every image pixel becomes a square of screen pixels, so nothing is smoothed and the same images give the same bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import matplotlib.style
import numpy as np
from matplotlib.figure import Figure

from onecycle.data import Images

SCALE = 3
"""Screen pixels a side for each image pixel; a whole number, so that nothing is smoothed."""
GAP = 6
WIDE_GAP = 24
MARGIN = 24
LABELS = 108
"""Screen pixels: between images, before the second part of a row, around everything, for the names of the rows."""
DPI = 100
INK, MUTED = "#1b1f24", "#5b6470"
FRAME = (217, 221, 226)  # a hairline, so that a white image does not run out into the page


def image_grid(
    rows: Sequence[Images],
    row_labels: Sequence[str],
    title: str,
    *,
    column_labels: Sequence[str] = (),
    break_after: int | None = None,
) -> Figure:
    """A figure with one labelled row of images for each item of `rows`.

    Args:
        rows: each (columns, H, W, 3) uint8; H and W are the same in all, and short rows end early.
        row_labels: a name for each row, shown at its left.
        title: what one sees, shown above.
        column_labels: names for the first columns, shown above them; "" leaves a column without.
        break_after: leave a wider gap after so many columns, to set two kinds of images apart.

    Returns:
        A figure whose image pixels are squares of `SCALE` screen pixels at its own resolution.
    """
    assert len(rows) == len(row_labels)
    height, width = (SCALE * side for side in rows[0].shape[1:3])
    columns = max(len(row) for row in rows)
    lefts = [
        MARGIN
        + LABELS
        + column * (width + GAP)
        + (WIDE_GAP - GAP) * (break_after is not None and column >= break_after)
        for column in range(columns)
    ]
    top = MARGIN + 34 + (20 if column_labels else 0)
    tops = [top + row * (height + GAP) for row in range(len(rows))]
    canvas = np.full((tops[-1] + height + MARGIN, lefts[-1] + width + MARGIN, 3), 255, np.uint8)
    for y, row in zip(tops, rows, strict=True):
        for x, image in zip(lefts, row, strict=False):
            canvas[y - 1 : y + height + 1, x - 1 : x + width + 1] = FRAME
            canvas[y : y + height, x : x + width] = image.repeat(SCALE, axis=0).repeat(SCALE, axis=1)

    with matplotlib.style.context({"font.family": "DejaVu Sans"}, after_reset=True):  # ships with matplotlib
        figure = Figure(figsize=(canvas.shape[1] / DPI, canvas.shape[0] / DPI), dpi=DPI, facecolor="white")
        figure.figimage(canvas)

        def write(x: float, y: float, text: str, **look: Any) -> None:
            figure.text(x / canvas.shape[1], 1 - y / canvas.shape[0], text, va="center", **look)

        write(lefts[0], MARGIN + 8, title, size=11, weight="bold", color=INK)
        for x, text in zip(lefts, column_labels, strict=False):
            write(x + width / 2, top - 12, text, size=8.5, color=MUTED, ha="center")
        for y, text in zip(tops, row_labels, strict=True):
            write(lefts[0] - 14, y + height / 2, text, size=9.5, color=INK, ha="right")
    return figure
