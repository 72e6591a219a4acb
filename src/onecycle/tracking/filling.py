"""Put what stages left on disk into a journal: of the stage that ran, and of those whose results DVC kept."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

from onecycle.dvc_lock import evaluated_model, fresh, md5, read_lock
from onecycle.tracking.collect import Findings, collect
from onecycle.tracking.journal import Journal

TRAINED_TAG = "train.model"
"""Of a row: the MD5 of the model that its training made."""


def log(
    journal: Journal,
    stage: str,
    findings: Findings,
    live: Collection[tuple[str, int]] = (),
    model_md5: str | None = None,
) -> None:
    """Add a stage's findings, except the (metric, step) that it logged while it ran.

    Args:
        model_md5: of the model that was evaluated, when that may not be the one on disk; other stages have none.
    """
    points = [
        (step, {name: value for name, value in values.items() if (name, step) not in live})
        for step, values in findings.series
    ]
    journal.append("series", stage=stage, points=[point for point in points if point[1]])
    journal.append("metrics", stage=stage, values=findings.metrics, step=None)
    for path, folder in findings.artifacts:
        journal.append("artifact", stage=stage, file=journal.keep(path), folder=folder)
    if findings.dataset:
        journal.append("dataset", stage=stage, dataset=findings.dataset)
    if findings.trained:
        journal.append("tags", stage=stage, values={TRAINED_TAG: md5(findings.trained)})
    if stage == "evaluate":
        _log_model(journal, stage, findings.model, model_md5)


def _log_model(journal: Journal, stage: str, model: tuple[Path, Path] | None, expected: str | None) -> None:
    """Add the model, or only its name when it is not there, or another is there."""
    name, file, pictures = expected, None, None
    if model:
        found = md5(model[0])
        if expected in (None, found):
            name, file, pictures = found, *map(journal.keep, model)
    if name:
        journal.append("model", stage=stage, model={"md5": name, "file": file, "pictures": pictures})


def fill_in(journal: Journal, stages: Iterable[str], params: Mapping[str, str], root: Path = Path()) -> None:
    """Add those of `stages` that did not run but whose results in the workspace at `root` are those of `params`."""
    lock = read_lock(root)
    for stage in stages:
        if fresh(stage, lock, params, root):
            journal.append("cached", stage=stage)
            log(journal, stage, collect(stage, root), model_md5=evaluated_model(lock))
