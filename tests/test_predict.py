"""Pictures from anywhere: fitted as said, refused by name when they cannot be read, classified as in the test."""

from __future__ import annotations

import io
import json
import os
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Run, command
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin

from onecycle import paths, tables
from onecycle.data import Dataset
from onecycle.errors import UserError, printable
from onecycle.model import build_classifier, save_classifier
from onecycle.predict import MAX_BYTES, Model, document, image_files, page, predict, read_image, top_classes
from onecycle.predict import workspace_model as load

SIDE = 32


def encoded(image: Image.Image, form: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def seen(tmp_path: Path, content: bytes, name: str = "picture.png") -> np.ndarray:
    (tmp_path / name).write_bytes(content)
    return read_image(tmp_path / name)[0]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, small_params: Any, digits: Dataset) -> Model:
    """A small network that has learned nothing, from a file."""
    file = tmp_path_factory.mktemp("model") / "model.pt"
    torch.manual_seed(0)
    params = small_params().model
    classifier = build_classifier(params, 10, [0.3] * 3, [0.4] * 3)
    save_classifier(file, classifier.state_dict(), params, digits.classes)
    return load(file)


# ------------------------------------------------------------------------------------------------ what the model sees


@pytest.mark.parametrize("form", ["PNG", "BMP in disguise"])
def test_a_picture_of_the_models_own_size_is_taken_as_it_is(tmp_path: Path, digits: Dataset, form: str) -> None:
    content = encoded(Image.fromarray(digits.test_images[0]), form.split()[0])
    if form == "PNG":
        assert (seen(tmp_path, content) == digits.test_images[0]).all()
    else:
        with pytest.raises(UserError, match="is no PNG or JPEG image"):
            seen(tmp_path, content)


@pytest.mark.parametrize(("width", "height"), [(96, 64), (64, 96), (65, 64), (1, 200), (32, 32), (3, 3)])
def test_the_middle_square_is_seen_and_said(tmp_path: Path, width: int, height: int) -> None:
    square = min(width, height)
    pixels = np.full((height, width, 3), [255, 0, 0], dtype=np.uint8)
    top, left = (height - square) // 2, (width - square) // 2
    pixels[top : top + square, left : left + square] = [0, 200, 100]
    (tmp_path / "a.png").write_bytes(encoded(Image.fromarray(pixels)))
    found, words = read_image(tmp_path / "a.png")
    assert found.shape == (SIDE, SIDE, 3)
    assert found.dtype == np.uint8
    assert (found == [0, 200, 100]).all()
    part = "whole" if width == height else f"middle {square}×{square}"
    assert words == f"{part} of {width}×{height}"


@pytest.mark.parametrize(
    ("image", "options", "expected"),
    [
        (Image.new("L", (32, 32), 77), {}, (77, 77, 77)),
        (Image.new("1", (32, 32), 1), {}, (255, 255, 255)),
        (Image.new("LA", (32, 32), (77, 255)), {}, (77, 77, 77)),
        (Image.new("RGBA", (32, 32), (10, 20, 30, 0)), {}, (255, 255, 255)),
        (Image.new("RGBA", (32, 32), (10, 20, 30, 255)), {}, (10, 20, 30)),
        (Image.new("RGB", (32, 32), (9, 8, 7)).quantize(4), {}, (9, 8, 7)),
        (Image.new("RGB", (32, 32), (9, 8, 7)).quantize(4), {"transparency": 0}, (255, 255, 255)),
        (Image.fromarray(np.full((32, 32), 257 * 100, np.uint16)), {}, (100, 100, 100)),
        (Image.fromarray(np.full((32, 32), 7, np.uint16)), {"transparency": 7}, (255, 255, 255)),
    ],
    ids=[
        "grey",
        "bits",
        "grey+alpha",
        "transparent",
        "opaque",
        "palette",
        "transparent palette",
        "16 bits",
        "16 bits transparent",
    ],
)
def test_every_kind_of_png(
    tmp_path: Path, image: Image.Image, options: dict[str, Any], expected: tuple[int, int, int]
) -> None:
    assert (seen(tmp_path, encoded(image, "PNG", **options)) == expected).all()


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_every_kind_of_jpeg(tmp_path: Path, mode: str) -> None:
    content = encoded(Image.new("RGB", (48, 32), (200, 200, 200)).convert(mode), "JPEG")
    assert abs(seen(tmp_path, content, "a.jpeg").astype(int) - 200).max() <= 2


def test_a_picture_is_turned_as_its_exif_data_say(tmp_path: Path) -> None:
    pixels = np.zeros((32, 32, 3), dtype=np.uint8)
    pixels[:16] = 255  # white on top
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: show it rotated by 90° clockwise
    found = seen(tmp_path, encoded(Image.fromarray(pixels), "PNG", exif=exif))
    assert found[:, 17:].min() == 255
    assert found[:, :15].max() == 0


