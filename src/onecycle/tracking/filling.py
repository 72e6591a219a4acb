"""Put what stages left on disk into a journal: of the stage that ran, and of those whose results DVC kept."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

from onecycle.tracking.collect import Findings, collect
from onecycle.tracking.freshness import fresh, read_lock
from onecycle.tracking.journal import Journal


def log(journal: Journal, stage: str, findings: Findings, live: Collection[tuple[str, int]] = ()) -> None:
    """Add a stage's findings, except the (metric, step) that it logged while it ran."""
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


def fill_in(journal: Journal, stages: Iterable[str], params: Mapping[str, str], root: Path = Path()) -> None:
    """Add those of `stages` that did not run but whose results in the workspace at `root` are those of `params`."""
    lock = read_lock(root)
    for stage in stages:
        if fresh(stage, lock, params, root):
            journal.append("cached", stage=stage)
            log(journal, stage, collect(stage, root))
