"""What is recorded of a run: code, params, hashes of all it wrote, and what it was made with."""

from __future__ import annotations

import io
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onecycle import experiments, paths, provenance, revisions, yaml_values
from onecycle.dvc_lock import Lock, parse_graph, parse_lock, recorded_params
from onecycle.errors import UserError
from onecycle.git_command import complaint, run_git
from onecycle.revisions import Place
from onecycle.tracking import patch, source

if TYPE_CHECKING:
    from onecycle.tracking.lookup import StoredRow


@dataclass(frozen=True)
class Record:
    """A run, and all that it takes to make it again."""

    place: Place
    """Where its results are read from."""
    commit: str
    """Holds its code, but for `changes`."""
    changes: bytes
    """What `git apply` adds; empty where the commit holds everything."""
    lock: bytes
    """Its dvc.lock; empty where only the hashes are kept that it held."""
    params: Mapping[str, str]
    """By dotted key, as YAML spells them: of the row, or those its stages ran with."""
    stages: Lock
    """dvc.lock, read."""
    tags: Mapping[str, str]
    """What it was made with, as its row or its environment.json says; nothing where it has neither."""
    row: StoredRow | None = None
    """Its row in MLflow, where it has one."""
    redacted: bool = False
    """Whether `changes` lack secrets."""
    trouble: str = ""
    """Why MLflow did not say whether it has a row of it."""

    @property
    def name(self) -> str:
        """As it was asked for."""
        return self.place.name


def find_record(name: str) -> Record:
    """What is recorded of an MLflow run, a DVC experiment, a git revision, a reference run or the workspace.

    Raises:
        UserError: there is no such run, or what is known of it is too little to make it again.
    """
    place = revisions.find_one(name)
    if place.row:
        return _of_row(place, place.row)
    commit = place.commit or (_head() if name == revisions.WORKSPACE else None)
    if commit is None:
        return _of_reference(place)
    changes = patch.Patch(b"", "")
    if name == revisions.WORKSPACE:
        changes = patch.take()
        if changes.note and not changes.content:
            raise UserError(f"the changes of the workspace are {changes.note}; commit them")
    from onecycle.tracking.lookup import row_of_lock

    lock = place.read(paths.DVC_LOCK)
    if lock is None:
        raise UserError(f"{place.of(paths.DVC_LOCK)} is missing, so nothing is recorded of it; {place.remedy}")
    stages = _parsed(place, lock)
    params = {key: yaml_values.spelled(value) for key, value in recorded_params(stages).items()}
    row, trouble = None, ""
    try:
        row = row_of_lock(lock)
    except UserError as error:  # which takes nothing that is needed to make it again
        trouble = str(error)
    redacted = changes.note == patch.REDACTED
    tags = row.tags if row else {}
    return Record(place, commit, changes.content, lock, params, stages, tags, row, redacted, trouble)


def _of_reference(place: Place) -> Record:
    """A run below results/reference, which keeps the hashes of its dvc.lock, and names its commit and machine."""
    made, made_with = provenance.recorded(place), provenance.kept_environment(place)
    if made_with.commit is None or not made.outputs:
        raise UserError(
            f"{place.name} is a folder, and says nothing of the code that made it; give a run, or a revision"
        )
    commit = _present(made_with.commit, place.name)
    try:
        graph = parse_graph(Place(place.name, commit).need(paths.DVC_YAML))
    except ValueError as error:
        raise UserError(f"{paths.DVC_YAML} of {place.name}: {error}") from None
    stages = {
        name: {
            "deps": _known(stage, ("deps",), made.code),
            "outs": _known(stage, ("outs", "metrics", "plots"), made.outputs),
        }
        for name, stage in graph.items()
    }
    params = {key: yaml_values.spelled(value) for key, value in place.params().items()}
    made_by_run = {name: entry for name, entry in stages.items() if entry["outs"]}
    return Record(place, commit, b"", b"", params, made_by_run, provenance.tags(made_with))


def _known(stage: Mapping[str, Any], sections: Sequence[str], hashes: Mapping[str, str]) -> list[dict[str, str]]:
    """Those files of a stage in dvc.yaml whose hash is kept, as dvc.lock would have them."""
    listed = [path for section in sections for path in stage.get(section, ())]
    names = [next(iter(path)) if isinstance(path, dict) else str(path) for path in listed]
    return [{"path": path, "md5": hashes[path]} for path in names if path in hashes]


