"""`onecycle predict`: what the trained model makes of pictures from anywhere.

    onecycle predict cat.jpg pictures/
    onecycle predict --model models:/onecycle-cifar10@candidate cat.jpg

Pictures are not trusted: only PNG and JPEG are decoded, their size is bounded before anything is, and one that cannot
be read is refused by name while the others are still shown.
"""

from __future__ import annotations

import io
import warnings
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from onecycle.errors import UserError, printable
from onecycle.paths import MODEL
from onecycle.tables import Page, Table

FORMATS = ("PNG", "JPEG")
SUFFIXES = (".png", ".jpg", ".jpeg")
MAX_BYTES = 64 * 2**20
MAX_PIXELS = 50_000_000
"""What a camera may give, and some 200 MB once it is decoded."""
MAX_SCANS = 500
"""Of a JPEG, each of which passes over all pixels. Real ones have ten or so, but the two bytes that a scan begins with
also occur by chance in what may follow the picture, like a phone's film: once in 64 KiB."""
TOP = 3
SIDE = 32
"""Pixels, of the pictures both networks are built for."""
BATCH = 256

Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class Model:
    """What is asked: `classify` maps uint8 (N, 32, 32, 3) to float32 (N, classes) probabilities."""

    name: str
    classes: Sequence[str]
    classify: Callable[[Pixels], NDArray[np.float32]]


@dataclass(frozen=True)
class Prediction:
    """A picture, how it was fitted to the model in words, and its likeliest classes; or why it was refused."""

    file: Path
    seen: str = ""
    top: Sequence[tuple[str, float]] = field(default_factory=list)
    refused: str = ""


def workspace_model(path: Path) -> Model:
    """The model of a file like models/model.pt, on the CPU.

    Raises:
        UserError: it is missing, or see `model.load_classifier`.
    """
    if not path.is_file():
        make = "run `dvc repro train` or `dvc checkout`" if path == MODEL else "give a file, or models:/name@alias"
        raise UserError(f"{printable(path)} is {'no file' if path.exists() else 'missing'}; {make}")
    if not zipfile.is_zipfile(path):  # as torch saves; of any other file it would advise how to trust it
        raise UserError(f"{printable(path)} is no model of this project; run `dvc repro train`")
    import torch  # here, since it takes seconds and a model of MLflow's brings its own

    from onecycle.evaluation import probabilities
    from onecycle.model import load_classifier

    classifier, file = load_classifier(path)
    cpu = torch.device("cpu")
    return Model(str(path), file.classes, lambda images: probabilities(classifier, images, BATCH, cpu))


def image_files(paths: Sequence[Path]) -> list[Path]:
    """`paths`, with the PNG and JPEG files directly in it, by name, in the place of each folder.

    Raises:
        UserError: a folder holds none, or may not be looked into.
    """
    files: list[Path] = []
    for path in paths:
        try:
            inside = sorted(path.iterdir()) if path.is_dir() else None
        except OSError as error:
            raise UserError(f"{printable(path)} cannot be read: {error.strerror}") from None
        found = [path] if inside is None else [file for file in inside if file.suffix.lower() in SUFFIXES]
        if not found:
            raise UserError(f"{printable(path)} holds no file named {', '.join(f'*{suffix}' for suffix in SUFFIXES)}")
        files += found
    return files


def predict(model: Model, files: Sequence[Path]) -> list[Prediction]:
    """What `model` makes of each of `files`, in their order."""
    found: list[Prediction] = []
    images: list[Pixels] = []
    for file in files:
        try:
            pixels, seen = read_image(file)
        except UserError as error:
            found.append(Prediction(file, refused=str(error)))
        else:
            found.append(Prediction(file, seen))
            images.append(pixels)
    probabilities = iter(model.classify(np.stack(images)) if images else ())
    return [one if one.refused else replace(one, top=top_classes(next(probabilities), model.classes)) for one in found]


def top_classes(probabilities: NDArray[np.float32], classes: Sequence[str]) -> list[tuple[str, float]]:
    """The likeliest of (classes,) probabilities first; among equals the first class, as in a test."""
    order = np.argsort(-probabilities, kind="stable")[:TOP]
    return [(classes[index], float(probabilities[index])) for index in order]


