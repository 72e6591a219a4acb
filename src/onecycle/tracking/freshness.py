"""Whether a stage's results on disk are what DVC recorded for the code, data and params that are there now."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from onecycle import paths
from onecycle.tracking import yaml_values

_SMALL = 1_000_000
"""Bytes up to which a file is hashed; of a larger one only the size is compared, since a stage must not wait for it."""

Lock = Mapping[str, Mapping[str, Any]]


def read_lock(root: Path = Path()) -> Lock:
    """dvc.lock: stage → what it read and wrote; empty when there is none."""
    file = root / paths.DVC_LOCK
    return parse_lock(file.read_bytes()) if file.exists() else {}


def parse_lock(content: bytes) -> Lock:
    """What `read_lock` gives, of a dvc.lock that lies elsewhere. Raises `ValueError` for what is no YAML."""
    stages: Lock = yaml_values.load(content).get("stages", {})
    return stages


def recorded_params(lock: Lock) -> dict[str, Any]:
    """The params that the stages in `lock` ran with, with dotted keys."""
    return {
        name: value
        for stage in lock.values()
        for name, value in yaml_values.flat(stage.get("params", {}).get(paths.PARAMS.name, {})).items()
    }


def fresh(stage: str, lock: Lock, params: Mapping[str, str], root: Path = Path()) -> bool:
    """Whether `stage` was recorded with these params, and what it read and wrote is unchanged.

    Args:
        params: dotted key → value, as the row has them.
    """
    entry = lock.get(stage)
    if entry is None:
        return False
    recorded = yaml_values.flat(entry.get("params", {}).get(paths.PARAMS.name, {}))
    written = {out["path"]: out for other in lock.values() for out in other.get("outs", ())}
    return (
        all(key in params and yaml_values.same(value, params[key]) for key, value in recorded.items())
        and all(_unchanged(dep, written.get(dep["path"]), root) for dep in entry.get("deps", ()))
        and all(_unchanged(out, None, root) for out in entry.get("outs", ()))
    )


def _unchanged(recorded: Mapping[str, Any], producer: Mapping[str, Any] | None, root: Path) -> bool:
    """Whether a path holds what was recorded; what another stage wrote is compared with that stage's record."""
    if producer is not None:
        return bool(recorded.get("md5") == producer.get("md5"))
    path = root / recorded["path"]
    if not path.is_file():
        return path.is_dir() and str(recorded.get("md5", "")).endswith(".dir")
    size = path.stat().st_size
    if size != recorded.get("size"):
        return False
    return size > _SMALL or hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest() == recorded.get("md5")
