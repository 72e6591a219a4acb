"""Every path a stage reads or writes, relative to the workspace (the folder that holds dvc.yaml)."""

from __future__ import annotations

import os
from pathlib import Path

REPRODUCES = "ONECYCLE_REPRODUCES"
"""Environment of an execution that `onecycle reproduce` starts: what it makes again, and a name for this attempt."""

PARAMS = Path("params.yaml")
DVC_LOCK = Path("dvc.lock")
DVC_YAML = Path("dvc.yaml")

PARAMS_VALID = Path("results/params/valid")

DATASET = Path("data/arrays")

STATS = Path("results/stats")
STATS_JSON = STATS / "stats.json"
SAMPLES_PNG = STATS / "samples.png"

LR_RANGE = Path("results/lr_range")
LR_RANGE_CURVE = LR_RANGE / "curve.csv"
LR_RANGE_SUGGESTION = LR_RANGE / "suggestion.json"
LR_RANGE_PNG = LR_RANGE / "curve.png"

TRAIN = Path("results/train")
HISTORY = TRAIN / "history.csv"
SCHEDULE = TRAIN / "schedule.csv"
TRAIN_METRICS = TRAIN / "metrics.json"
MODEL_SUMMARY = TRAIN / "model.txt"
AUGMENTED_PNG = TRAIN / "augmented.png"
MODEL = Path("models/model.pt")

EVALUATE = Path("results/evaluate")
EVALUATE_METRICS = EVALUATE / "metrics.json"
PREDICTIONS = EVALUATE / "predictions.parquet"
CONFUSION = EVALUATE / "confusion.csv"
PER_CLASS = EVALUATE / "per_class.csv"
GALLERIES = EVALUATE / "galleries.json"
GALLERY_IMAGES = EVALUATE / "galleries.npz"
PROBABILITIES = Path("models/probabilities.npy")

REPORT = Path("results/report")
REPORT_HTML = REPORT / "index.html"
REPORT_FIGURES = REPORT / "figures"


def original_root() -> Path:
    """The workspace a person works in, also when called in a temporary or queued experiment's folder.

    DVC runs those in `<workspace>/.dvc/tmp/exps/…`, deletes that folder afterwards and passes stale `DVC_*`
    variables on, so what must outlive an experiment is found by walking up, not from the environment.
    """
    here = Path.cwd().resolve()
    for folder in (here, *here.parents):
        if (folder / ".dvc").is_dir() and "/.dvc/tmp/exps/" not in f"{folder.as_posix()}/":
            return folder
    return here


def state() -> Path:
    """Folder in the original workspace for what outlives a stage but is no result: downloads, checkpoints, journal."""
    return original_root() / ".state"


def training_state(attempt: str | None = None) -> Path:
    """Folder for the checkpoints of trainings; an attempt of `onecycle reproduce` has one of its own.

    A reproduction must neither take up nor end a training that was interrupted here.
    """
    attempt = attempt or os.environ.get(REPRODUCES, "").rpartition(" ")[2]
    return state() / (f"reproduce-{attempt}" if attempt else "train")
