"""What dvc.yaml says a stage reads, params and files, and whether that is still so when the stage ends.

DVC records the values and files that are there at a stage's end. Edited while it ran, they would be recorded as what
made its results.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onecycle import paths
from onecycle.dvc_lock import SMALL, md5, parse_graph
from onecycle.errors import UserError
from onecycle.yaml_values import load_flat, same, spelled, within


@dataclass(frozen=True)
class Inputs:
    """Of one stage, as they were when it began."""

    stage: str
    params: Mapping[str, Any]
    """Dotted key → value."""
    files: Mapping[str, str]
    """Path → MD5; of a large file the size, since a stage must not wait for it."""

    @classmethod
    def of(cls, stage: str) -> Inputs:
        """As they are now. Raises `UserError` where dvc.yaml or params.yaml cannot be read."""
        entry = _read(paths.DVC_YAML, parse_graph).get(stage, {})
        values = _read(paths.PARAMS, load_flat)
        wanted = tuple(name for name in entry.get("params", ()) if isinstance(name, str))
        read = {key: value for key, value in values.items() if within(key, wanted)}
        deps = (Path(dep) for dep in entry.get("deps", ()) if isinstance(dep, str))
        files = (file for dep in deps for file in (sorted(dep.rglob("*")) if dep.is_dir() else [dep]))
        return cls(stage, read, {file.as_posix(): _digest(file) for file in files if _is_hashed(file)})

    def check_unchanged(self) -> None:
        """Raises `UserError` where they are others now."""
        now = Inputs.of(self.stage)
        edited = [
            f"{key} in {paths.PARAMS} is {spelled(now.params.get(key, 'absent'))} and was {spelled(value)}"
            for key, value in self.params.items()
            if not same(now.params.get(key, "absent"), value)
        ]
        edited += [f"{file} is another" for file, before in self.files.items() if now.files.get(file) != before]
        edited += [f"{file} is new" for file in now.files if file not in self.files]
        if edited:
            again = " and goes on from its checkpoint" if self.stage == "train" else ""
            raise UserError(
                f"edited while {self.stage} ran: {'; '.join(edited)}; DVC would record that as what made its results. "
                f"Put it back and run `dvc repro`, which keeps what is done{again}, or run it as it is now"
            )


def _digest(file: Path) -> str:
    size = file.stat().st_size
    return md5(file) if size <= SMALL else f"{size} bytes"


def _is_hashed(file: Path) -> bool:
    """Whether DVC hashes it: .dvcignore leaves out what Python and editors lay beside the code."""
    beside = file.name.startswith(".") or file.name.endswith("~") or "__pycache__" in file.parts
    return file.is_file() and not beside


def _read(file: Path, parsed: Callable[[bytes], Mapping[str, Any]]) -> Mapping[str, Any]:
    try:
        return parsed(file.read_bytes()) if file.exists() else {}
    except ValueError as error:
        raise UserError(f"{file}: {error}") from None
