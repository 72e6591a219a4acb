"""`onecycle sync --from-git`: rows for what git and DVC still know, when mlflow.db is gone.

That is each DVC experiment, each committed reference run, and dvc.lock in the workspace. Nothing is checked out: a
dvc.lock names every result by its MD5, so each is taken from the commit or from DVC's cache, wherever it still is.
A row that the store has already is left alone.
"""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from onecycle import experiments, params, paths, provenance, restoring, yaml_values
from onecycle.dvc_lock import evaluated_model, outdated, outputs, parse_lock, read_lock, recorded_params
from onecycle.errors import UserError
from onecycle.git_command import git_says
from onecycle.revisions import REFERENCE, WORKSPACE, Place, references
from onecycle.tracking import context, registry, source
from onecycle.tracking.collect import STAGES, Findings, collect
from onecycle.tracking.errors import DeletedRowError, StoreError
from onecycle.tracking.execution import Execution, Process
from onecycle.tracking.filling import TRAINED_TAG, log
from onecycle.tracking.journal import Journal, root
from onecycle.tracking.sender import send
from onecycle.tracking.store import EXPERIMENT_PREFIX, Store, connect

NOBODY = Process(platform.node(), 0, 0.0)
"""Stands for the processes of an execution that is long over."""


@dataclass(frozen=True)
class Past:
    """A run that left its results in git."""

    place: Place
    commit: str
    """That it started from; of a reference run, that keeps it."""
    started: int
    """Milliseconds since 1970, as good as git knows."""
    experiment: str | None = None
    """DVC's name of it."""


def rebuild() -> Iterator[str]:
    """Add the rows that the store has not got; yields a line a row.

    Raises:
        UserError: the store does not take them, or DVC cannot be asked for its cache.
    """
    cache = restoring.cache()
    for past in (*_experiments(), *_workspace(), *_references()):  # of the last, one may be the workspace's, too
        try:
            yield f"{past.place.name}: {_add(past, cache)}"
        except StoreError as error:
            raise UserError(f"{error}; run `onecycle sync --from-git` again when the store is back") from None
        except (ValueError, OSError) as error:  # what it holds is not what DVC or a person would have written
            yield f"{past.place.name}: {error}, so no row"


def _add(past: Past, cache: Path) -> str:
    with TemporaryDirectory(prefix="onecycle-") as temporary:
        folder = Path(temporary)
        restoring.restore(past.place, cache, folder, restoring.link)
        values = _params(folder)
        if "data.dataset" not in values:
            return "no params, so no row"
        lock = past.place.read(paths.DVC_LOCK) or b""
        left_over = outdated(parse_lock(lock))
        wanted = [stage for stage in STAGES if stage not in left_over]
        found = {stage: findings for stage in wanted if (findings := collect(stage, folder))}
        if not found:
            return "no results, so no row"
        digest = hashlib.sha256(lock).hexdigest() if lock else ""
        row = hashlib.sha256(f"{past.place.name} {digest}".encode()).hexdigest()[:32]
        same = {source.LOCK_TAG: digest, **({"dvc.baseline": past.commit} if past.experiment else {})}
        store = connect(EXPERIMENT_PREFIX + values["data.dataset"])
        try:
            if store.find(row) or (digest and store.has(same)) or (not digest and _has_model(store, past.place)):
                return "is there"
        except DeletedRowError:
            return "was deleted"
        journal = _journal(past, row, values, lock, found)
    send(journal, wait=60)
    return "added"


def _has_model(store: Store, place: Place) -> bool:
    """Whether the store knows the model of a run without a dvc.lock: then the row that made it is there, too."""
    md5 = provenance.recorded(place).model
    known = md5 is not None and (store.has({TRAINED_TAG: md5}) or registry.find(store.client, store.name, md5))
    return bool(known)


