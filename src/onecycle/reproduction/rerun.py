"""One run made again, from its record to the verdict."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from onecycle import dvc_command, params, paths, restoring
from onecycle.dvc_lock import Lock, outputs, parse_graph, read_lock, undone
from onecycle.errors import UserError
from onecycle.reproduction import agreement, surroundings
from onecycle.reproduction.agreement import Agreement, Measured
from onecycle.reproduction.record import Record, find_record, set_params, without_stages
from onecycle.reproduction.surroundings import Difference
from onecycle.reproduction.worktree import Worktree, worktree
from onecycle.revisions import Place
from onecycle.tracking.source import changed_besides_params
from onecycle.tracking.sync import sync
from onecycle.yaml_values import load_flat

if TYPE_CHECKING:
    from onecycle.tracking.lookup import StoredRow

T = TypeVar("T")

RUNNING = re.compile(r"Running stage '(?P<stage>[^']+)'")
"""How DVC says that a stage is not taken from its cache."""
DVC_CONFIG = Path(".dvc/config.local")


@dataclass(frozen=True)
class Options:
    """How a run is to be made again."""

    first: str | None = None
    """The first stage to run again whatever is in the cache; None: DVC decides."""
    from_scratch: bool = False
    """With a cache of its own, so that every stage runs."""
    recorded_packages: bool = False
    """In a virtual environment with the packages that the run's requirements.lock pins."""


@dataclass(frozen=True)
class Reproduction:
    """What came of it."""

    record: Record
    agreement: Agreement
    stages: Sequence[str]
    """The pipeline's, in its order."""
    ran: Sequence[str]
    """Those that ran again."""
    notes: Sequence[str] = ()
    row: StoredRow | None = field(default=None, repr=False)
    """Its own row in MLflow; None where no stage ran, or the store does not take it."""


def reproduce(name: str, options: Options) -> Reproduction:
    """Make a run again beside the workspace, which stays as it is, and compare.

    What is about to differ, and what stages say, goes to stderr.

    Raises:
        UserError: nothing is known of the run, or it cannot be made again.
    """
    limits = params.load(paths.PARAMS).gate
    record = find_record(name)
    attempt = uuid.uuid4().hex[:12]
    with worktree(record.commit, attempt) as tree:
        return _reproduce_in(tree, record, options, attempt, limits)


def _reproduce_in(
    tree: Worktree, record: Record, options: Options, attempt: str, limits: params.GateParams
) -> Reproduction:
    graph = _prepare(tree, record)
    not_made = undone(graph, record.stages, record.params)
    stages = [stage for stage in graph if stage not in not_made]
    if not stages:
        raise UserError(f"{paths.DVC_LOCK} of {record.name} records no stage of its {paths.DVC_YAML}")
    if options.first and options.first not in stages:
        raise UserError(f"--from must be one of {', '.join(stages)}, got {options.first}")
    if options.first and not record.lock:
        raise UserError(
            f"--from needs the {paths.DVC_LOCK} of {record.name}, which keeps none; --from-scratch needs none"
        )
    python = _python(tree, options)
    here = surroundings.here(python, tree.folder)
    differing = surroundings.differences(record.tags, here)
    _tell(record, differing, options)
    causes = [*differing, *surroundings.noise(record.tags, here, record.params)]
    files = restoring.cache()
    again = stages[stages.index(options.first) :] if options.first else []
    _furnish(tree, record, options, files, again)
    recorded = agreement.measured(record.place)  # before the hours in which the workspace may get another run's
    ran = _run(tree, stages, options, python, f"{record.row.run_id if record.row else record.commit} {attempt}")
    causes += surroundings.elsewhere(ran, record.tags)
    unsent = _sent()
    notes = []
    if not_made:
        notes.append(f"the run did not make what {', '.join(not_made)} would, so that is not compared")
    found = _compare(tree, record, recorded, stages, causes, files, limits, notes)
    row = None
    try:
        if ran:  # else it was not made again, and no row is to say so
            row = _own_row(attempt)
            if unsent and (row is None or row.status == "RUNNING"):  # else it is of other rows
                notes.append(f"MLflow has not got the {'whole ' if row else ''}row yet: {unsent}")
            _link(record, row, found.verdict)
    except UserError as error:  # what came of hours of work is told all the same
        notes.append(f"MLflow cannot be told: {error}")
    return Reproduction(record, found, stages, ran, notes, row)


