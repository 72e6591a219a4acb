"""`onecycle sync --relocate`: mend mlflow.db after its workspace was moved or copied.

MLflow keeps absolute addresses of artifacts, so in the new place every row silently lists none.
"""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from urllib.parse import unquote, urlsplit

from onecycle import paths
from onecycle.errors import UserError
from onecycle.tracking.database import artifact_root
from onecycle.tracking.store import EXPERIMENT_PREFIX, LOCAL

_ADDRESSES = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "source"),
    ("model_versions", "storage_location"),
)


def relocate() -> int:
    """Point all rows of the workspace's own mlflow.db to its own mlartifacts/; returns how many addresses changed.

    Raises:
        UserError: there is no mlflow.db here, or it cannot be changed, or a run's files are still elsewhere.
    """
    database, here = paths.original_root() / "mlflow.db", artifact_root()
    if not database.exists():
        raise UserError(f"{database.name} is missing; run from the workspace that was moved")
    try:
        with closing(sqlite3.connect(database, timeout=20)) as store, store:
            found = "SELECT DISTINCT artifact_location FROM experiments WHERE name LIKE ? AND artifact_location <> ?"
            olds = [
                old
                for (old,) in store.execute(found, (f"{EXPERIMENT_PREFIX}%", here))
                if urlsplit(old).scheme in LOCAL  # others are behind a server, wherever this workspace is
            ]
            for old in olds:
                _check_files(store, old, here)
            return sum(_replace(store, table, column, old, here) for old in olds for table, column in _ADDRESSES)
    except sqlite3.Error as error:
        raise UserError(f"{database.name}: {error}; end what else uses it and try again") from None


def _check_files(store: sqlite3.Connection, old: str, new: str) -> None:
    """Refuse where the files of a run are below `old` and not below `new`; a run may also have none."""
    below = "SELECT artifact_uri FROM runs WHERE substr(artifact_uri, 1, ?) = ?"
    for (address,) in store.execute(below, (len(old) + 1, f"{old}/")):
        if _folder(address).exists() and not _folder(f"{new}{address.removeprefix(old)}").exists():
            raise UserError(
                f"files of runs are in {_folder(old)} and not in {_folder(new)}; copy them there and try again"
            )


def _folder(address: str) -> Path:
    return Path(unquote(urlsplit(address).path))


def _replace(store: sqlite3.Connection, table: str, column: str, old: str, new: str) -> int:
    """Put `new` in the place of `old` where a column holds it or something below it."""
    change = f"UPDATE {table} SET {column} = ? || substr({column}, ?) WHERE {column} = ? OR substr({column}, 1, ?) = ?"
    return store.execute(change, (new, len(old) + 1, old, len(old) + 1, f"{old}/")).rowcount
