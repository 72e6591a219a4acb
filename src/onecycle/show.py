"""`onecycle show <run>`: what is known of a run, in the terminal: its row in MLflow, or what git and dvc.lock tell.

    onecycle show 3f2a…                 # or a DVC experiment, a git revision, models:/name@alias, `workspace`

The terminal gets what tells runs apart; `--json` everything.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from onecycle import experiments, paths, provenance, restoring, revisions, yaml_values
from onecycle.dvc_lock import Lock, outdated
from onecycle.errors import UserError
from onecycle.git_command import git_says
from onecycle.revisions import Place
from onecycle.tables import Page, Table
from onecycle.tracking import context, describe, source
from onecycle.tracking.collect import STAGES, collect
from onecycle.tracking.lookup import StoredRow, row_of_lock, rows_with

HEADINGS = ("test/", "validation/", "train/", "test_epoch/", "lr_range/", "stats/")
"""Before the metrics' names, in the order in which they are told."""
SMALL = (paths.STATS_JSON, paths.LR_RANGE_SUGGESTION, paths.TRAIN_METRICS, paths.HISTORY, paths.EVALUATE_METRICS)
"""Files that tell a run's metrics."""
_MADE_WITH = ("device", "threads", "hardware.", "os", "version.")
_MADE_FROM = ("git.", "params.edited", "dvc.exp_name", "dvc.baseline", "mlflow.source.name", "rebuilt")
_AGAIN = ("reproduces", "reproduction.verdict", "reproduced.at", "reproduced.verdict")


@dataclass(frozen=True)
class Stage:
    """What became of a stage in the run's execution."""

    name: str
    became: str
    """ran, cached, …; empty where no row tells."""
    outputs: int
    made_by: str
    """Where DVC kept what another run had made: that run's id; else empty."""


@dataclass(frozen=True)
class Known:
    """Everything that is known of a run."""

    place: Place
    row: StoredRow | None
    params: Mapping[str, str]
    changed: str | None
    """Params that differ from those of the commit it started from, as `dvc exp run` takes them; None if unknown."""
    metrics: Mapping[str, float]
    stages: tuple[Stage, ...]
    tags: Mapping[str, str]
    """Of its row; without one, what a reference run keeps of where it was made."""
    trouble: str = ""
    """Why MLflow did not say whether it has a row of it."""


def know(name: str) -> Known:
    """What is known of the run called `name`.

    Raises:
        UserError: there is no such run, or several, or it is to be looked for in MLflow, which cannot be asked.
    """
    place = revisions.find_one(name)
    lock = place.lock()
    params = {key: yaml_values.spelled(value) for key, value in place.params().items()}
    row, trouble = place.row, ""
    try:
        row = row or (row_of_lock(place.need(paths.DVC_LOCK)) if lock else None)
    except UserError as error:  # what git has is there all the same
        trouble = str(error)
    metrics = row.metrics if row else _metrics(place, lock)
    if not (row or lock or metrics):
        raise UserError(f"{place.name} holds no results, and no row is of it; {place.remedy}")
    changed = _changed(place, row, params)
    tags = row.tags if row else provenance.tags(provenance.kept_environment(place))
    return Known(place, row, params, changed, dict(metrics), tuple(_stages(row, lock)), tags, trouble)


def _metrics(place: Place, lock: Lock) -> dict[str, float]:
    """The last value of each, from the small files that lie with the run and are of it."""
    left_over = outdated(lock)
    with TemporaryDirectory(prefix="onecycle-") as temporary:
        folder = Path(temporary)
        restoring.put(place, SMALL, folder)
        found: dict[str, float] = {}
        try:
            for findings in (collect(stage, folder) for stage in STAGES if stage not in left_over):
                for values in (findings.metrics, *(values for _, values in findings.series)):
                    found |= values
        except (OSError, ValueError) as error:  # no files that a stage has written
            raise UserError(f"{place.name}: its results cannot be read: {error}") from None
        return found


