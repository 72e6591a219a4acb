"""Where a run's files lie: workspace, git revision, DVC experiment, folder, row in MLflow. Nothing is checked out."""

from __future__ import annotations

import difflib
import json
import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onecycle import experiments, paths, yaml_values
from onecycle.dvc_lock import Lock, parse_lock
from onecycle.errors import UserError
from onecycle.git_command import complaint, run_git
from onecycle.refusals import shown

if TYPE_CHECKING:
    from onecycle.tracking.lookup import StoredRow

WORKSPACE = "workspace"
REFERENCE = Path("results/reference")
MODELS = "models:/"
RUN_ID = re.compile(r"[0-9a-f]{32}")
"""MLflow's; no git hash or abbreviation of one has that length by habit."""


def references() -> list[Path]:
    """The folders of the runs below results/reference: <recipe>/seed-<n>."""
    return sorted(file.parent for file in REFERENCE.glob(f"*/seed-*/{paths.PARAMS.name}"))


class AbsentError(UserError):
    """There is no such run, which is not the same as a run that is broken."""


@dataclass(frozen=True)
class Place:
    """A run by the name it was asked for, and its commit, or its folder, or its row."""

    name: str
    commit: str | None = None
    folder: Path | None = None
    row: StoredRow | None = None

    @classmethod
    def at(cls, folder: Path) -> Place:
        """The run in a folder, called as that is."""
        return cls(folder.as_posix(), folder=folder)

    def read(self, path: Path) -> bytes | None:
        """The file at `path`, relative to the workspace; None where there is none.

        Raises:
            UserError: it is there and cannot be read.
        """
        if self.row is not None:
            return self.row.read(path)
        return self._from_commit(path) if self.folder is None else self._from_folder(self.folder, path)

    def need(self, path: Path) -> bytes:
        """As `read`. Raises `UserError` where there is no such file, too."""
        content = self.read(path)
        if content is None:
            raise UserError(f"{self.of(path)} is missing; {self.remedy}")
        return content

    def json(self, path: Path) -> dict[str, Any] | None:
        """The object in a JSON file; None where there is no such file. Raises `UserError` for anything else."""
        content = self.read(path)
        if content is None:
            return None
        try:
            tree = json.loads(content)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{self.of(path)} is not valid JSON: {error}") from None
        if not isinstance(tree, dict):
            raise UserError(f"{self.of(path)} must hold keys and values, got {shown(tree)}")
        return tree

    def params(self) -> dict[str, Any]:
        """Its params by dotted key; empty where it has no params.yaml. Raises `UserError` where that cannot be read."""
        content = self.read(paths.PARAMS) or b""
        try:
            return yaml_values.load_flat(content)
        except ValueError as error:
            raise UserError(f"{self.of(paths.PARAMS)}: {error}") from None

    def lock(self) -> Lock:
        """Its dvc.lock; empty where it has none. Raises `UserError` where that cannot be read."""
        content = self.read(paths.DVC_LOCK) or b""
        try:
            return parse_lock(content)
        except ValueError as error:
            raise UserError(f"{self.of(paths.DVC_LOCK)}: {error}") from None

    def of(self, path: Path) -> str:
        """How an error names the file."""
        return path.as_posix() if self.name == WORKSPACE else f"{path.as_posix()} of {self.name}"

    @property
    def remedy(self) -> str:
        """What an error advises where a result is missing."""
        return "give a run that has evaluated" if self.row else "run `dvc repro` and commit the results"

    def _from_commit(self, path: Path) -> bytes | None:
        blob = f"{self.commit}:./{path.as_posix()}"  # ./ since the workspace may be a folder of a larger repository
        if run_git("rev-parse", "--verify", "--quiet", blob).returncode != 0:
            return None
        done = run_git("cat-file", "blob", blob)
        if done.returncode != 0:
            raise UserError(f"{self.of(path)} cannot be read: {complaint(done)}")
        return done.stdout

    def _from_folder(self, folder: Path, path: Path) -> bytes | None:
        parts = path.parts[1:] if path.parts[0] == "results" else path.parts
        for file in (folder / path, folder.joinpath(*parts)):  # like a workspace, or like what `onecycle demo` leaves
            try:
                return file.read_bytes()
            except (FileNotFoundError, NotADirectoryError):
                continue
            except OSError as error:
                raise UserError(f"{self.of(path)} cannot be read: {error.strerror}") from None
        return None