def _journal(past: Past, row: str, values: dict[str, str], lock: bytes, found: dict[str, Findings]) -> Journal:
    """What the run would have written; put in its place only when it is whole."""
    *_, last = found
    with TemporaryDirectory(prefix="rebuilding-", dir=_made(paths.state())) as temporary:
        journal = Journal(Path(temporary) / row)
        execution = Execution(NOBODY, None, past.experiment, past.commit if past.experiment else None)
        journal.append(
            "open",
            at=past.started,
            stage=last,
            row=row,
            params=values,
            execution=asdict(execution),
            process=asdict(NOBODY),
            workspace=str(paths.original_root()),
        )
        stages = parse_lock(lock)
        trained = outputs(stages).get(paths.MODEL.as_posix()) if lock else provenance.recorded(past.place).model
        tags = {**_tags(past, values), "rebuilt": "from git", **(source.lock_tags(lock) if lock else {})}
        tags[TRAINED_TAG] = trained or ""
        journal.append("tags", stage=last, values={name: value for name, value in tags.items() if value})
        if lock:
            file = journal.keep_content(source.LOCK.name, lock)
            journal.append("artifact", stage=last, file=file, folder=source.FOLDER)
        journal.append("close", at=past.started, stage=last, status="FINISHED")
        model = evaluated_model(stages)
        for stage, findings in found.items():
            journal.append("cached", stage=stage)
            log(journal, stage, findings, model_md5=model)
        return Journal(journal.folder.rename(_made(root()) / f"git-{row}"))


def _tags(past: Past, values: dict[str, str]) -> dict[str, str]:
    if past.place.name == WORKSPACE:
        return context.source(Execution(NOBODY), values)
    trained = provenance.kept_environment(past.place)
    commit = trained.commit or past.commit
    name = past.experiment or past.place.name
    tags = {"mlflow.runName": name, "git.commit": commit, "mlflow.source.git.commit": commit}
    if past.experiment and past.place.commit:
        changed = context.changed_between(commit, past.place.commit)
        overrides = context.overrides(values, commit) if paths.PARAMS.name in changed else ""
        tags |= {"dvc.exp_name": past.experiment, "dvc.baseline": commit, "params.changed": overrides}
        return tags | {"git.dirty": str(bool(changed)).lower(), "git.changed": ", ".join(changed[:20])}
    return tags | provenance.tags(trained) | {"params.changed": context.overrides(values, commit)}


# ------------------------------------------------------------------------------------------------ what git knows


def _experiments() -> Iterator[Past]:
    for one in experiments.finished():
        yield Past(Place(one.name, one.commit), one.baseline, one.finished * 1000, one.name)


def _references() -> Iterator[Past]:
    for folder in references():
        place = Place(str(folder.relative_to(REFERENCE)), folder=folder)
        commit, _, seconds = git_says(
            "log", "--no-show-signature", "-1", "--format=%H %ct", "--", str(folder)
        ).partition(" ")
        if commit:
            yield Past(place, commit, int(seconds) * 1000)


def _workspace() -> Iterator[Past]:
    if paths.DVC_LOCK.exists():
        started = int(paths.DVC_LOCK.stat().st_mtime * 1000)
        yield Past(Place(WORKSPACE, folder=Path()), git_says("rev-parse", "HEAD"), started)


def _params(folder: Path) -> dict[str, str]:
    """A run's params as a row has them; where dvc.lock differs from params.yaml, it knows what was used."""
    file = folder / paths.PARAMS
    if not file.exists():
        return {}
    try:
        values = params.flatten(params.load(file))
    except UserError:  # of a time when there were other knobs
        values = yaml_values.load_flat(file.read_bytes())
    spelled = {name: yaml_values.spelled(value) for name, value in values.items()}
    for name, value in recorded_params(read_lock(folder)).items():
        if name not in spelled or not yaml_values.same(value, spelled[name]):
            spelled[name] = yaml_values.spelled(value)
    return spelled


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder
