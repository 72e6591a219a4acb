"""Every execution that left its results here: the workspace, HEAD, DVC's experiments, folders below results/reference.

Like a comparison, this believes no results that do not make sense; what is wrong with those it leaves out is told.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from onecycle import experiments, paths
from onecycle.errors import UserError
from onecycle.recipe import recipe_differing
from onecycle.results import Results, read
from onecycle.revisions import REFERENCE, WORKSPACE, AbsentError, Place, find
from onecycle.tracking import yaml_values
from onecycle.tracking.errors import StoreError
from onecycle.tracking.filling import model_read_by
from onecycle.tracking.freshness import Lock, parse_lock, recorded_params
from onecycle.tracking.git import git
from onecycle.tracking.times import training_seconds

NO_CODE = "report"
"""The stage whose code changes no figure."""


@dataclass(frozen=True)
class Execution:
    """One run and all the names it can be found by."""

    names: tuple[str, ...]
    results: Results
    seconds: float | None
    """Of its training, where a row knows it."""
    code: frozenset[tuple[str, str]]
    """(path, MD5) of the code that computed it; empty where no dvc.lock tells."""


@dataclass
class Found:
    """What there is, and what is wrong with the rest."""

    executions: list[Execution] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)
    """Name → why."""


def executions() -> Found:
    """Find them all, each once: HEAD, the workspace and an experiment often hold the same run."""
    found = Found()
    seconds = _training_seconds(found.left_out)
    for place in _places():
        try:
            lock = parse_lock(place.read(paths.DVC_LOCK) or b"")
            results = read(place)
            _check_current(results, lock)
        except AbsentError:
            if place.name not in (WORKSPACE, "HEAD"):
                found.left_out[place.name] = "it has no results/evaluate/metrics.json"
            continue
        except ValueError as error:
            found.left_out[place.name] = str(error)
            continue
        model = model_read_by("evaluate", lock)
        code = frozenset(
            (dep["path"], str(dep.get("md5")))
            for stage, entry in lock.items()
            for dep in entry.get("deps", ())
            if stage != NO_CODE and dep["path"].startswith(("src/", "stages/"))
        )
        _add(found.executions, Execution((place.name,), results, seconds.get(model or ""), code))
    return found


def _places() -> Iterator[Place]:
    yield Place(WORKSPACE, None, Path())
    if git("rev-parse", "HEAD"):
        yield find("HEAD")
    for one in experiments.finished():
        yield Place(one.name, one.commit, None)
    for file in sorted(REFERENCE.rglob(paths.PARAMS.name)):
        yield Place(file.parent.as_posix(), None, file.parent)


def _training_seconds(left_out: dict[str, str]) -> Mapping[str, float]:
    try:
        return training_seconds()
    except StoreError as error:
        left_out["times"] = str(error)
        return {}


def _check_current(results: Results, lock: Lock) -> None:
    """Refuse results of other params than those beside them: params.yaml was edited since."""
    for key, value in recorded_params(lock).items():
        now = results.params.get(key)
        if results.params and not yaml_values.same(now, value):
            raise UserError(
                f"params.yaml says {key}: {yaml_values.spelled(now)}, its results are of {yaml_values.spelled(value)}; "
                "run `dvc repro`"
            )


def _add(known: list[Execution], new: Execution) -> None:
    for position, other in enumerate(known):
        if (
            not recipe_differing(new.results.params, other.results.params)
            and new.results.digest == other.results.digest
            and np.array_equal(new.results.predictions, other.results.predictions)
            and np.array_equal(new.results.confidence, other.results.confidence)
        ):
            known[position] = replace(other, names=(*other.names, *new.names))
            return
    known.append(new)
