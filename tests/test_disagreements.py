"""The page of images that one run gets right and the other wrong: whole, right, and only with the right images."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import numpy as np
import pytest
from conftest import Run
from crafted_run import CLASSES, LABELS, set_params, write_run
from PIL import Image
from test_report import Page

from onecycle import compare, data, disagreements, paths
from onecycle.errors import UserError
from onecycle.results import Results, read_side

IMAGES = 500


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace with data/arrays, and two runs on them: `first` errs on 0–29, `second` on 20–59. Look only."""
    folder = tmp_path_factory.mktemp("disagreements")
    images = np.random.default_rng(0).integers(0, 256, (IMAGES, 32, 32, 3)).astype(np.uint8)
    labels = LABELS[:IMAGES].astype(np.int64)
    arrays = {"train_images": images[:20], "train_labels": labels[:20], "test_images": images, "test_labels": labels}
    dataset = data.describe("digits", CLASSES, arrays)
    (folder / paths.DATASET).parent.mkdir(parents=True)
    data.save(dataset, folder / paths.DATASET)
    write_run(folder / "first", np.arange(30), IMAGES, dataset.digest)
    write_run(folder / "second", np.arange(20, 60), IMAGES, dataset.digest)
    write_run(folder / "<script>alert(1)", np.arange(30), IMAGES, dataset.digest)
    write_run(folder / "elsewhere", np.arange(25), IMAGES, "another")
    set_params(folder / "second", {"epochs": 12})
    return folder


@pytest.fixture
def sides(folder: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Results, Results]:
    monkeypatch.chdir(folder)
    return read_side("first")[0], read_side("second")[0]


def shown(sides: tuple[Results, Results]) -> Page:
    first, second = sides
    dataset = data.load(paths.DATASET)
    return Page(disagreements.page(compare.compare([first], [second]), first, second, dataset.test_images))


def test_it_shows_what_only_one_gets_right(sides: tuple[Results, Results]) -> None:
    page = shown(sides)
    assert "Only first is right 30" in page.text and "Only second is right 20" in page.text
    assert "Both are wrong 10" in page.text
    told = [image["alt"] for image in page.all("img")]
    indices = [int(words.split()[2].rstrip(":")) for words in told]
    assert sorted(indices[:30]) == list(range(30, 60)) and sorted(indices[30:]) == list(range(20))
    _, second = sides
    surest = second.confidence[indices[:30]]
    assert (np.diff(surest) <= 0).all(), "the surest mistake of the one that errs is first"
    index = indices[0]
    label, mistaken = CLASSES[LABELS[index]], CLASSES[second.predictions[index]]
    assert told[0] == f"Test image {index}: {label}, {label} to the first, {mistaken} to the second"
    assert f"{100 * second.confidence[index]:.1f}" in page.text
    opinions = [attributes["class"] for attributes in page.all("dd") if "class" in attributes]
    assert opinions[:2] == ["right", "wrong"] and opinions[-2:] == ["wrong", "right"]


def test_pictures_are_the_images(sides: tuple[Results, Results]) -> None:
    image = shown(sides).all("img")[0]
    index = int(image["alt"].split()[2].rstrip(":"))
    pixels = Image.open(io.BytesIO(base64.b64decode(image["src"].partition(",")[2])))
    assert np.array_equal(np.asarray(pixels), data.load(paths.DATASET).test_images[index])


def test_it_needs_nothing_from_outside(sides: tuple[Results, Results]) -> None:
    page = shown(sides)
    for tag, attributes in page.elements:
        for key in ("src", "href"):
            assert attributes.get(key, "#").startswith(("#", "data:")), (tag, attributes)
    assert page.all("script") == []
    assert "No evidence of a difference; accuracy -2.00 points" in page.text
    assert "epochs 24 12" in page.text


def test_names_from_a_branch_stay_text(sides: tuple[Results, Results], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disagreements, "MOST", 5)
    _, second = sides
    [crafted] = read_side("<script>alert(1)")
    comparison = compare.compare([crafted], [second])
    html = disagreements.page(comparison, crafted, second, data.load(paths.DATASET).test_images)
    assert "<script" not in html
    assert "the first 5 are shown" in Page(html).text and len(Page(html).all("img")) == 10


def test_two_equal_runs_have_a_page_too(sides: tuple[Results, Results]) -> None:
    first, _ = sides
    html = disagreements.page(compare.compare([first], [first]), first, first, data.load(paths.DATASET).test_images)
    assert Page(html).all("img") == [] and "None." in Page(html).text


def test_the_command(folder: Path, onecycle: Run) -> None:
    code, output, said = onecycle(folder, "compare", "first", "second", "--json", "--pictures", "page.html")
    assert code == 0 and output.startswith("[") and "page.html: " in said
    assert (folder / "page.html").read_text(encoding="utf-8").endswith("</html>")


def test_what_is_refused(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    first, second, other = (read_side(name) for name in ("first", "second", "elsewhere"))
    comparison = compare.compare(first, second)
    with pytest.raises(UserError, match="one run beside one other, got 3 runs"):
        disagreements.write(tmp_path / "x.html", [comparison, comparison], first, [second, second])
    with pytest.raises(UserError, match=r"data/arrays holds the data set .*, but the runs were tested on another"):
        disagreements.write(tmp_path / "x.html", [comparison], other, [other])
    with pytest.raises(UserError, match=r"absent/x\.html cannot be written: No such file"):
        disagreements.write(tmp_path / "absent/x.html", [comparison], first, [second])
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="run `dvc repro download`"):
        disagreements.write(tmp_path / "x.html", [comparison], first, [second])
    assert list(tmp_path.iterdir()) == []
