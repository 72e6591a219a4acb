"""What dvc.lock says of stages: whether results on disk are what it recorded, and which a command left undone."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from onecycle import paths, yaml_values
from onecycle.errors import UserError

CODE = ("src/", "stages/")
"""Where the dependencies begin that are code, and no stage's output."""
WITHOUT_FIGURES = "report"
"""The stage that changes no figure."""
SMALL = 1_000_000
"""Bytes up to which a file is hashed; of a larger one only the size is compared, since a stage must not wait for it."""

Lock = Mapping[str, Mapping[str, Any]]


def read_lock(root: Path = Path()) -> Lock:
    """dvc.lock: stage → what it read and wrote; empty when there is none. Raises `UserError` for what is none."""
    file = root / paths.DVC_LOCK
    try:
        return parse_lock(file.read_bytes()) if file.exists() else {}
    except ValueError as error:
        raise UserError(f"{file.name}: {error}") from None


def parse_lock(content: bytes) -> Lock:
    """What `read_lock` gives, of a dvc.lock that lies elsewhere. Raises `ValueError` for what is none."""
    stages = yaml_values.load(content).get("stages", {})
    if not (isinstance(stages, dict) and all(_is_entry(entry) for entry in stages.values())):
        raise ValueError("holds no stages as DVC writes them")
    return stages


def parse_graph(content: bytes) -> Lock:
    """dvc.yaml's stages, in the pipeline's order. Raises `ValueError` for what is none."""
    stages = yaml_values.load(content).get("stages", {})
    if not (isinstance(stages, dict) and all(isinstance(stage, dict) for stage in stages.values())):
        raise ValueError("holds no stages as DVC reads them")
    return stages


def _is_entry(entry: object) -> bool:
    if not isinstance(entry, dict):
        return False
    params, files = entry.get("params", {}), (entry.get("deps", []), entry.get("outs", []))
    return (
        isinstance(params, dict)
        and all(isinstance(values, dict) for values in params.values())
        and all(isinstance(each, list) and all(_is_file(file) for file in each) for each in files)
    )


def _is_file(file: object) -> bool:
    return isinstance(file, dict) and isinstance(file.get("path"), str)


def hashes(entry: Mapping[str, Any], section: str) -> dict[str, str]:
    """Path → MD5 of what a stage read ("deps") or wrote ("outs"); empty where there is none."""
    return {file["path"]: str(file.get("md5") or "") for file in entry.get(section, ())}


def outputs(lock: Lock) -> dict[str, str]:
    """Path → MD5 of all that stages wrote."""
    return {path: md5 for entry in lock.values() for path, md5 in hashes(entry, "outs").items()}


def evaluated_model(lock: Lock) -> str | None:
    """The MD5 of the model that was evaluated."""
    return hashes(lock.get("evaluate", {}), "deps").get(paths.MODEL.as_posix())


def stage_params(entry: Mapping[str, Any]) -> dict[str, Any]:
    """The params that a stage ran with, with dotted keys."""
    return yaml_values.flat(entry.get("params", {}).get(paths.PARAMS.name, {}))


def recorded_params(lock: Lock) -> dict[str, Any]:
    """`stage_params` of all stages; where they differ, those of the first.

    A stage that was not run again after those before it still has the old ones.
    """
    found: dict[str, Any] = {}
    for entry in lock.values():
        found = stage_params(entry) | found
    return found


def fresh(stage: str, lock: Lock, params: Mapping[str, str], root: Path = Path()) -> bool:
    """Whether `stage` was recorded with these params, and what it read and wrote is unchanged.

    Args:
        params: dotted key → value, as the row has them.
    """
    if not _recorded(stage, lock, params):
        return False
    entry, written = lock[stage], _written(lock)
    read = [dep for dep in entry.get("deps", ()) if dep["path"] not in written]
    return all(_unchanged(path, root) for path in (*read, *entry.get("outs", ())))


def kept_params(kept: Iterable[str], reader: str, lock: Lock, params: Mapping[str, str]) -> dict[str, str]:
    """The params that the stages `kept` ran with where `params` now say otherwise: what is on disk of them is of those.

    As when a stage alone is run after an edit. What the stage `reader`, which runs, was recorded to read itself is left
    out: it has the new value. The report computes nothing with what it reads.
    """
    its_own = stage_params(lock.get(reader, {})) if reader != WITHOUT_FIGURES else {}
    found: dict[str, str] = {}
    for stage in kept:
        recorded = stage_params(lock.get(stage, {}))
        others = {
            key: yaml_values.spelled(recorded[key])
            for key in recorded.keys() & params.keys() - its_own.keys()
            if not yaml_values.same(recorded[key], params[key])
        }
        if others and fresh(stage, lock, {**params, **others}):  # which hashes files, mostly for nothing
            found |= others
    return dict(sorted(found.items()))


def undone(graph: Lock, lock: Lock, params: Mapping[str, str]) -> list[str]:
    """The stages that `dvc repro` would still run, as far as `lock` and `params` tell: not recorded, with other params,
    or from other outputs of the stages before. Frozen ones are left out.

    Args:
        graph: dvc.yaml's stages.
        params: as for `fresh`.
    """
    return [name for name, stage in graph.items() if not (stage.get("frozen") or _recorded(name, lock, params))]


def outdated(lock: Lock) -> list[str]:
    """The stages that read other files than those before them were recorded to have written, or what such a stage
    wrote: their results are of another run.
    """
    written = _written(lock)
    found = [stage for stage, entry in lock.items() if not _fits(entry, written)]
    while True:
        theirs = outputs({stage: lock[stage] for stage in found}).keys()
        more = [stage for stage in lock if stage not in found and hashes(lock[stage], "deps").keys() & theirs]
        if not more:
            return found
        found += more


def _recorded(stage: str, lock: Lock, params: Mapping[str, str]) -> bool:
    """Whether `stage` was recorded with these params, and with what the stages before it were recorded to have written.

    That holds whatever was changed on disk since.
    """
    entry, written = lock.get(stage), _written(lock)
    if entry is None:
        return False
    recorded = stage_params(entry)
    return _fits(entry, written) and all(
        key in params and yaml_values.same(value, params[key]) for key, value in recorded.items()
    )


def _fits(entry: Mapping[str, Any], written: Mapping[str, Mapping[str, Any]]) -> bool:
    """Whether a stage read what the stages before it were recorded to have written."""
    read = (dep for dep in entry.get("deps", ()) if dep["path"] in written)
    return all(dep.get("md5") == written[dep["path"]].get("md5") for dep in read)


def _written(lock: Lock) -> dict[str, Mapping[str, Any]]:
    """Path → what is recorded of it, of all that stages wrote."""
    return {out["path"]: out for stage in lock.values() for out in stage.get("outs", ())}


def _unchanged(recorded: Mapping[str, Any], root: Path) -> bool:
    """Whether a path holds what was recorded."""
    path = root / recorded["path"]
    if not path.is_file():
        return path.is_dir() and str(recorded.get("md5", "")).endswith(".dir")
    size = path.stat().st_size
    if size != recorded.get("size"):
        return False
    return size > SMALL or md5(path) == recorded.get("md5")


def md5_of(content: bytes) -> str:
    """The MD5 in hex of what a file holds, as dvc.lock has it."""
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


def md5(path: Path) -> str:
    """A file's MD5 in hex, as dvc.lock has it."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, partial(hashlib.md5, usedforsecurity=False)).hexdigest()