def _prepare(tree: Worktree, record: Record) -> Lock:
    """Put code and params in place; returns dvc.yaml's stages in the pipeline's order."""
    if record.changes:
        tree.apply(record.changes)
    graph = _read(tree, record, paths.DVC_YAML, parse_graph)
    _read(tree, record, paths.PARAMS, load_flat)
    for key in set_params(tree.folder / paths.PARAMS, record.params):
        print(f"reproduce: {key} is set to {record.params[key]}, as it was", file=sys.stderr)
    return graph


def _read(tree: Worktree, record: Record, file: Path, parsed: Callable[[bytes], T]) -> T:
    try:
        return parsed((tree.folder / file).read_bytes())
    except FileNotFoundError:
        raise UserError(f"commit {record.commit[:12]} has no {file} where this workspace has its own") from None
    except ValueError as error:
        raise UserError(f"{file} of {record.name}: {error}") from None


def _python(tree: Worktree, options: Options) -> Path:
    if not options.recorded_packages:
        return Path(sys.executable)
    lock = tree.folder / "requirements.lock"
    if not lock.exists():
        raise UserError("--env needs the requirements.lock of the run's commit, which has none")
    return surroundings.interpreter(tree.folder, hashlib.sha256(lock.read_bytes()).hexdigest()[:16])


def _tell(record: Record, differing: Sequence[Difference], options: Options) -> None:
    """What is about to happen, and what will differ."""
    row = f", run {record.row.run_id}" if record.row and record.name != record.row.run_id else ""
    changes = " with the changes that were in no commit" if record.changes else ""
    print(f"reproduce: {record.name}{row}, from commit {record.commit[:12]}{changes}", file=sys.stderr)
    if record.redacted:
        print("reproduce: its patch lacks secrets that were in the code; what reads them will differ", file=sys.stderr)
    if not record.lock and (lacking := changed_besides_params(record.tags)):
        print(f"reproduce: its changes of {', '.join(lacking)} are in no commit, and not made again", file=sys.stderr)
    if not record.tags:
        why = record.trouble or "no row in MLflow is of it"
        print(f"reproduce: {why}, so what it was made with is not known", file=sys.stderr)
    for difference in differing if record.tags else ():
        print(f"reproduce: not as it was: {difference}", file=sys.stderr)
    packages = [one for one in differing if f"version.{one.what}" in record.tags]
    if packages and not options.recorded_packages:
        command = f"onecycle reproduce {record.name} --env"
        print(f"reproduce: `{command}` installs and uses the packages that its commit pins", file=sys.stderr)


def _furnish(tree: Worktree, record: Record, options: Options, files: Path, again: Sequence[str]) -> None:
    """Give the worktree its settings, and the cache, dvc.lock and outputs it may use; none of the stages `again`."""
    settings = paths.original_root() / DVC_CONFIG
    if settings.exists():
        shutil.copy(settings, tree.folder / DVC_CONFIG)  # and its mode, since it may hold keys
    cache = tree.folder / ".dvc" / "cache" if options.from_scratch else files.parents[1]
    said = dvc_command.dvc("config", "--local", "cache.dir", str(cache), folder=tree.folder)
    if said.returncode != 0:
        raise UserError(f"DVC takes no cache for the worktree: {dvc_command.complaint(said)}")
    for path in outputs(record.stages):  # the commit may hold those of another run
        restoring.remove_output(record.place, tree.folder, Path(path))
    if options.from_scratch or not record.lock:
        (tree.folder / paths.DVC_LOCK).unlink(missing_ok=True)  # DVC's cache knows runs by what they read, too
        return
    (tree.folder / paths.DVC_LOCK).write_bytes(without_stages(record.lock, again))
    kept = {name: entry for name, entry in record.stages.items() if name not in again}
    for path, md5 in outputs(kept).items():
        restoring.restore_output(record.place, files, tree.folder, Path(path), md5, restoring.copy)


