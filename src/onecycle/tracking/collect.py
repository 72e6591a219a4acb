"""What a stage's files say to a row. The same for a stage that just ran and for one whose results DVC kept."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from onecycle import paths

Point = tuple[int, dict[str, float]]


@dataclass
class Findings:
    """A stage's part of a row."""

    metrics: dict[str, float] = field(default_factory=dict)
    series: list[Point] = field(default_factory=list)
    """(step, values at it)."""
    artifacts: list[tuple[Path, str]] = field(default_factory=list)
    """(file, folder in the row)."""
    dataset: dict[str, str] | None = None
    model: tuple[Path, Path] | None = None
    """The model's file, and one that holds pictures to show what it takes."""
    trained: Path | None = None
    """The file of the model that was trained, which may be evaluated in another execution."""

    def __bool__(self) -> bool:
        """Whether there is anything."""
        return bool(self.metrics or self.series or self.artifacts or self.dataset or self.model)


def collect(stage: str, root: Path = Path()) -> Findings:
    """Read what a stage left in the workspace at `root`; what is not there is left out.

    Raises:
        OSError, ValueError: a file cannot be read, or holds something else than the stage writes.
    """
    try:
        findings = _READERS[stage](root)
    except KeyError as error:  # of a time when files held other things
        raise ValueError(f"what {stage} wrote lacks {error}") from None
    except (AttributeError, EOFError, OverflowError, RecursionError, TypeError, csv.Error) as error:
        raise ValueError(f"what {stage} wrote is not as it writes it: {error}") from None
    findings.artifacts = [(root / file, folder) for file, folder in findings.artifacts if (root / file).is_file()]
    if findings.model:
        model, pictures = (root / file for file in findings.model)
        findings.model = (model, pictures) if model.is_file() and pictures.is_file() else None
    if findings.trained:
        findings.trained = root / findings.trained if (root / findings.trained).is_file() else None
    return findings


def _download(root: Path) -> Findings:
    described = _json(root / paths.DATASET / "dataset.json")
    if not described:
        return Findings()
    import numpy as np  # every stage has it loaded by now

    labels = {split: root / paths.DATASET / f"{split}_labels.npy" for split in ("train", "test")}
    sizes = {f"{split}_images": len(np.load(file, mmap_mode="r")) for split, file in labels.items() if file.is_file()}
    dataset = {
        "name": described["name"],
        "digest": described["digest"][:32],  # MLflow takes 36 characters
        "source": json.dumps({"uri": paths.DATASET.as_posix()}),
        "profile": json.dumps({**sizes, "classes": len(described["classes"])}),
    }
    return Findings(dataset=dataset)


def _stats(root: Path) -> Findings:
    stats = _json(root / paths.STATS_JSON)
    metrics = {
        f"stats/{moment}_{channel}": value
        for moment in ("mean", "std")
        for channel, value in stats.get(moment, {}).items()
    }
    return Findings(metrics, artifacts=_in("stats", paths.STATS_JSON, paths.SAMPLES_PNG))


def _lr_range(root: Path) -> Findings:
    suggestion = _json(root / paths.LR_RANGE_SUGGESTION)
    files = _in("lr_range", paths.LR_RANGE_CURVE, paths.LR_RANGE_SUGGESTION, paths.LR_RANGE_PNG)
    names = {column: f"lr_range/{column}" for column in ("learning_rate", "loss", "accuracy")}
    return Findings(
        _numbers("lr_range/", {key: suggestion.get(key) for key in ("max_lr", "min_lr")}),
        _series(root / paths.LR_RANGE_CURVE, "iteration", names),
        files,
    )


def _train(root: Path) -> Findings:
    metrics = _json(root / paths.TRAIN_METRICS)
    of_the_run = ("epochs", "kept_epoch", "max_lr", "min_lr", "last_lr", "parameters")  # the others are in the series
    names = {
        "train_loss": "train/loss",
        "train_accuracy": "train/accuracy",
        "learning_rate": "train/learning_rate",
        "momentum": "train/momentum",
        "validation_loss": "validation/loss",
        "validation_accuracy": "validation/accuracy",
        "test_loss": "test_epoch/loss",
        "test_accuracy": "test_epoch/accuracy",
    }
    return Findings(
        _numbers("train/", {key: metrics.get(key) for key in of_the_run}),
        _series(root / paths.HISTORY, "epoch", names),
        _in(
            "train",
            paths.HISTORY,
            paths.SCHEDULE,
            paths.TRAIN_METRICS,
            paths.MODEL_SUMMARY,
            paths.AUGMENTED_PNG,
        ),
        trained=paths.MODEL,
    )


def _evaluate(root: Path) -> Findings:
    files = (paths.EVALUATE_METRICS, paths.PER_CLASS, paths.CONFUSION, paths.PREDICTIONS, paths.GALLERIES)
    return Findings(
        _numbers("test/", _json(root / paths.EVALUATE_METRICS)),
        artifacts=_in("evaluate", *files),
        model=(paths.MODEL, paths.GALLERY_IMAGES),
    )


def _report(root: Path) -> Findings:
    figures = sorted(file.relative_to(root) for file in (root / paths.REPORT_FIGURES).glob("*.png"))
    return Findings(artifacts=[*_in("report", paths.REPORT_HTML), *_in("report/figures", *figures)])


_READERS: dict[str, Callable[[Path], Findings]] = {
    "download": _download,
    "stats": _stats,
    "lr_range": _lr_range,
    "train": _train,
    "evaluate": _evaluate,
    "report": _report,
}
STAGES = tuple(_READERS)
"""The stages that have a part in a row, each after those it depends on."""


def _in(folder: str, *files: Path) -> list[tuple[Path, str]]:
    return [(file, folder) for file in files]


def _json(file: Path) -> dict[str, Any]:
    if not file.exists():
        return {}
    value = json.loads(file.read_text(encoding="utf-8"))
    return value if isinstance(value, dict) else {}


def _numbers(prefix: str, values: dict[str, Any]) -> dict[str, float]:
    return {
        f"{prefix}{key}": float(value)
        for key, value in values.items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    }


def _series(file: Path, step: str, names: dict[str, str]) -> list[Point]:
    """A table's columns as metrics: `names` maps column → metric; empty cells are left out."""
    if not file.exists():
        return []
    with file.open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    return [
        (int(row[step]), {name: float(row[column]) for column, name in names.items() if row.get(column)})
        for row in rows
    ]
