"""The MLflow store that rows are sent to; mlflow is imported only when one is opened.

By default that is the workspace's own database (`database`); `MLFLOW_TRACKING_URI`, when set, wins.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

from onecycle import paths
from onecycle.tracking.database import artifact_root, default_uri, opened, prepare, sqlite_file
from onecycle.tracking.errors import DeletedRowError, StoreError, guarded
from onecycle.tracking.redaction import without_secrets

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Experiment, Run

T = TypeVar("T")

ROW_TAG = "onecycle.row"
"""Holds the row's name, so that it is found again in whatever store it was sent to."""

EXPERIMENT_PREFIX = "onecycle-"
"""Before the data set's name: rows of one experiment can be compared."""

LOCAL = ("file", "")
"""How the address of a folder on this machine begins."""

UPLOAD_SECONDS = 60

_TIMEOUT = "MLFLOW_HTTP_REQUEST_TIMEOUT"
_RETRIES = "MLFLOW_HTTP_REQUEST_MAX_RETRIES"
_SETTINGS = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    _RETRIES: "1",  # the default, 7, lets one call hang for minutes; we try again ourselves
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    _TIMEOUT: "5",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",  # it would print a password in the address, too
    "GIT_PYTHON_REFRESH": "quiet",
}


class Store:
    """An experiment in an MLflow store."""

    def __init__(self, client: MlflowClient, uri: str, experiment: Experiment) -> None:
        self.client = client
        self.experiment_id: str = experiment.experiment_id
        self.name: str = experiment.name
        """Of the experiment, and of the registered model that its rows make versions of."""
        self._file = sqlite_file(uri)
        self._inode = self._file.stat().st_ino if self._file else None
        self.identity = f"{hashed(uri)}#{self.experiment_id}@{experiment.creation_time}"
        """Differs from that of any other store, also of one created anew in the same place."""

    @property
    def gone(self) -> bool:
        """Whether its file was deleted or replaced; SQLite would go on writing into the deleted one."""
        return self._file is not None and not (self._file.exists() and self._file.stat().st_ino == self._inode)

    def find(self, row: str) -> str | None:
        """The run that holds a row. Raises `DeletedRowError` when it is in the bin."""
        from mlflow.entities import ViewType

        with guarded():
            found = self.client.search_runs([self.experiment_id], tagged({ROW_TAG: row}), ViewType.ALL, max_results=1)
        if found and found[0].info.lifecycle_stage == "deleted":
            raise DeletedRowError
        return found[0].info.run_id if found else None

    def has(self, tags: Mapping[str, str]) -> bool:
        """Whether there is a row, be it in the bin, that has all of these tags."""
        from mlflow.entities import ViewType

        with guarded():
            return bool(self.client.search_runs([self.experiment_id], tagged(tags), ViewType.ALL, max_results=1))

    def create(self, row: str, started: int) -> str:
        """Make a run for a row; returns the run's id."""
        with guarded(), once():
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
                self.client.log_batch(run_id, some_metrics, some_params, some_tags, synchronous=True)

    def artifact(self, run_id: str, path: Path, folder: str) -> None:
        """Upload a file; one that is there already is replaced."""
        with guarded(), uploading():
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


def hashed(uri: str) -> str:
    """A store's address in a form that may go into a file."""
    return hashlib.sha256(without_secrets(uri).encode()).hexdigest()[:16]


def current_address() -> str:
    """The current store's address, hashed, however it is written: as seen from the workspace, which may be moved."""
    file = sqlite_file(current_uri())
    return hashed(os.path.relpath(file, paths.original_root()) if file else current_uri().rstrip("/"))


@contextmanager
def uploading() -> Iterator[None]:
    """While open, the store may take a minute to answer: a server that passes files on answers when they are there."""
    with _setting(_TIMEOUT, str(max(UPLOAD_SECONDS, int(os.environ[_TIMEOUT])))):
        yield


@contextmanager
def once() -> Iterator[None]:
    """While open, no request is repeated: where only the answer was lost, MLflow would have a second run made."""
    with _setting(_RETRIES, "0"):
        yield


@contextmanager
def _setting(name: str, value: str) -> Iterator[None]:
    """A variable of the environment, where MLflow reads its settings anew for each request, while open."""
    usual = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if usual is None:
            del os.environ[name]
        else:
            os.environ[name] = usual