def _run(tree: Worktree, stages: Sequence[str], options: Options, python: Path, reproduces: str) -> list[str]:
    """Run what DVC holds for changed or missing; returns the stages that ran.

    One command, so that it is one row. Where a stage is to run whatever is in the cache, its entry in dvc.lock is gone,
    and no earlier run of it counts.
    """
    command = ["repro", *(["--no-run-cache"] if options.first else []), *stages]
    environment = {key: value for key, value in dvc_command.environment().items() if not key.startswith("DVC_")}
    environment |= {"PATH": f"{python.parent}{os.pathsep}{environment['PATH']}", paths.REPRODUCES: reproduces}
    ran: list[str] = []
    try:
        for line in tree.run([str(python), "-m", "dvc", *command], environment):
            print(line, end="", file=sys.stderr, flush=True)
            if started := RUNNING.match(line):
                ran.append(started["stage"])
    except subprocess.CalledProcessError as error:
        at = f" in stage {ran[-1]}" if ran else ""
        raise UserError(
            f"`dvc {' '.join(command)}` fails{at} with exit code {error.returncode}; what it says is above"
        ) from None
    return [stage for stage in stages if stage in ran]


def _sent() -> str:
    """See to it that the row is in the store; returns what is in the way, which may be in that of other rows only."""
    try:
        for _ in sync():
            pass
    except UserError as error:
        return str(error)
    return ""


def _compare(
    tree: Worktree,
    record: Record,
    recorded: Measured,
    stages: Sequence[str],
    causes: Sequence[Difference],
    files: Path,
    limits: params.GateParams,
    notes: list[str],
) -> Agreement:
    then, now = record.stages, read_lock(tree.folder)
    stages = [stage for stage in stages if stage in then or stage in now]
    again = agreement.measured(Place(f"{record.name}, again", folder=tree.folder))
    notes += [*recorded.notes, *again.notes]
    outputs = agreement.outputs(then, now, stages)
    md5 = next((one.recorded for one in outputs if one.path == paths.MODEL.as_posix()), None)
    recorded_model = restoring.cached_file(files, md5) if md5 else None
    found_weights = found_predictions = None
    try:  # hashes and metrics are compared whatever becomes of the rest
        if not (tree.folder / paths.MODEL).is_file():
            notes.append("no model was written, so no weights are compared")
        elif recorded_model is None:
            notes.append("the recorded model is not in DVC's cache any more: its hash is compared, not each tensor")
        else:
            found_weights = agreement.weights(recorded_model, tree.folder / paths.MODEL)
    except UserError as error:
        notes.append(f"no weights are compared: {error}")
    try:
        found_predictions = agreement.predictions(recorded, again)
    except UserError as error:
        notes.append(f"no predictions are compared: {error}")
    return Agreement(
        outputs,
        agreement.changed_code(then, now, stages),
        agreement.metrics(recorded, again),
        found_weights,
        found_predictions,
        causes,
        limits,
    )


def _own_row(attempt: str) -> StoredRow | None:
    from onecycle.tracking.lookup import rows_with

    return next(iter(rows_with({"reproduction": attempt})), None)


def _link(record: Record, row: StoredRow | None, verdict: str) -> None:
    """The first row says when it was made again and what came of it, and is otherwise left as it is."""
    if row:
        row.tag({"reproduction.verdict": verdict})
    if record.row:
        now = datetime.now(UTC).isoformat(timespec="seconds")
        record.row.tag({"reproduced.at": now, "reproduced.verdict": verdict})