def read_image(file: Path) -> tuple[Pixels, str]:
    """The middle square of a PNG or JPEG file as uint8 (32, 32, 3), and in words what of it that is.

    It is turned as its EXIF data say, and what is transparent lies on white, as a viewer would show it.

    Raises:
        UserError: it is missing, no such file, too large or damaged.
    """
    name = printable(file)
    try:
        if not file.is_file():
            raise UserError(f"{name} is {'no regular file' if file.exists() else 'missing'}; give a PNG or JPEG file")
        with file.open("rb") as stream:
            content = stream.read(MAX_BYTES + 1)
    except OSError as error:
        raise UserError(f"{name} cannot be read: {error.strerror}") from None
    if len(content) > MAX_BYTES:
        raise UserError(f"{name} has more than {MAX_BYTES // 2**20} MiB; make it smaller")
    if content.startswith(b"\xff\xd8") and content.count(b"\xff\xda") > MAX_SCANS:
        raise UserError(f"{name} has more than {MAX_SCANS} scans, which could take hours; save it as a plain JPEG")
    image = _decoded(name, content)
    width, height = image.size
    square = min(width, height)
    left, top = (width - square) // 2, (height - square) // 2
    middle = image.crop((left, top, left + square, top + square))
    fitted = middle.resize((SIDE, SIDE), Image.Resampling.BICUBIC)  # which averages where it makes smaller
    seen = "whole" if width == height else f"middle {square}×{square}"
    return np.asarray(fitted), f"{seen} of {width}×{height}"


def _decoded(name: str, content: bytes) -> Image.Image:
    """RGB, upright, opaque."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a bomb by PIL's measure is one by ours; the others tell of odd metadata
            image = Image.open(io.BytesIO(content), formats=FORMATS)
            if image.width * image.height <= MAX_PIXELS:
                image.verify()  # the checksums of a PNG; of its pixels, reading it checks none
                return _rgb(ImageOps.exif_transpose(Image.open(io.BytesIO(content), formats=FORMATS)))
            size = f"{image.width}×{image.height}"
    except UnidentifiedImageError:
        raise UserError(f"{name} is no PNG or JPEG image") from None
    except Image.DecompressionBombError:
        size = "too many"
    except Exception as error:  # PIL raises many types for a damaged file
        raise UserError(f"{name} is damaged: {_sentence(error)}") from error
    raise UserError(f"{name} has {size} pixels, more than {MAX_PIXELS / 1e6:.0f} million; make it smaller")


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16 bits of grey, which PIL would cut off at 255
        grey = np.asarray(image, np.float64)
        transparent = image.info.get("transparency")
        if isinstance(transparent, int):
            grey = np.where(grey == transparent, 65_535, grey)
        return Image.fromarray((grey / 257).round().astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        colours = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", colours.size, "white"), colours).convert("RGB")
    return image.convert("RGB")


def document(predictions: Sequence[Prediction]) -> list[dict[str, Any]]:
    """The predictions as JSON: file, and either seen and top or refused."""
    return [
        {"file": str(prediction.file), "refused": prediction.refused}
        if prediction.refused
        else {
            "file": str(prediction.file),
            "seen": prediction.seen,
            "top": [{"class": name, "probability": probability} for name, probability in prediction.top],
        }
        for prediction in predictions
    ]


def page(model: Model, predictions: Sequence[Prediction]) -> Page:
    """A line for each picture that was read, after a sentence on what is done to it."""
    rows = [
        [
            printable(prediction.file),
            prediction.seen,
            *(f"{printable(name)} {100 * probability:.1f} %" for name, probability in prediction.top),
        ]
        for prediction in predictions
        if not prediction.refused
    ]
    if not rows:
        return []
    ranks = ("first", "second", "third")[: len(rows[0]) - 2]
    how = f"The middle square of each picture, resized to {SIDE}×{SIDE}, is what the model sees."
    return [how, Table(model.name, ("picture", "seen", *ranks), rows)]


def _sentence(error: Exception) -> str:
    return printable(next(iter(str(error).splitlines()), "") or type(error).__name__)
