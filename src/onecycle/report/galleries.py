"""Test images with what the network made of them, and where it looked, small enough for one page.

Each image lies in the page once, at its own 32×32 pixels, and is referred to wherever it is shown; Grad-CAM maps lie
over it as small translucent pictures, which the browser enlarges.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from onecycle.evaluation import CLASSES_SHOWN
from onecycle.report.inputs import ReportInputs


@dataclass(frozen=True)
class Card:
    """One image of a gallery: row of its picture, its place in the test set, classes, and their probabilities."""

    row: int
    index: int
    label: str
    prediction: str
    confidence: float
    label_probability: float
    loss: float

    @property
    def wrong(self) -> bool:
        """Whether the prediction is not the label."""
        return self.label != self.prediction


@dataclass(frozen=True)
class Gallery:
    """Cards under a heading, with a sentence on how they were chosen."""

    name: str
    title: str
    about: str
    cards: Sequence[Card]


def galleries(document: Mapping[str, Any]) -> list[Gallery]:
    """The galleries of galleries.json that hold images, in the page's order."""
    classes = document["classes"]
    pair = document["pairs"][0] if document["pairs"] else None
    whose = (
        "true class" if len(classes) <= CLASSES_SHOWN else f"of the {CLASSES_SHOWN} true classes with the most mistakes"
    )
    top = f"{classes[pair['label']]} taken for {classes[pair['prediction']]}" if pair else ""
    texts = {
        "worst": ("The costliest mistakes", "Misclassified, by loss, highest first."),
        "per_class": (
            "Costliest of each class",
            f"Up to three misclassified images of each {whose}, highest loss first.",
        ),
        "top_pair": (top[:1].upper() + top[1:], "The most confused pair, highest loss first."),
        "unsure": ("Right, but barely", "Classified correctly with the least confidence, lowest first."),
    }
    return [
        Gallery(name, title, about, [_card(entry, classes) for entry in document["galleries"][name]])
        for name, (title, about) in texts.items()
        if document["galleries"][name]
    ]


def pictures(inputs: ReportInputs) -> list[str]:
    """Data URI of each gallery image."""
    return [png_uri(image) for image in inputs.gallery_images]


def heat_maps(cams: NDArray[np.floating[Any]]) -> list[str]:
    """Data URI of each of (n, h, w) maps in [0, 1]: from clear through red to yellow."""
    return [png_uri(heat(cam)) for cam in cams]


def heat(cam: NDArray[np.floating[Any]]) -> NDArray[np.uint8]:
    """(h, w) in [0, 1] → (h, w, 4) uint8: "inferno", even in lightness for any colour vision, opaque where hot."""
    level = cam.astype(np.float64)
    rgba = mpl.colormaps["inferno"](level)
    rgba[..., 3] = 0.85 * level**0.7
    return np.asarray((255 * rgba).round(), np.uint8)


def png_uri(pixels: NDArray[np.uint8]) -> str:
    """(h, w, 3 or 4) uint8 → a PNG as a data URI."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", optimize=True)
    return data_uri(buffer.getvalue())


def data_uri(png: bytes) -> str:
    """The bytes of a PNG as a data URI."""
    return f"data:image/png;base64,{base64.b64encode(png).decode('ascii')}"


def _card(entry: Mapping[str, Any], classes: Sequence[str]) -> Card:
    return Card(
        row=entry["row"],
        index=entry["index"],
        label=classes[entry["label"]],
        prediction=classes[entry["prediction"]],
        confidence=entry["confidence"],
        label_probability=math.exp(-entry["loss"]),
        loss=entry["loss"],
    )