# ------------------------------------------------------------------------------------------------ what is refused


def bomb(width: int, height: int) -> bytes:
    """A PNG of a few bytes that claims to be huge."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return len(content).to_bytes(4) + kind + content + zlib.crc32(kind + content).to_bytes(4)

    header = width.to_bytes(4) + height.to_bytes(4) + bytes([8, 2, 0, 0, 0])
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("large.png", bomb(10_000, 10_000), "has 10000×10000 pixels, more than 50 million"),
        ("bomb.png", bomb(2**31 - 1, 2**31 - 1), "has too many pixels, more than 50 million"),
        ("short.png", encoded(noise(64, 64))[:-40], "is damaged"),
        ("short.jpg", encoded(noise(64, 64), "JPEG")[:-400], "is damaged"),
        ("page.png", b"<!doctype html><title>404</title>", "is no PNG or JPEG image"),
        ("empty.jpg", b"", "is no PNG or JPEG image"),
        ("moving.png", encoded(noise(8, 8), "GIF"), "is no PNG or JPEG image"),
    ],
)
def test_what_is_no_picture_is_refused_by_name(tmp_path: Path, name: str, content: bytes, words: str) -> None:
    with pytest.raises(UserError, match=words) as refusal:
        seen(tmp_path, content, name)
    assert name in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_a_file_that_never_ends_or_is_none_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")  # opening it would wait for ever
    with pytest.raises(UserError, match=r"pipe\.png is no regular file"):
        read_image(tmp_path / "pipe.png")
    with pytest.raises(UserError, match=r"absent\.png is missing"):
        read_image(tmp_path / "absent.png")
    with (tmp_path / "big.png").open("wb") as file:
        file.truncate(MAX_BYTES + 1)
    with pytest.raises(UserError, match="has more than 64 MiB"):
        read_image(tmp_path / "big.png")


def test_a_jpeg_of_endless_scans_is_refused_and_one_of_several_is_not(tmp_path: Path) -> None:
    """Each scan of some 30 bytes passes over all pixels."""
    pixels, _, last = encoded(Image.new("L", (4000, 4000), 77), "JPEG", progressive=True)[:-2].rpartition(b"\xff\xda")
    end = b"\xff\xd9"
    assert (seen(tmp_path, pixels + 3 * (b"\xff\xda" + last) + end) == 77).all()
    with pytest.raises(UserError, match=r"picture\.png has more than 500 scans"):
        seen(tmp_path, pixels + 100_000 * (b"\xff\xda" + last) + end)
    chunk = PngImagePlugin.PngInfo()
    chunk.add(b"prVt", b"\xff\xda" * 1000)  # a PNG has none, whatever it holds
    assert (seen(tmp_path, encoded(Image.new("L", (32, 32), 77), pnginfo=chunk)) == 77).all()


PNG, JPEG = encoded(noise(40, 32)), encoded(noise(40, 32), "JPEG", exif=Image.Exif().tobytes() + b"\0" * 20)


def mutated(content: bytes, changes: list[tuple[int, int]], end: int) -> bytes:
    copy = bytearray(content)
    for place, value in changes:
        copy[place % len(copy)] = value
    return bytes(copy[: max(1, len(copy) - end)])


@pytest.mark.parametrize("content", [PNG, JPEG], ids=["PNG", "JPEG"])
@settings(max_examples=150, deadline=None)
@given(
    changes=st.lists(st.tuples(st.integers(0, 4000), st.integers(0, 255)), min_size=1, max_size=4),
    end=st.sampled_from([0, 0, 0, 1, 12, 100]),
)
def test_changed_bytes_give_pixels_or_one_sentence(
    tmp_path_factory: pytest.TempPathFactory, content: bytes, changes: list[tuple[int, int]], end: int
) -> None:
    """And never other pixels, where the format has checksums."""
    file = tmp_path_factory.getbasetemp() / "mutated"
    file.write_bytes(mutated(content, changes, end))
    try:
        pixels, _ = read_image(file)
    except UserError as refusal:
        assert str(refusal).startswith(str(file))
        assert "\n" not in str(refusal)
        return
    assert pixels.shape == (SIDE, SIDE, 3)
    assert pixels.dtype == np.uint8
    if content is PNG:
        file.write_bytes(content)
        assert (pixels == read_image(file)[0]).all()


# ------------------------------------------------------------------------------------------------ what is shown


def test_a_folder_is_its_pictures_by_name(tmp_path: Path) -> None:
    for name in ("b.PNG", "a.jpg", "c.jpeg", "notes.txt"):
        (tmp_path / name).touch()
    (tmp_path / "inner").mkdir()
    assert [file.name for file in image_files([tmp_path, Path("other.png")])] == [
        "a.jpg",
        "b.PNG",
        "c.jpeg",
        "other.png",
    ]
    with pytest.raises(UserError, match=r"inner holds no file named \*\.png"):
        image_files([tmp_path / "inner"])


def test_the_likeliest_come_first_and_among_equals_the_first_class() -> None:
    found = top_classes(np.float32([0.1, 0.4, 0.1, 0.4]), ["a", "b", "c", "d"])
    assert found == [("b", pytest.approx(0.4)), ("d", pytest.approx(0.4)), ("a", pytest.approx(0.1))]
    assert top_classes(np.float32([0.3, 0.7]), ["a", "b"]) == [("b", pytest.approx(0.7)), ("a", pytest.approx(0.3))]


def test_a_bad_picture_costs_only_itself(tmp_path: Path, model: Model, digits: Dataset) -> None:
    files = [tmp_path / f"{name}.png" for name in ("first", "bad", "last")]
    for file, image in zip(files, digits.test_images[:3], strict=True):
        file.write_bytes(encoded(Image.fromarray(image)))
    files[1].write_bytes(b"no picture")
    first, bad, last = predict(model, files)
    expected = model.classify(digits.test_images[[0, 2]])
    for prediction, row in zip((first, last), expected, strict=True):
        assert [name for name, _ in prediction.top] == [model.classes[i] for i in np.argsort(-row)[:3]]
        assert [share for _, share in prediction.top] == pytest.approx(sorted(row)[::-1][:3])
    assert (bad.top, bad.refused) == ([], f"{files[1]} is no PNG or JPEG image")
    shown = tables.markdown(page(model, [first, bad, last]))
    assert "first.png" in shown
    assert "last.png" in shown
    assert "bad.png" not in shown
    assert "32×32" in shown
    assert page(model, [bad]) == []
    assert [set(entry) for entry in document([first, bad])] == [{"file", "seen", "top"}, {"file", "refused"}]


def test_a_name_too_long_for_the_system_is_refused() -> None:
    name = Path("a" * 300)
    for refused in (lambda: image_files([name]), lambda: read_image(name)):
        with pytest.raises(UserError, match=r"a{300} cannot be read: File name too long"):
            refused()


def test_a_name_steers_no_terminal() -> None:
    assert printable(Path("a\x1b[2Jb\udc80\n.png")) == "a?[2Jb??.png"


def test_a_missing_model_says_how_to_get_one(tmp_path: Path, onecycle: Run) -> None:
    (tmp_path / "a.png").write_bytes(PNG)
    code, _, said = onecycle(tmp_path, "predict", "a.png")
    assert code == 2
    assert said == "error: models/model.pt is missing; run `dvc repro train` or `dvc checkout`\n"


def test_what_is_no_model_is_refused_before_torch_is_asked(tmp_path: Path, onecycle: Run) -> None:
    """Whose advice it is to trust the file."""
    (tmp_path / "a.png").write_bytes(PNG)
    (tmp_path / "text").write_text("seed: 0\n", encoding="utf-8")
    for model, sentence in (
        ("text", "text is no model of this project; run `dvc repro train`"),
        ("longer", "longer is missing; give a file, or models:/name@alias"),
        (".", ". is no file; give a file, or models:/name@alias"),
    ):
        code, _, said = onecycle(tmp_path, "predict", "a.png", "--model", model)
        assert (code, said) == (2, f"error: {sentence}\n")
    code, _, said = onecycle(tmp_path, "predict", "")
    assert code == 2 and "must be a file or a folder, got nothing" in said


def test_the_command_tells_what_it_can_and_names_what_it_cannot(pipeline: Path, tmp_path: Path) -> None:
    images = np.load(pipeline / paths.DATASET / "test_images.npy")[:5]
    for number, image in enumerate(images):
        (tmp_path / f"{number}.png").write_bytes(encoded(Image.fromarray(image)))
    (tmp_path / "1.png").write_bytes(PNG[:100])
    done = command(pipeline, "onecycle", "predict", "--json", str(tmp_path), check=False)
    assert done.returncode == 2
    entries = json.loads(done.stdout)
    assert entries[1]["refused"].startswith(f"{tmp_path}/1.png is damaged")
    assert done.stderr == f"error: {entries[1]['refused']}\n"
    expected = np.load(pipeline / paths.PROBABILITIES)[:5]
    for number, entry in enumerate(entries):
        assert entry["file"] == str(tmp_path / f"{number}.png")
        if number != 1:
            assert entry["top"][0]["class"] == str(expected[number].argmax())
            found = [choice["probability"] for choice in entry["top"]]
            assert found == pytest.approx(sorted(expected[number])[::-1][:3], abs=1e-5)
