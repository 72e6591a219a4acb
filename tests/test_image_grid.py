"""The labelled grid of images: every pixel where it belongs, and the same bytes each time."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

from onecycle.download import digits
from onecycle.image_grid import DPI, SCALE, image_grid
from onecycle.png import save_png


@pytest.fixture(scope="module")
def rows() -> list[NDArray[np.uint8]]:
    dataset = digits()
    colours = np.array([[255, 90, 0], [0, 160, 255], [255, 255, 255]], np.uint8)
    return [dataset.train_images[dataset.train_labels == label][:4] & colours[label] for label in range(3)]


def pixels(figure: Figure, folder: Path) -> NDArray[np.uint8]:
    save_png(figure, folder / "grid.png")
    with Image.open(folder / "grid.png") as image:
        return np.asarray(image.convert("RGB"))


def found(image: NDArray[np.uint8], picture: NDArray[np.uint8]) -> list[tuple[int, int]]:
    """(left, top) of each place where `picture` shows `image`, enlarged in whole pixels."""
    block = image.repeat(SCALE, axis=0).repeat(SCALE, axis=1)
    windows = np.lib.stride_tricks.sliding_window_view(picture, block.shape[:2], axis=(0, 1))
    probes = [(0, 0), (40, 37), (50, 61), (95, 95), (17, 80)]
    likely = np.logical_and.reduce([(windows[..., y, x] == block[y, x]).all(axis=-1) for y, x in probes])
    height, width = block.shape[:2]
    places = [(int(x), int(y)) for y, x in np.argwhere(likely)]
    return [(x, y) for x, y in places if np.array_equal(picture[y : y + height, x : x + width], block)]


def test_images_are_shown_without_smoothing_in_rows_and_columns(rows: list[NDArray[np.uint8]], tmp_path: Path) -> None:
    picture = pixels(image_grid(rows, ["zero", "one", "two"], "digits"), tmp_path)

    places = [[found(image, picture) for image in row] for row in rows]

    assert all(len(place) == 1 for row in places for place in row)
    lefts = [[place[0][0] for place in row] for row in places]
    tops = [[place[0][1] for place in row] for row in places]
    assert lefts[0] == lefts[1] == lefts[2] == sorted(set(lefts[0]))
    assert len({top for row in tops for top in row}) == 3 and tops[0][0] < tops[1][0] < tops[2][0]
    assert len(set(np.diff(lefts[0]))) == 1


def test_columns_behind_the_break_are_set_apart(rows: list[NDArray[np.uint8]], tmp_path: Path) -> None:
    figure = image_grid(rows, ["a", "b", "c"], "digits", column_labels=["original", "epoch 1"], break_after=1)
    picture = pixels(figure, tmp_path)
    first, second, third, _ = (found(image, picture)[0][0] for image in rows[0])
    assert second - first > third - second


def test_rows_may_be_short_or_empty(rows: list[NDArray[np.uint8]], tmp_path: Path) -> None:
    picture = pixels(image_grid([rows[0], rows[1][:1], rows[2][:0]], ["a", "b", "c"], "digits"), tmp_path)
    assert len(found(rows[1][0], picture)) == 1
    assert not found(rows[1][1], picture)


def test_title_and_labels_stand_inside_the_figure_and_on_no_image(
    rows: list[NDArray[np.uint8]], tmp_path: Path
) -> None:
    labels = ["zero", "automobile", "two"]
    columns = ["original", "epoch 1", "", "epoch 2"]
    with_text = image_grid(rows, labels, "A title", column_labels=columns, break_after=1)
    assert [text.get_text() for text in with_text.texts if text.get_text()] == [
        "A title",
        *(column for column in columns if column),
        *labels,
    ]
    picture = pixels(with_text, tmp_path)
    assert all(len(found(image, picture)) == 1 for row in rows for image in row)
    width, height = with_text.get_size_inches() * DPI
    for text in with_text.texts:
        box = text.get_window_extent()
        assert box.x0 >= 0 and box.y0 >= 0 and box.x1 <= width and box.y1 <= height


def test_the_same_images_give_the_same_bytes_whatever_the_users_settings(
    rows: list[NDArray[np.uint8]], tmp_path: Path
) -> None:
    save_png(image_grid(rows, ["a", "b", "c"], "digits"), tmp_path / "one.png")
    with mpl.rc_context({"savefig.bbox": "tight", "savefig.dpi": 30, "font.size": 30, "figure.facecolor": "red"}):
        save_png(image_grid(rows, ["a", "b", "c"], "digits"), tmp_path / "two.png")

    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "two.png").read_bytes()
    with Image.open(tmp_path / "one.png") as image:
        assert set(image.info) <= {"dpi"}


def test_no_pyplot_and_no_torch_are_loaded() -> None:
    program = (
        "import sys, onecycle.image_grid; print(sorted({'matplotlib.pyplot', 'torch', 'pandas'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