def _changed(place: Place, row: StoredRow | None, params: Mapping[str, str]) -> str | None:
    if row:
        return row.tags.get("params.changed", "") if "git.commit" in row.tags else None
    if place.commit:
        baseline = {one.commit: one.baseline for one in experiments.finished()}.get(place.commit)
        return context.overrides(params, baseline) if baseline else ""
    return context.overrides(params, "HEAD") if place.folder == Path() else None


def _stages(row: StoredRow | None, lock: Lock) -> Iterator[Stage]:
    told = dict(part.split(" ", 1) for part in row.tags.get("dvc.stages", "").split(", ") if part) if row else {}
    for name in dict.fromkeys([*lock, *told]):
        became, made_by = told.get(name, ""), ""
        if row and became == "cached" and name in lock:
            same = rows_with({f"{source.OUTPUTS_TAG}{name}": source.outputs_digest(name, lock)})
            made_by = next((other.run_id for other in reversed(same) if _ran(name, other)), "")
        yield Stage(name, became, len(lock.get(name, {}).get("outs", ())), made_by)


def _ran(stage: str, row: StoredRow) -> bool:
    return f"{stage} ran" in row.tags.get("dvc.stages", "").split(", ")


def page(known: Known) -> Page:
    """For the terminal."""
    row = known.row
    said: list[str | Table] = [_headline(known)]
    if known.changed is not None:
        said.append(f"Params changed from the commit's: {known.changed or 'none'}")
    if row is None:
        lacking = (
            "No row in MLflow is of it" if known.stages else f"It keeps no {paths.DVC_LOCK}, by which a row is found"
        )
        said.append(f"{known.trouble or lacking}; what follows is what its files tell.")
    else:
        rows = [(stage.name, stage.became, str(stage.outputs), stage.made_by) for stage in known.stages]
        said.append(Table("Stages", ("stage", "here", "outputs", "made in run"), rows))
    told_apart = (metric for metric in known.metrics.items() if not metric[0].startswith("system/"))
    shown = [(name, _spelled(value)) for name, value in sorted(told_apart, key=_place_of)]
    said += [Table("Metrics, the last value of each", ("metric", ""), shown)] if shown else []
    for title, wanted in (("Made from", _MADE_FROM), ("Made with", _MADE_WITH), ("Made again", _AGAIN)):
        told = [(name, value) for name, value in sorted(known.tags.items()) if name.startswith(wanted)]
        said += [Table(title, ("", ""), told)] if told else []
    said += _commands(known)
    return said


def _spelled(value: float) -> str:
    return f"{value:.0f}" if value.is_integer() and abs(value) < 1e15 else f"{value:.6g}"


def document(known: Known) -> dict[str, Any]:
    """Everything, for a program."""
    return {
        "name": known.place.name,
        "run_id": known.row.run_id if known.row else None,
        "status": known.row.status if known.row else None,
        "changed": known.changed,
        "stages": [vars(stage) for stage in known.stages],
        "metrics": dict(known.metrics),
        "params": dict(known.params),
        "tags": {name: value for name, value in known.tags.items() if name != "mlflow.note.content"},
    }


def _headline(known: Known) -> str:
    row = known.row
    if row is None:
        commit = known.place.commit or (
            git_says("rev-parse", "HEAD") if known.place.name == revisions.WORKSPACE else ""
        )
        return known.place.name + (f", commit {commit[:12]}" if commit else "")
    began = datetime.fromtimestamp(row.started / 1000).isoformat(" ", "seconds")
    took = f", {(row.ended - row.started) / 1000:,.0f} s" if row.ended else ""
    return f"{row.tags.get('mlflow.runName', known.place.name)}, run {row.run_id}: {row.status}, {began}{took}"


def _place_of(metric: tuple[str, float]) -> tuple[int, str]:
    name, _ = metric
    return next((n for n, start in enumerate(HEADINGS) if name.startswith(start)), len(HEADINGS)), name


def _commands(known: Known) -> list[str]:
    if known.row:
        return [line for line in describe.again(known.tags, known.row.run_id) if line]
    again = ["To make it again beside the workspace:", f"    onecycle reproduce {known.place.name}"]
    return again if known.stages else []
