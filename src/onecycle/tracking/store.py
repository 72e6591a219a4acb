"""The MLflow store that rows are sent to; the only module that imports mlflow, and only when a store is opened.

By default `mlflow.db` (SQLite) and `mlartifacts/` in the original workspace; `MLFLOW_TRACKING_URI`, when set, wins.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import quote, unquote, urlsplit

from filelock import FileLock

from onecycle import paths
from onecycle.tracking.redaction import without_secrets

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Experiment

T = TypeVar("T")

ROW_TAG = "onecycle.row"
"""Holds the row's name, so that it is found again in whatever store it was sent to."""

EXPERIMENT_PREFIX = "onecycle-"
"""Before the data set's name: rows of one experiment can be compared."""

_SETTINGS = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",  # the default, 7, lets one call hang for minutes; we try again ourselves
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "5",
    "GIT_PYTHON_REFRESH": "quiet",
}


class StoreError(Exception):
    """The store does not take something now; it stays in the journal. One sentence, without secrets."""


class DeletedRowError(Exception):
    """A person deleted the row."""


class Store:
    """An experiment in an MLflow store."""

    def __init__(self, client: MlflowClient, uri: str, experiment: Experiment) -> None:
        self.client = client
        self.experiment_id: str = experiment.experiment_id
        self.name: str = experiment.name
        """Of the experiment, and of the registered model that its rows make versions of."""
        self._file = _sqlite_file(uri)
        self._inode = self._file.stat().st_ino if self._file else None
        self.identity = f"{without_secrets(uri)}#{self.experiment_id}@{experiment.creation_time}"
        """Differs from that of any other store, also of one created anew in the same place."""

    @property
    def gone(self) -> bool:
        """Whether its file was deleted or replaced; SQLite would go on writing into the deleted one."""
        return self._file is not None and not (self._file.exists() and self._file.stat().st_ino == self._inode)

    def find(self, row: str) -> str | None:
        """The run that holds a row. Raises `DeletedRowError` when it is in the bin."""
        from mlflow.entities import ViewType

        with guarded():
            found = self.client.search_runs(
                [self.experiment_id], f"tags.`{ROW_TAG}` = '{row}'", ViewType.ALL, max_results=1
            )
        if found and found[0].info.lifecycle_stage == "deleted":
            raise DeletedRowError
        return found[0].info.run_id if found else None

    def has(self, tags: Mapping[str, str]) -> bool:
        """Whether there is a row, be it in the bin, that has all of these tags."""
        from mlflow.entities import ViewType

        query = " and ".join(f"tags.`{name}` = '{value}'" for name, value in tags.items())
        with guarded():
            return bool(self.client.search_runs([self.experiment_id], query, ViewType.ALL, max_results=1))

    def create(self, row: str, started: int) -> str:
        """Make a run for a row; returns the run's id."""
        with guarded():
            run = self.client.create_run(self.experiment_id, start_time=started, tags={ROW_TAG: row})
        return str(run.info.run_id)

    def log(
        self,
        run_id: str,
        metrics: Sequence[tuple[str, float, int, int]] = (),
        params: Mapping[str, str] | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> None:
        """Send metrics as (key, value, timestamp, step), params and tags, in as few requests as MLflow allows.

        The same metric, sent twice with the same timestamp, is stored once.
        """
        from mlflow.entities import Metric, Param, RunTag

        all_metrics = [Metric(*metric) for metric in metrics]
        all_params = [Param(key, value) for key, value in (params or {}).items()]
        all_tags = [RunTag(key, value) for key, value in (tags or {}).items()]
        batches = zip_longest(
            _batches(all_metrics, 500),  # MLflow takes up to 1000 things in one request, 100 of them params, 100 tags
            _batches(all_params, 100),
            _batches(all_tags, 100),
            fillvalue=(),
        )
        for some_metrics, some_params, some_tags in batches:
            with guarded():
                self.client.log_batch(run_id, some_metrics, some_params, some_tags)

    def artifact(self, run_id: str, path: Path, folder: str) -> None:
        """Upload a file; one that is there already is replaced."""
        with guarded():
            self.client.log_artifact(run_id, str(path), folder)

    def dataset(self, run_id: str, name: str, digest: str, source: str, profile: str) -> None:
        """Say which data set a row is about."""
        from mlflow.entities import Dataset, DatasetInput

        entity = Dataset(name, digest, "local", source, profile=profile)
        with guarded():
            self.client.log_inputs(run_id, [DatasetInput(entity)])

    def set_status(self, run_id: str, status: str, ended: int | None) -> None:
        """RUNNING, or how and when (milliseconds since 1970) the row ended."""
        with guarded():
            if status == "RUNNING":
                self.client.update_run(run_id, status)
            else:
                self.client.set_terminated(run_id, status, ended)


def default_uri() -> str:
    """The address of `mlflow.db` in the original workspace."""
    return f"sqlite:///{quote(str(paths.original_root() / 'mlflow.db'))}"


def current_uri() -> str:
    """The address of the store that is current now."""
    return os.environ.get("MLFLOW_TRACKING_URI") or default_uri()


def connect(experiment: str) -> Store:
    """Open the current store, creating a SQLite file and the experiment when there are none.

    Raises:
        StoreError: the server does not answer; the file is locked, malformed, of another version; ….
    """
    uri = current_uri()
    client = _client(uri)
    with guarded():
        found = _experiment(client, experiment, None if urlsplit(uri).scheme.startswith("http") else artifact_root())
    if found.lifecycle_stage == "deleted":
        advice = f"`mlflow experiments restore --experiment-id {found.experiment_id}` brings it back"
        raise StoreError(f"the experiment {experiment} was deleted; {advice}")
    if uri == default_uri() and found.artifact_location != artifact_root():
        raise StoreError(
            f"mlflow.db keeps its artifacts in {found.artifact_location}, so this workspace was moved or copied; "
            "`onecycle sync --relocate` mends it"
        )
    return Store(client, uri, found)


def experiments() -> list[tuple[str, str]]:
    """The experiments of the current store that hold rows, as (name, id), the last one written to first.

    Raises:
        StoreError: as `connect`.
    """
    client = _client(current_uri())
    with guarded():
        found = client.search_experiments(order_by=["last_update_time DESC"])
    return [(one.name, one.experiment_id) for one in found if one.name.startswith(EXPERIMENT_PREFIX)]


def _client(uri: str) -> MlflowClient:
    for name, value in _SETTINGS.items():
        os.environ.setdefault(name, value)
    with guarded():
        file = _sqlite_file(uri)
        if file is not None:
            prepare(file)
        from mlflow import MlflowClient

        return MlflowClient(uri, uri)


def artifact_root() -> str:
    """Where artifacts are kept: `mlartifacts/` in the original workspace, as an absolute address."""
    return (paths.original_root() / "mlartifacts").as_uri()


def _experiment(client: MlflowClient, name: str, artifacts: str | None) -> Any:
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(name)
    if found is None:
        try:
            client.create_experiment(name, artifacts)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":  # somebody else was faster, which is just as well
                raise
        found = client.get_experiment_by_name(name)
    return found


def _sqlite_file(uri: str) -> Path | None:
    """The file of a SQLite store, None for any other."""
    parts = urlsplit(uri)
    return Path(unquote(parts.path[1:])) if parts.scheme == "sqlite" and len(parts.path) > 1 else None


def prepare(file: Path) -> None:
    """Make sure that a SQLite store exists whole, and can be read, before MLflow opens it.

    MLflow would create it in place: two processes at once fail, and a kill leaves it broken for good. So it is built
    beside its place under a lock and then moved. A file that cannot be opened would be tried again for minutes.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(_creation_lock(file), timeout=60):
        if not file.exists():
            _create(file)
    with closing(sqlite3.connect(file, timeout=20)) as connection:
        connection.execute("PRAGMA schema_version").fetchone()


def _creation_lock(file: Path) -> Path:
    """In `.state` for the workspace's own store; beside any other, since several workspaces may share that."""
    if file.parent != paths.original_root():
        return file.with_name(f"{file.name}.lock")
    paths.state().mkdir(parents=True, exist_ok=True)
    return paths.state() / "mlflow.lock"


def _create(file: Path) -> None:
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    for left_over in file.parent.glob(f"{file.name}.*.tmp*"):  # of a creation that was killed: we hold the lock
        left_over.unlink()
    new = file.with_name(f"{file.name}.{os.getpid()}.tmp")
    store = SqlAlchemyStore(  # type: ignore[no-untyped-call]
        f"sqlite:///{quote(str(new))}", artifact_root()
    )
    store.engine.dispose()
    with closing(sqlite3.connect(new)) as connection:
        connection.execute("PRAGMA journal_mode=WAL")  # readers, as the UI, and a writer do not wait for each other
    new.replace(file)


def _batches(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    return (items[start : start + size] for start in range(0, len(items), size))


@contextmanager
def guarded() -> Iterator[None]:
    """Turn whatever a store raises into `StoreError`."""
    import requests
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (MlflowException, SQLAlchemyError, sqlite3.Error, requests.RequestException, OSError) as error:
        raise StoreError(_sentence(error)) from None


def _sentence(error: Exception) -> str:
    """An error's first line, short and without secrets."""
    first = next(iter(str(error).strip().splitlines()), "") or type(error).__name__
    return without_secrets(first if len(first) <= 300 else f"{first[:299]}…")
