"""The SQLite file that rows go to by default: `mlflow.db` in the original workspace, and `mlartifacts/` beside it.

It is made whole, or not at all, and looked at before MLflow opens it.
"""

from __future__ import annotations

import glob
import os
import re
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit

from filelock import FileLock

from onecycle import paths
from onecycle.tracking.errors import StoreError


def default_uri() -> str:
    """The address of `mlflow.db` in the original workspace."""
    return _address(paths.original_root() / "mlflow.db")


def _address(file: Path) -> str:
    """Of a SQLite file, from where the process works: MLflow makes a folder for it before it takes the quoting away,
    so that an absolute address would leave "my%20work" beside "my work".
    """
    return f"sqlite:///{quote(os.path.relpath(file))}"


def artifact_root(file: Path | None = None) -> str:
    """Where artifacts are kept, as an absolute address: `mlartifacts/` beside a store's SQLite file, so that all
    workspaces that share the file agree; without one, in the original workspace.
    """
    return ((file.parent.resolve() if file else paths.original_root()) / "mlartifacts").as_uri()


def sqlite_file(uri: str) -> Path | None:
    """The file of a SQLite store, None for any other."""
    parts = urlsplit(uri)
    return Path(unquote(parts.path[1:])) if parts.scheme == "sqlite" and len(parts.path) > 1 else None


def prepare(file: Path) -> None:
    """Make sure that a SQLite store exists whole, can be read and is of this version, before MLflow opens it.

    MLflow would create it in place: two processes at once fail, and a kill leaves it broken for good. So it is built
    beside its place under a lock and then moved. A file that cannot be opened would be tried again for minutes, and
    one that another version made be migrated as far as that goes.

    Raises:
        StoreError: it cannot be read, or is of another version.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    if not file.exists():
        with FileLock(_creation_lock(file), timeout=60):
            if not file.exists():
                _create(file)
    with opened(file, seconds=20) as connection:
        if connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'alembic_version'").fetchone():
            found = connection.execute("SELECT version_num FROM alembic_version").fetchone()
            if found is None:
                advice = "unless a server is still at it, move it away, and the next command makes another"
                raise StoreError(f"{file.name} is half made and holds no version; {advice}")
            _check_version(file, found[0])


def _creation_lock(file: Path) -> Path:
    """In `.state` of the workspace that the store lies in, whoever asks; beside it anywhere else."""
    if not (file.parent / ".dvc").is_dir():
        return file.with_name(f"{file.name}.lock")
    state = file.parent / paths.state().name
    state.mkdir(exist_ok=True)
    return state / "mlflow.lock"


def _check_version(file: Path, found: str) -> None:
    """Refuse a database whose tables are not those of the MLflow that is installed."""
    from alembic.script import ScriptDirectory
    from mlflow import __version__
    from mlflow.store import db_migrations

    versions = ScriptDirectory(db_migrations.__path__[0])
    if found == versions.get_current_head():
        return
    if found in {script.revision for script in versions.walk_revisions()}:
        advice = f"with a copy of it put by, `mlflow db upgrade sqlite:///{file}` brings it up to MLflow {__version__}"
        raise StoreError(f"{file.name} is of an older MLflow; {advice}")
    advice = "install that, or name another store in MLFLOW_TRACKING_URI"
    raise StoreError(f"{file.name} is of a newer MLflow than {__version__} (schema {found}); {advice}")


@contextmanager
def opened(file: Path, seconds: float) -> Iterator[sqlite3.Connection]:
    """A SQLite file; whoever else has it is waited for so many seconds. Raises `StoreError`, which names the file."""
    try:
        with closing(sqlite3.connect(file, timeout=seconds)) as connection:
            yield connection
    except sqlite3.Error as error:
        spoilt = getattr(error, "sqlite_errorcode", None) in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
        advice = f"; move {file.name}* away, then `onecycle sync --from-git` makes its rows anew" if spoilt else ""
        raise StoreError(f"{file.name}: {error}{advice}") from None


def _create(file: Path) -> None:
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    # of a creation that was killed, as we hold the lock; and of a deleted database what would spoil a new one
    ours = re.compile(rf"{re.escape(file.name)}(\.\d+\.tmp)?(-wal|-shm|-journal)?")
    for left_over in file.parent.glob(f"{glob.escape(file.name)}*"):
        if ours.fullmatch(left_over.name):  # and not a copy that somebody put by
            left_over.unlink(missing_ok=True)
    new = file.with_name(f"{file.name}.{os.getpid()}.tmp")
    store = SqlAlchemyStore(_address(new), artifact_root(file))  # type: ignore[no-untyped-call]
    store.engine.dispose()
    with closing(sqlite3.connect(new)) as connection:
        connection.execute("PRAGMA journal_mode=WAL")  # readers, as the UI, and a writer do not wait for each other
    new.replace(file)
