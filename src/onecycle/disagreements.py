"""The test images that one of two runs gets right and the other wrong, in a page like the report's.

onecycle compare main workspace --pictures differing.html
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from onecycle import data, paths
from onecycle.compare import Comparison, sentence
from onecycle.differences import Side
from onecycle.errors import UserError
from onecycle.report.galleries import png_uri
from onecycle.report.html import asset, template
from onecycle.results import Results

MOST = 300
"""Images a side, so that a page stays some megabytes; all of them for two runs of one recipe."""


@dataclass(frozen=True)
class Opinion:
    """What one run makes of an image."""

    prediction: str
    confidence: float
    right: bool


@dataclass(frozen=True)
class Card:
    """An image on which two runs disagree about what is right."""

    index: int
    """In the test set."""
    label: str
    picture: str
    """A data URI."""
    first: Opinion
    second: Opinion


@dataclass(frozen=True)
class Gallery:
    """What only one of the two gets right."""

    name: str
    title: str
    images: int
    """How many there are, shown or not."""
    cards: Sequence[Card]


@dataclass(frozen=True)
class ClassRow:
    """How many images of a class only one of the two gets right."""

    name: str
    only_first: int
    only_second: int


def write(file: Path, comparisons: Sequence[Comparison], first: Side, others: Sequence[Side]) -> None:
    """Write the page for one run against one other, with images from the workspace's data set.

    Raises:
        UserError: there are more runs than that; the data set is not there, or another; the file cannot be written.
    """
    runs = len(first) + sum(len(side) for side in others)
    if runs != 2:
        raise UserError(f"--pictures shows one run beside one other, got {runs} runs; name two")
    one, other = first[0], others[0][0]
    html = page(comparisons[0], one, other, _test_images(one))
    try:
        file.write_text(html, encoding="utf-8", newline="\n")
    except OSError as error:
        raise UserError(f"{file} cannot be written: {error.strerror}") from None
    print(f"{file}: {len(html.encode()) / 1e6:.1f} MB, opens in any browser", file=sys.stderr)


def _test_images(run: Results) -> NDArray[np.uint8]:
    """The images that `run` was tested on."""
    here = data.load(paths.DATASET)
    if here.digest != run.digest or not np.array_equal(here.test_labels, run.labels):
        raise UserError(
            f"{paths.DATASET.as_posix()} holds the data set {here.digest[:7]}, but the runs were tested on "
            f"{run.digest[:7]}; with their `data` section in params.yaml, `dvc repro download` brings it here"
        )
    return here.test_images


def page(comparison: Comparison, first: Results, second: Results, images: NDArray[np.uint8]) -> str:
    """One HTML document that needs nothing else.

    Args:
        comparison: of the two runs.
        images: (N, H, W, 3), the test set in the order of their predictions.
    """
    only_first, only_second = first.correct & ~second.correct, second.correct & ~first.correct
    return template("disagreements.html.jinja").render(
        names=(first.described, second.described),
        verdict=sentence(comparison),
        images=len(first.labels),
        both_wrong=int((~first.correct & ~second.correct).sum()),
        params=comparison.params,
        classes=_class_rows(only_first, only_second, first),
        galleries=[
            _gallery("first", f"Only {first.described} is right", only_first, first, second, images),
            _gallery("second", f"Only {second.described} is right", only_second, first, second, images),
        ],
        style=asset("page.css"),
    )


def _class_rows(only_first: NDArray[np.bool_], only_second: NDArray[np.bool_], run: Results) -> list[ClassRow]:
    """Counts by true class, the one with the largest difference first."""
    rows = [
        ClassRow(name, int(only_first[run.labels == label].sum()), int(only_second[run.labels == label].sum()))
        for label, name in enumerate(run.classes)
    ]
    return sorted(rows, key=lambda row: abs(row.only_second - row.only_first), reverse=True)


def _gallery(
    name: str, title: str, chosen: NDArray[np.bool_], first: Results, second: Results, images: NDArray[np.uint8]
) -> Gallery:
    """The images `chosen`, those first on which the run that errs is surest."""
    erring = second if name == "first" else first
    indices = np.flatnonzero(chosen)
    indices = indices[np.argsort(-erring.confidence[indices], kind="stable")]
    cards = [
        Card(
            int(index),
            first.classes[first.labels[index]],
            png_uri(np.array(images[index])),
            _opinion(first, index),
            _opinion(second, index),
        )
        for index in indices[:MOST]
    ]
    return Gallery(name, title, len(indices), cards)


def _opinion(run: Results, index: int) -> Opinion:
    return Opinion(run.classes[run.predictions[index]], float(run.confidence[index]), bool(run.correct[index]))
