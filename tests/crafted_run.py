"""Runs without training: what `evaluate` writes for made-up probabilities, in folders and git repositories."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from conftest import PARAMS_FILE, command, set_params
from numpy.typing import NDArray

from onecycle import evaluation, paths

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
IMAGES = 10_000
LABELS = np.arange(IMAGES) % 10


def write_run(
    folder: Path,
    wrong: NDArray[np.int64],
    images: int = IMAGES,
    digest: str = "d1",
    sure: float = 0.97,
    keep_params: bool = False,
) -> None:
    """params.yaml as shipped or as it is, and results/evaluate of a run that gets the images `wrong` wrong."""
    labels = LABELS[:images]
    predictions = labels.copy()
    predictions[wrong] = (labels[wrong] + 1) % 10
    generator = np.random.default_rng(len(wrong))
    confidence = generator.uniform(2 * sure - 1, 1, images).astype(np.float32)
    confidence[wrong] = generator.uniform(0.4, 0.9, len(wrong))
    probabilities = np.repeat((1 - confidence[:, None]) / 9, 10, axis=1)
    probabilities[np.arange(images), predictions] = confidence
    outcomes = evaluation.outcomes(probabilities, labels)
    target = folder / paths.EVALUATE
    target.mkdir(parents=True, exist_ok=True)
    if not keep_params:
        shutil.copy(PARAMS_FILE, folder)
    metrics = {**evaluation.metrics(probabilities, labels), "dataset_digest": digest}
    (folder / paths.EVALUATE_METRICS).write_text(json.dumps(metrics), encoding="utf-8")
    evaluation.per_class(outcomes, CLASSES).to_csv(folder / paths.PER_CLASS, index=False, lineterminator="\n")
    evaluation.write_predictions(folder / paths.PREDICTIONS, outcomes)


def edit_metrics(folder: Path, **changes: Any) -> None:
    """Set keys of results/evaluate/metrics.json, and delete those set to `...`."""
    path = folder / paths.EVALUATE_METRICS
    metrics = {**json.loads(path.read_text(encoding="utf-8")), **changes}
    kept = {key: value for key, value in metrics.items() if value is not ...}
    path.write_text(json.dumps(kept), encoding="utf-8")


def errors(common: int, own: int, start: int = 0) -> NDArray[np.int64]:
    """Images that are wrong: `common` ones that every run gets wrong, and `own` from position `start` of the rest."""
    order = np.random.default_rng(0).permutation(IMAGES)
    return np.concatenate([order[:common], order[common + start : common + start + own]])


def repository(folder: Path) -> Path:
    """An empty git repository with a branch `main`."""
    folder.mkdir(parents=True, exist_ok=True)
    command(folder, "git", "init", "-q", "-b", "main")
    for key, value in (("user.name", "test"), ("user.email", "test@example.com")):
        command(folder, "git", "config", key, value)
    return folder


def commit(folder: Path, message: str) -> str:
    """Commit everything; the commit."""
    command(folder, "git", "add", "-A")
    command(folder, "git", "commit", "-qm", message)
    return command(folder, "git", "rev-parse", "HEAD").stdout.strip()


__all__ = ["CLASSES", "IMAGES", "LABELS", "commit", "edit_metrics", "errors", "repository", "set_params", "write_run"]
