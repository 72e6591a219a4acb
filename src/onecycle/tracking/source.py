"""What a row holds so that it can be made again: the dvc.lock it ended with, and the changes that no commit has."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

from onecycle import paths
from onecycle.dvc_lock import Lock, hashes, parse_lock

FOLDER = "source"
"""Of a row's artifacts."""
LOCK = Path(FOLDER) / paths.DVC_LOCK.name
PATCH = Path(FOLDER) / "changes.patch"
LOCK_TAG = "dvc.lock"
"""Holds the SHA-256 of dvc.lock."""
OUTPUTS_TAG = "outputs."
"""Before a stage's name: what it wrote, or what DVC kept of it, as a short digest."""


def changed_besides_params(tags: Mapping[str, str]) -> list[str]:
    """The files that were changed in no commit when a row with these tags was made, but for params.yaml: its params
    are in the row."""
    return [name for name in tags.get("git.changed", "").split(", ") if name and Path(name).name != paths.PARAMS.name]


def lock_tags(lock: bytes) -> dict[str, str]:
    """The tags by which rows with the same results are found: all of them, and stage by stage."""
    parsed = parse_lock(lock)
    stages = {f"{OUTPUTS_TAG}{stage}": outputs_digest(stage, parsed) for stage in parsed}
    return {LOCK_TAG: hashlib.sha256(lock).hexdigest(), **stages}


def outputs_digest(stage: str, lock: Lock) -> str:
    """A short digest of the paths and hashes that dvc.lock has of a stage's outputs."""
    outputs = sorted(hashes(lock[stage], "outs").items())
    return hashlib.sha256(json.dumps(outputs).encode()).hexdigest()[:16]
