"""Every execution that left its results here: the workspace, HEAD, DVC's experiments, folders below results/reference.

Like a comparison, this believes no results that do not make sense; what is wrong with those it leaves out is told.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from onecycle import experiments, provenance
from onecycle.git_command import git_says
from onecycle.recipe import recipe_differing
from onecycle.results import Results, read, same_model
from onecycle.revisions import WORKSPACE, AbsentError, Place, find, references
from onecycle.tracking.errors import StoreError
from onecycle.tracking.times import Training, trainings


@dataclass(frozen=True)
class NamedRun:
    """One run and all the names it can be found by."""

    names: tuple[str, ...]
    results: Results
    seconds: float | None
    """Of its training, where a row or an environment.json knows it."""
    code: frozenset[tuple[str, str]]
    """(path, MD5) of the code that computed it; empty where no dvc.lock tells."""


@dataclass
class Found:
    """What there is, and what is wrong with the rest."""

    runs: list[NamedRun] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)
    """Name → why."""


def executions() -> Found:
    """Find them all, each once: HEAD, the workspace and an experiment often hold the same run."""
    found = Found()
    known = _trainings(found.left_out)
    for place in _places():
        try:
            results = read(place)
            made = results.made
            provenance.check_current(place, results.params, made)
            seconds = provenance.environment(place, made.model, known).training_seconds
        except AbsentError:
            if place.name not in (WORKSPACE, "HEAD"):
                found.left_out[place.name] = "it has no results/evaluate/metrics.json"
            continue
        except ValueError as error:
            found.left_out[place.name] = str(error)
            continue
        _add(found.runs, NamedRun((place.name,), results, seconds, frozenset(made.code.items())))
    return found


def _places() -> Iterator[Place]:
    yield Place(WORKSPACE, folder=Path())
    if git_says("rev-parse", "HEAD"):
        yield find("HEAD")
    for one in experiments.finished():
        yield Place(one.name, one.commit)
    for folder in references():
        yield Place.at(folder)


def _trainings(left_out: dict[str, str]) -> Mapping[str, Training]:
    try:
        return trainings()
    except StoreError as error:
        left_out["times"] = str(error)
        return {}


def same_run(one: Results, other: Results) -> bool:
    """Whether two are one run: of one recipe, on the same images, of the same model."""
    return not recipe_differing(one.params, other.params) and one.digest == other.digest and same_model(one, other)


def _add(known: list[NamedRun], new: NamedRun) -> None:
    for position, other in enumerate(known):
        if same_run(new.results, other.results):
            seconds = new.seconds if other.seconds is None else other.seconds
            # a reference keeps the code that trained it; a dvc.lock may have been brought up to date with later code
            code = new.code or other.code
            known[position] = replace(other, names=(*other.names, *new.names), seconds=seconds, code=code)
            return
    known.append(new)