def current_uri() -> str:
    """The address of the store that is current now."""
    return os.environ.get("MLFLOW_TRACKING_URI") or default_uri()


@contextmanager
def as_mlflows_own() -> Iterator[None]:
    """While open, the current store is the one that MLflow takes where it is not told which.

    Making a version asks that one for the model, whatever store its client has. Otherwise it would be `mlflow.db` in
    the working directory, by an absolute address, for which see `database`.
    """
    with _setting("MLFLOW_TRACKING_URI", current_uri()):
        yield


def connect(experiment: str) -> Store:
    """Open the current store, creating a SQLite file and the experiment when there are none.

    Raises:
        StoreError: the server does not answer; the file is locked, read-only, malformed, of another version; ….
    """
    uri = current_uri()
    client = open_client(uri)
    file = sqlite_file(uri)
    if file is not None:
        with opened(file, seconds=3) as connection:  # MLflow would take 20 to find it locked
            connection.execute("BEGIN IMMEDIATE")
            connection.rollback()
    artifacts = None if urlsplit(uri).scheme.startswith("http") else artifact_root(file)
    with guarded():
        found = _experiment(client, experiment, artifacts)
    if found.lifecycle_stage == "deleted":
        advice = f"`mlflow experiments restore --experiment-id {found.experiment_id}` brings it back"
        raise StoreError(f"the experiment {experiment} was deleted; {advice}")
    check_not_moved(found)
    return Store(client, uri, found)


def check_not_moved(experiment: Experiment) -> None:
    """Refuse an experiment of the workspace's own store whose artifacts are said to be where the workspace was."""
    location, file = experiment.artifact_location, sqlite_file(current_uri())
    own = file is not None and file.resolve() == paths.original_root() / "mlflow.db"
    if not own or location == artifact_root():
        return
    scheme = urlsplit(location).scheme
    if scheme in LOCAL:
        raise StoreError(
            f"mlflow.db keeps its artifacts in {location}, so this workspace was moved or copied; "
            "`onecycle sync --relocate` mends it"
        )
    if scheme == "mlflow-artifacts":
        raise StoreError(
            f"mlflow.db keeps the artifacts of {experiment.name} in {location}, which is behind an MLflow server; "
            "start that and name its address in MLFLOW_TRACKING_URI"
        )


def missing_file() -> Path | None:
    """The current store's SQLite file where that is not there; who only looks asks first, since opening makes it."""
    file = sqlite_file(current_uri())
    return file if file is not None and not file.exists() else None


def existing_client() -> MlflowClient | None:
    """A client of the current store, for who only looks; None where its SQLite file is not there.

    Raises:
        StoreError: as `connect`.
    """
    return None if missing_file() else open_client(current_uri())


def experiments(client: MlflowClient) -> list[tuple[str, str]]:
    """The experiments of a store that hold rows, as (name, id), the last one written to first. Raises `StoreError`."""
    with guarded():
        found = client.search_experiments(
            filter_string=f"name LIKE '{EXPERIMENT_PREFIX}%'", order_by=["last_update_time DESC"]
        )
    return [(one.name, one.experiment_id) for one in found]


def tagged(tags: Mapping[str, str]) -> str:
    """MLflow's query for the runs that have all of these tags."""
    return " and ".join(f"tags.`{name}` = '{value}'" for name, value in tags.items())


def all_runs(client: MlflowClient, experiment_ids: list[str], query: str) -> Iterator[Run]:
    """Every run that the query finds, the newest first; MLflow itself answers a thousand at a time."""
    page = client.search_runs(experiment_ids, query)
    yield from page
    while page.token:
        page = client.search_runs(experiment_ids, query, page_token=page.token)
        yield from page


def open_client(uri: str) -> MlflowClient:
    """A client of the store at `uri`; a SQLite file is made and brought up to date where need be.

    Raises:
        StoreError: as `connect`.
    """
    for name, value in _SETTINGS.items():
        os.environ.setdefault(name, value)
    with guarded():
        file = sqlite_file(uri)
        if file is not None:
            prepare(file)
        from mlflow import MlflowClient

        return MlflowClient(uri, uri)


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


def _batches(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    return (items[start : start + size] for start in range(0, len(items), size))
