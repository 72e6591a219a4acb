"""DVC's experiments: the finished ones, which git keeps, and what is in DVC's queue."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import psutil

from onecycle import paths
from onecycle.dvc_command import complaint, dvc
from onecycle.errors import UserError
from onecycle.git_command import git_says


@dataclass(frozen=True)
class Experiment:
    """One that has succeeded, on whatever commit it started from."""

    name: str
    baseline: str
    """The commit it started from."""
    commit: str
    """The one that holds its params and results."""
    finished: int
    """Seconds since 1970."""


@dataclass(frozen=True)
class Task:
    """What DVC's queue knows of an experiment."""

    name: str
    commit: str
    """Holds the params and the code it runs with."""
    state: str
    """queued, running, success or failed; lost, where DVC no longer knows it (`replicate`)."""
    process: int | None = None
    """Number of the process that runs it, or ran it."""
    log: Path | None = None
    """What that process says."""


SECONDS = 300.0
"""The longest that DVC may take to tell of them; where it reads git's blobs, it may wait for ever (pygit2's BlobIO)."""


def finished() -> Iterator[Experiment]:
    """Every experiment in git, of refs/exps/<2 digits>/<38 digits of its baseline>/<name>."""
    said = git_says("for-each-ref", "--format=%(objectname) %(committerdate:unix) %(refname)", "refs/exps")
    for line in said.splitlines():
        commit, seconds, reference = line.split(" ", 2)
        parts = PurePosixPath(reference).parts
        if len(parts) == 5 and len(parts[2] + parts[3]) == 40:
            yield Experiment(parts[4], parts[2] + parts[3], commit, int(seconds))


def tasks(baseline: str) -> list[Task]:
    """The experiments that started from the commit `baseline`, queued, running and done.

    Raises:
        UserError: DVC does not tell.
    """
    said = dvc("exp", "show", "--json", "--rev", baseline, seconds=SECONDS)
    try:
        table = json.loads(said.stdout)
    except ValueError:
        raise UserError(f"`dvc exp show` fails: {complaint(said)}") from None
    return [
        _task(experiment)
        for revision in table
        for experiment in revision.get("experiments") or ()
        if experiment["revs"] and experiment["revs"][0].get("name")
    ]


def workers() -> int:
    """How many of DVC's workers for this workspace there are, also those too busy to answer DVC."""
    here = str(paths.original_root())
    return sum(
        process.info["cwd"] == here and "queue-worker" in (process.info["cmdline"] or ())
        for process in psutil.process_iter(["cmdline", "cwd"])
    )


def _task(experiment: dict[str, Any]) -> Task:
    first, executor = experiment["revs"][0], experiment.get("executor") or {}
    local = executor.get("local") or {}
    log = local.get("log")
    return Task(
        first["name"], first["rev"], executor.get("state") or "success", local.get("pid"), Path(log) if log else None
    )