def find(name: str) -> Place:
    """The place of `workspace`, a model in MLflow, or, the first that there is, a git revision, a DVC experiment, a
    folder, one below results/reference, an MLflow run.

    Raises:
        AbsentError: nothing has that name.
        UserError: git or MLflow cannot be asked, or git knows several experiments of that name, or only a part of the
            history.
    """
    if name == WORKSPACE:
        return Place(name, folder=Path())
    if name.startswith(MODELS):
        return _stored(name)
    if not name or name.startswith("-"):
        raise UserError(f"{name!r} names no run; give a git revision, a DVC experiment, a folder, a run or {WORKSPACE}")
    repository = run_git("rev-parse", "--is-shallow-repository")
    if repository.returncode == 0:
        commit = _commit(name) or _experiment(name)
        if commit:
            return Place(name, commit)
    for folder in (Path(name), REFERENCE / name):
        with suppress(OSError):  # a name too long, or no right to look
            if folder.is_dir():
                return Place(name, folder=folder)
    if RUN_ID.fullmatch(name):
        return _stored(name)
    if repository.returncode != 0:
        raise UserError(f"{name} is no folder, and git cannot be asked for it: {complaint(repository)}")
    if repository.stdout.strip() == b"true":
        raise UserError(
            f"{name} is not in this shallow clone; fetch the whole history: "
            "`fetch-depth: 0` for actions/checkout, `git fetch --unshallow` elsewhere"
        )
    recipes = [folder.name for folder in REFERENCE.glob("*/")]
    names = [WORKSPACE, *recipes, *(one.name for one in experiments.finished())]
    close = difflib.get_close_matches(name, names, n=1)
    hint = f"; did you mean {close[0]}?" if close else ""
    raise AbsentError(f"there is no git revision, DVC experiment, folder, recipe or MLflow run called {name}{hint}")


def find_one(name: str) -> Place:
    """As `find`, of a recipe with one seed that run. Raises `UserError` for one with several, too."""
    runs = seeds(find(name))
    if len(runs) > 1:
        raise UserError(f"{name} is a recipe of {len(runs)} runs; give one of {', '.join(run.name for run in runs)}")
    return runs[0]


def seeds(place: Place) -> tuple[Place, ...]:
    """The runs that a folder of one recipe holds, one a seed; any other place is one run."""
    if place.folder is None:
        return (place,)
    folders = sorted((file.parent for file in place.folder.glob(f"seed-*/{paths.PARAMS.name}")), key=_by_number)
    return tuple(map(Place.at, folders)) or (place,)


def _by_number(folder: Path) -> tuple[int, str]:
    return (len(folder.name), folder.name)


def _stored(name: str) -> Place:
    from onecycle.tracking.lookup import find_row  # takes a second to load what it needs

    row = find_row(name)
    if row is None:
        raise AbsentError(f"there is no {name} in MLflow's store")
    return Place(name, row=row)


def _commit(revision: str) -> str | None:
    done = run_git("rev-parse", "--verify", "--quiet", f"{revision}^{{commit}}")
    return done.stdout.decode().strip() if done.returncode == 0 else None


def _experiment(name: str) -> str | None:
    """The commit of a DVC experiment; of several with that name, of the one that started from HEAD."""
    found = {one.baseline: one.commit for one in experiments.finished() if one.name == name}
    if len(set(found.values())) > 1:
        here = found.get(_commit("HEAD") or "")
        if here is None:
            raise UserError(
                f"there are {len(found)} DVC experiments called {name}; give the commit of the one you mean"
            )
        return here
    return next(iter(found.values()), None)
