"""Geometry of the page's line charts: numbers in, positions and ready words out. The template draws them.

A plot is an SVG stretched over its box, with lines that keep their width; tick labels, marks and read-outs are text
placed by percent. So one chart serves a phone, a wide screen and paper, and its words stay readable on each.
Positions are fractions of the plot: 0 at its left or lower edge, 1 at the other.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.path import Path as Outline
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike, NDArray

Words = Callable[[float], str]
Floats = NDArray[np.float64]
Reading = tuple[float, str, list[tuple[str, float | None]]]

MAX_READINGS = 400
"""More than a pointer can tell apart on a wide screen."""

_UNITS = 1000
"""Side of the SVG's coordinate system; a tenth of a unit is far below a pixel."""


@dataclass(frozen=True)
class Axis:
    """The numbers from `low` to `high`, laid along an edge of the plot."""

    name: str
    low: float
    high: float
    words: Words
    log: bool = False

    def at(self, values: ArrayLike) -> Floats:
        """Where `values` lie; NaN stays NaN, what is far outside stays near, so that no coordinate is huge."""
        scaled, ends = np.asarray(values, float), np.array([self.low, self.high], float)
        if self.log:
            scaled, ends = np.log10(scaled), np.log10(ends)
        return np.asarray(((scaled - ends[0]) / (ends[1] - ends[0])).clip(-1, 2))


@dataclass(frozen=True)
class Tick:
    """A labelled position; a `minor` one is left out where space is short."""

    at: float
    text: str
    minor: bool


@dataclass(frozen=True)
class Mark:
    """A labelled vertical line, e.g. where LRMAX lies; `row` keeps neighbours' labels apart."""

    at: float
    text: str
    dashed: bool = False
    row: int = 0


@dataclass(frozen=True)
class Line:
    """One series: `values` over the chart's positions, and `points` behind it where it is a smoothed one."""

    name: str
    colour: str
    values: ArrayLike
    words: Words
    points: ArrayLike | None = None


@dataclass(frozen=True)
class Drawn:
    """A `Line` as SVG paths, which are empty where its values are bars, or place and height of its `single` value."""

    name: str
    colour: str
    path: str = ""
    dots: str = ""
    single: tuple[float, float] | None = None


@dataclass(frozen=True)
class Bar:
    """A column from the lower edge up to `height`, and the height it should have, where that is known."""

    left: float
    width: float
    height: float
    target: float | None


@dataclass(frozen=True)
class Chart:
    """All the template needs for one plot.

    `readings` hold, for each position a pointer can pick, its place, its words, and words and height of each line
    there; the one at `start` is shown at first.
    """

    alt: str
    x: Axis
    y: Axis
    lines: Sequence[Drawn]
    readings: Sequence[Reading]
    start: int
    size: str
    band: str = ""
    marks: Sequence[Mark] = ()
    bars: Sequence[Bar] = ()

    @property
    def x_ticks(self) -> list[Tick]:
        """Round numbers along the lower edge."""
        return ticks(self.x)

    @property
    def y_ticks(self) -> list[Tick]:
        """Round numbers along the left edge."""
        return ticks(self.y, 3 if self.size == "short" else 5)


def line_chart(
    alt: str,
    x: Axis,
    y: Axis,
    positions: ArrayLike,
    lines: Sequence[Line],
    *,
    marks: Sequence[Mark] = (),
    band: bool = False,
    size: str = "tall",
    reading: Words | None = None,
    start: float | None = None,
) -> Chart:
    """A plot of `lines` over `positions` (n,), with the area between the first two shaded where `band` is set.

    `reading` says a position in words for the read-out ("epoch 5"), by default as `x` does with its name before;
    that nearest to `start` is shown at first, by default the last.
    """
    positions = np.asarray(positions, float)
    across = x.at(positions)
    heights = [y.at(line.values) for line in lines]
    chosen = np.unique(np.linspace(0, len(positions) - 1, min(len(positions), MAX_READINGS)).round().astype(int))
    words = reading or (lambda value: f"{x.name} {x.words(value)}")
    return Chart(
        alt,
        x,
        y,
        [
            Drawn(
                line.name,
                line.colour,
                path=_path(across, height),
                dots="" if line.points is None else _dots(across, y.at(line.points)),
                single=_single(across, height),
            )
            for line, height in zip(lines, heights, strict=True)
        ],
        [(round(float(across[i]), 4), words(float(positions[i])), _values(y, lines, i)) for i in map(int, chosen)],
        start=len(chosen) - 1 if start is None else int(np.abs(across[chosen] - x.at(start)).argmin()),
        size=size,
        band=_band(across, heights[0], heights[1]) if band else "",
        marks=marks,
    )


