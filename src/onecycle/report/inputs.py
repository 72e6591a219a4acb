"""What the report tells of, and the one place that reads it from the workspace."""

from __future__ import annotations

import json
import platform
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar
from zipfile import BadZipFile

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from onecycle import paths
from onecycle.errors import UserError
from onecycle.params import Params

T = TypeVar("T")

LIBRARIES = (
    "torch",
    "albumentations",
    "opencv-python-headless",
    "torch-lr-finder",
    "numpy",
    "scikit-learn",
    "pandas",
    "matplotlib",
    "dvc",
    "mlflow",
)
"""Those whose version may change a figure of the report, and the two trackers."""


@dataclass(frozen=True)
class ReportInputs:
    """The results of all stages as they lie in the workspace. Nothing in it knows a time, a host or a path."""

    params: Params
    versions: Mapping[str, str]
    stats: Mapping[str, Any]
    samples_png: bytes
    augmented_png: bytes
    lr_curve: pd.DataFrame
    suggestion: Mapping[str, Any]
    history: pd.DataFrame
    schedule: pd.DataFrame
    train_metrics: Mapping[str, Any]
    model_summary: str
    metrics: Mapping[str, Any]
    per_class: pd.DataFrame
    confusion: pd.DataFrame
    predictions: pd.DataFrame
    galleries: Mapping[str, Any]
    gallery_images: NDArray[np.uint8]
    """(n, H, W, 3); the galleries' entries name rows of it, and of the two arrays of maps."""
    cam_predicted: NDArray[np.floating[Any]]
    """(n, h, w) in [0, 1]: Grad-CAM for the predicted class."""
    cam_true: NDArray[np.floating[Any]]
    """(n, h, w) in [0, 1]: Grad-CAM for the label."""

    @property
    def held_out(self) -> str:
        """Which split the per-epoch curves were taken on: "validation", or "test" where nothing was held out."""
        return "validation" if "validation_loss" in self.history else "test"

    @property
    def classes(self) -> list[str]:
        """Class names by label."""
        return list(self.galleries["classes"])


def read(params: Params) -> ReportInputs:
    """The workspace's results (see `paths`), and the installed libraries' versions.

    Raises:
        UserError: a file is missing or damaged.
    """
    images, cam_predicted, cam_true = _whole(paths.GALLERY_IMAGES, _arrays)
    return ReportInputs(
        params=params,
        versions={"python": platform.python_version(), **{name: version(name) for name in LIBRARIES}},
        stats=_json(paths.STATS_JSON),
        samples_png=_whole(paths.SAMPLES_PNG, Path.read_bytes),
        augmented_png=_whole(paths.AUGMENTED_PNG, Path.read_bytes),
        lr_curve=_whole(paths.LR_RANGE_CURVE, pd.read_csv),
        suggestion=_json(paths.LR_RANGE_SUGGESTION),
        history=_whole(paths.HISTORY, pd.read_csv),
        schedule=_whole(paths.SCHEDULE, pd.read_csv),
        train_metrics=_json(paths.TRAIN_METRICS),
        model_summary=_whole(paths.MODEL_SUMMARY, lambda path: path.read_text(encoding="utf-8")),
        metrics=_json(paths.EVALUATE_METRICS),
        per_class=_whole(paths.PER_CLASS, partial(_named, classes=("class",))),
        confusion=_whole(paths.CONFUSION, partial(_named, classes=("actual", "predicted"))),
        predictions=_whole(paths.PREDICTIONS, pd.read_parquet),
        galleries=_json(paths.GALLERIES),
        gallery_images=images,
        cam_predicted=cam_predicted,
        cam_true=cam_true,
    )


def _whole(path: Path, read_file: Callable[[Path], T]) -> T:
    try:
        return read_file(path)
    except (OSError, ValueError, TypeError, KeyError, EOFError, BadZipFile, zlib.error) as error:
        raise UserError(f"{path} is missing or damaged ({error}); `dvc repro` makes it again") from error


def _named(path: Path, classes: Sequence[str]) -> pd.DataFrame:
    """A table with columns of class names, one of which may be "None", "NA" or "007"."""
    return pd.read_csv(path, dtype=dict.fromkeys(classes, str), keep_default_na=False)


def _json(path: Path) -> dict[str, Any]:
    return _whole(path, lambda path: dict(json.loads(path.read_text(encoding="utf-8"))))


def _arrays(path: Path) -> list[NDArray[Any]]:
    with np.load(path, allow_pickle=False) as arrays:
        return [arrays[key] for key in ("images", "cam_predicted", "cam_true")]