def _of_row(place: Place, row: StoredRow) -> Record:
    if row.status != "FINISHED":
        raise UserError(f"run {row.run_id} is {row.status}, so there is no result of it; give a FINISHED one")
    commit, lock = row.tags.get("git.commit"), row.artifact(source.LOCK)
    if commit is None:
        raise UserError(f"run {row.run_id} was made outside a git commit, so nobody knows its code")
    if lock is None:
        raise UserError(
            f"run {row.run_id} holds no {paths.DVC_LOCK}: it is of a stage run by hand, or its command was killed; "
            "`dvc repro` makes a row that can be made again"
        )
    changes = row.artifact(source.PATCH) or b""
    if not changes and row.tags.get("git.dirty") == "true":
        found = _experiment_of(row, lock)
        lacking = source.changed_besides_params(row.tags) or "git.changed" not in row.tags
        why = row.tags.get("git.patch", "from a time when rows kept no patch")
        if found:
            commit = found
        elif lacking and why != patch.EMPTY:
            raise UserError(
                f"run {row.run_id} was made with changes that are in no commit ({row.tags.get('git.changed')}), and "
                f"holds no patch of them ({why}); commit before you run"
            )
    redacted = row.tags.get("git.patch") == patch.REDACTED
    stages, commit = _parsed(place, lock), _present(commit, f"run {row.run_id}")
    return Record(place, commit, changes, lock, row.params, stages, row.tags, row, redacted)


def _parsed(place: Place, lock: bytes) -> Lock:
    try:
        stages = parse_lock(lock)
    except ValueError:
        stages = {}
    if not stages:
        raise UserError(f"{place.of(paths.DVC_LOCK)} is no dvc.lock with stages")
    return stages


def _experiment_of(row: StoredRow, lock: bytes) -> str | None:
    """The commit that DVC made of the row's experiment, if it is still there and the row is of it."""
    wanted = row.tags.get("dvc.exp_name"), row.tags.get("dvc.baseline")
    found = (one for one in experiments.finished() if (one.name, one.baseline) == wanted)
    return next((one.commit for one in found if Place(one.name, one.commit).read(paths.DVC_LOCK) == lock), None)


def _head() -> str:
    return _present("HEAD", "the workspace")


def _present(commit: str, whose: str) -> str:
    """The commit in full, if this repository has it."""
    done = run_git("rev-parse", "--verify", "--quiet", f"{commit}^{{commit}}")
    if done.returncode == 0:
        return done.stdout.decode().strip()
    if done.stderr:
        raise UserError(f"git cannot be asked for the commit of {whose}: {complaint(done)}")
    shallow = run_git("rev-parse", "--is-shallow-repository").stdout.strip() == b"true"
    advice = "`git fetch --unshallow` may bring it" if shallow else "fetch the branch that held it, or ask who has it"
    raise UserError(f"the commit of {whose}, {commit[:12]}, is not in this repository; {advice}")


def set_params(file: Path, values: Mapping[str, str]) -> list[str]:
    """Make a params.yaml say `values`; returns the keys that said something else, or nothing."""
    from ruamel.yaml import YAML

    yaml = YAML()
    tree = yaml.load(file.read_text(encoding="utf-8"))
    now = yaml_values.flat(tree)
    changed = [key for key, value in values.items() if key not in now or not yaml_values.same(now[key], value)]
    for key in changed:
        *sections, last = key.split(".")
        inside = tree
        for section in sections:
            inside = inside.setdefault(section, {})
        inside[last] = yaml.load(values[key])
    if changed:
        with file.open("w", encoding="utf-8") as stream:
            yaml.dump(tree, stream)
    return changed


def without_stages(lock: bytes, stages: Collection[str]) -> bytes:
    """A dvc.lock without the entries of some stages, else as DVC wrote it."""
    if not stages:
        return lock
    from ruamel.yaml import YAML

    yaml, stream = YAML(), io.BytesIO()
    tree = yaml.load(lock)
    for stage in stages:
        tree["stages"].pop(stage, None)
    yaml.dump(tree, stream)
    return stream.getvalue()