def bar_chart(
    alt: str, x: Axis, y: Axis, edges: ArrayLike, lines: Sequence[Line], words: Sequence[str], start: int, *, size: str
) -> Chart:
    """Columns between `edges` (n, 2), as high as the first of `lines`; the second, if any, is what they should reach.

    `words` say each column for the read-out, which shows that at `start` first.
    """
    left, right = x.at(edges).T
    heights = [y.at(line.values) for line in lines]
    return Chart(
        alt,
        x,
        y,
        [Drawn(line.name, line.colour) for line in lines],
        [(round(float(left[i] + right[i]) / 2, 4), words[i], _values(y, lines, i)) for i in range(len(left))],
        start=start,
        size=size,
        bars=[
            Bar(
                left=round(float(left[i]), 4),
                width=round(float(right[i] - left[i]), 4),
                height=round(float(heights[0][i]), 4),
                target=round(float(heights[1][i]), 4) if len(heights) > 1 else None,
            )
            for i in range(len(left))
        ],
    )


def ticks(axis: Axis, about: int = 5) -> list[Tick]:
    """Round numbers along `axis`: `about` so many, or the powers of ten of a logarithmic one."""
    if axis.log:
        first, last = math.ceil(math.log10(axis.low) - 1e-9), math.floor(math.log10(axis.high) + 1e-9)
        values = [10.0**power for power in range(first, last + 1)]
    else:
        located = MaxNLocator(nbins=about, steps=[1, 2, 2.5, 5, 10]).tick_values(axis.low, axis.high)
        slack = 1e-9 * (axis.high - axis.low)
        values = [float(value) for value in located if axis.low - slack <= value <= axis.high + slack]
    places = axis.at(values)
    return [
        Tick(round(float(place), 5), axis.words(value), minor=bool(index % 2))
        for index, (place, value) in enumerate(zip(places, values, strict=True))
    ]


def around(values: Iterable[ArrayLike], *, margin: float = 0.05, floor: float | None = None) -> tuple[float, float]:
    """Ends of an axis that holds all finite `values` with a margin; it starts at `floor` where one is given."""
    every = np.concatenate([np.ravel(np.asarray(part, float)) for part in values])
    every = every[np.isfinite(every)]
    if not every.size:
        return 0.0, 1.0
    low, high = float(every.min()), float(every.max())
    room = margin * (high - low) or 0.5 * abs(high) or 0.5
    return (low - room if floor is None else floor), high + room


def _units(across: Floats, height: Floats) -> Floats:
    """(n,) and (n,) fractions → (m, 2) SVG coordinates of those that are finite; SVG counts from the top."""
    points = np.stack([across, 1 - height], axis=1) * _UNITS
    return np.asarray(points[np.isfinite(points).all(axis=1)])


def _path(across: Floats, height: Floats) -> str:
    """A polyline without the points that lie on the way anyway: a schedule of 2,000 steps is a few strokes."""
    points = _units(across, height)
    if len(points) < 2:
        return ""
    outline = np.asarray(Outline(points).cleaned(simplify=True).vertices)[:-1]  # the last only says "stop"
    return "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in outline)


def _dots(across: Floats, height: Floats) -> str:
    """Strokes of no length: with round caps they are dots that a stretched plot leaves round."""
    return "".join(f"M{x:.1f} {y:.1f}h0" for x, y in _units(across, height))


def _single(across: Floats, height: Floats) -> tuple[float, float] | None:
    """The only point there is: a stroke of no length would hardly be seen."""
    finite = np.isfinite(across) & np.isfinite(height)
    if finite.sum() != 1:
        return None
    (x,), (y,) = across[finite], height[finite]
    return round(float(x), 4), round(float(y), 4)


def _band(across: Floats, first: Floats, second: Floats) -> str:
    both = np.isfinite(first) & np.isfinite(second)
    there, back = _path(across[both], first[both]), _path(across[both][::-1], second[both][::-1])
    return f"{there}L{back[1:]}Z" if there and back else ""


def _values(y: Axis, lines: Sequence[Line], index: int) -> list[tuple[str, float | None]]:
    """Words and height of each line at position `index`."""
    values = [float(np.asarray(line.values, float)[index]) for line in lines]
    return [
        (line.words(value), round(float(y.at(value)), 4)) if math.isfinite(value) else ("–", None)
        for line, value in zip(lines, values, strict=True)
    ]
