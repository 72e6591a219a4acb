"""Puts into a folder what a run left: from its commit, its row, or DVC's cache, wherever it still is.

Nothing is checked out. dvc.lock names every result by its MD5; what has its name and is something else is not taken.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path

from onecycle import dvc_lock, paths, provenance
from onecycle.dvc_command import dvc
from onecycle.errors import UserError
from onecycle.revisions import Place

MD5 = re.compile(r"[0-9a-f]{32}(\.dir)?")
"""As DVC writes it. Anything else, joined to a path, could lead to any file that its reader may read."""

FromCache = Callable[[Path, Path], object]
"""Puts a file of the cache at a path: `link` or `copy`."""


def link(cached: Path, target: Path) -> None:
    """For those who only look at it."""
    target.symlink_to(cached.resolve())


def copy(cached: Path, target: Path) -> None:
    """For a stage, which may write into it."""
    shutil.copyfile(cached, target)


def cache() -> Path:
    """DVC's cache of files by their MD5."""
    done = dvc("cache", "dir")
    if done.returncode != 0:
        raise UserError("`dvc cache dir` fails here; run from the workspace, the folder that holds dvc.yaml")
    return Path(done.stdout.strip().splitlines()[-1]) / "files" / "md5"


def cached_file(files: Path, md5: str) -> Path | None:
    """Where DVC's cache has the file, or a folder's list of files, with this MD5; None where it has not, or another."""
    if not MD5.fullmatch(md5):
        return None
    cached = files / md5[:2] / md5[2:]
    return cached if cached.is_file() and dvc_lock.md5(cached) == md5.removesuffix(".dir") else None


def restore(place: Place, files: Path, folder: Path, from_cache: FromCache) -> None:
    """Put into `folder` what there is of a run: its params, its dvc.lock, and results that are what that records.

    A reference run need not have a dvc.lock; its files are then taken as they are.
    """
    lock = place.lock()
    put(place, (paths.PARAMS, paths.DVC_LOCK, *(() if lock else provenance.KEPT)), folder)
    for path, md5 in dvc_lock.outputs(lock).items():
        restore_output(place, files, folder, Path(path), md5, from_cache)


def put(place: Place, files: Iterable[Path], folder: Path) -> None:
    """Put into `folder` those of `files` that the run has, as they are."""
    for path in files:
        _write(folder / path, place.read(path))


def restore_output(place: Place, files: Path, folder: Path, path: Path, md5: str, from_cache: FromCache) -> None:
    """One output at `folder` / `path`, where it can be found with this MD5."""
    cached, target = cached_file(files, md5), _inside(place, folder, path)
    if md5.endswith(".dir"):
        for relative, of_one in _listed(cached) if cached else ():
            restore_output(place, files, folder, path / relative, of_one, from_cache)
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    if cached:
        from_cache(cached, target)
        return
    content = place.read(path)
    if content is not None and dvc_lock.md5_of(content) == md5:
        _write(target, content)


def _listed(cached: Path) -> list[tuple[str, str]]:
    """(path in the folder, MD5) of each file of a folder, as DVC's cache lists them."""
    try:
        return [(str(entry["relpath"]), str(entry["md5"])) for entry in json.loads(cached.read_bytes())]
    except (KeyError, RecursionError, TypeError, ValueError) as error:
        raise UserError(f"{cached} is no list of a folder's files, as DVC writes them: {error!r}") from None


def remove_output(place: Place, folder: Path, path: Path) -> None:
    """Take away what is at `folder` / `path`."""
    target = _inside(place, folder, path)
    if target.is_dir() and not target.is_symlink():
        shutil.rmtree(target)
    else:
        target.unlink(missing_ok=True)


def _inside(place: Place, folder: Path, path: Path) -> Path:
    """`folder` / `path`, unless dvc.lock, which a stranger may have written, would lead out of the folder."""
    if path.is_absolute() or ".." in path.parts:
        raise UserError(f"{place.of(paths.DVC_LOCK)} names an output outside the workspace, {path}")
    return folder / path


def _write(target: Path, content: bytes | None) -> None:
    if content is not None:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.unlink(missing_ok=True)  # it may be a link into the cache
        target.write_bytes(content)
