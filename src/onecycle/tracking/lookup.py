"""Rows by the names that commands take, a run id, a registered model's alias or version, and by what they hold."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from onecycle import paths
from onecycle.errors import UserError
from onecycle.tracking import source
from onecycle.tracking.errors import StoreError, guarded
from onecycle.tracking.registry import MD5_TAG, VERSION_TAG
from onecycle.tracking.store import EXPERIMENT_PREFIX, all_runs, check_not_moved, existing_client, experiments, tagged

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

MODEL_ADDRESS = re.compile(r"models:/(?P<name>[^/@]+)(?:@(?P<alias>[^/@]+)|/(?P<number>[1-9][0-9]*))")
T = TypeVar("T")


class Version(NamedTuple):
    """A version of a registered model."""

    name: str
    number: str


@dataclass(frozen=True)
class StoredRow:
    """A row in the store; its files are read by the names they have in a workspace."""

    client: MlflowClient
    run_id: str
    params: Mapping[str, str]
    """By dotted key, as YAML spells them."""
    version: Version | None
    """Of the model that the row evaluated."""
    tags: Mapping[str, str]
    metrics: Mapping[str, float]
    """The latest value of each."""
    status: str
    started: int
    ended: int | None
    """Milliseconds since 1970."""

    def read(self, path: Path) -> bytes | None:
        """The file at `path`, relative to a workspace; None where the row has none.

        Raises:
            UserError: the store cannot be asked.
        """
        if path == paths.PARAMS:
            return json.dumps(dict(self.params)).encode()  # which is YAML, too
        if path == paths.DVC_LOCK:
            return self.artifact(source.LOCK)
        return self.artifact(Path(*path.parts[1:])) if path.parts[0] == "results" else None

    def artifact(self, path: Path) -> bytes | None:
        """The row's artifact at `path`; None where it has none.

        Raises:
            UserError: the store cannot be asked.
        """
        artifact = PurePosixPath(path)
        try:
            with guarded(), TemporaryDirectory(prefix="onecycle-") as folder:
                listed = self.client.list_artifacts(self.run_id, artifact.parent.as_posix())
                if artifact.as_posix() not in {file.path for file in listed}:
                    return None
                return Path(self.client.download_artifacts(self.run_id, artifact.as_posix(), folder)).read_bytes()
        except StoreError as error:
            raise _unasked(error) from None

    def model_md5(self) -> str | None:
        """Of the model file that `version` was made from. Raises `UserError` as `read`."""
        if self.version is None:
            return None
        try:
            with guarded():
                return self.client.get_model_version(*self.version).tags.get(MD5_TAG)
        except StoreError as error:
            raise _unasked(error) from None

    def tag(self, tags: Mapping[str, str]) -> None:
        """Set tags of it. Raises `UserError` where the store does not take them."""
        try:
            with guarded():
                for key, value in tags.items():
                    self.client.set_tag(self.run_id, key, value, synchronous=True)
        except StoreError as error:
            raise UserError(f"run {self.run_id} cannot be tagged: {error}") from None


def rows_with(tags: Mapping[str, str]) -> list[StoredRow]:
    """The rows in the current store that have all of these tags, the newest first; none where there is no store.

    Raises:
        UserError: the store cannot be asked.
    """
    try:
        client = existing_client()
        if client is None:
            return []
        with guarded():
            found = all_runs(client, [number for _, number in experiments(client)], tagged(tags))
            return [_of_run(client, run, None) for run in found]
    except StoreError as error:
        raise _unasked(error) from None


def row_of_lock(lock: bytes) -> StoredRow | None:
    """The first row that ended with this dvc.lock and is no reproduction itself."""
    found = rows_with({source.LOCK_TAG: hashlib.sha256(lock).hexdigest()})
    return next((row for row in reversed(found) if "reproduces" not in row.tags), None)


def find_row(name: str) -> StoredRow | None:
    """The row of a run id, or of `models:/name@alias` or `models:/name/version`; None where there is none.

    Raises:
        UserError: the store cannot be asked, or the name is neither.
    """
    model = MODEL_ADDRESS.fullmatch(name)
    if name.startswith("models:") and not model:
        raise UserError(f"{name} names no model; give models:/<name>@<alias> or models:/<name>/<version>")
    try:
        client = existing_client()
        if client is None:
            return None
        if not model:
            return _row(client, name, None)
        number = model["number"] or aliases(client, model["name"]).get(model["alias"])
        found = _or_none(lambda: client.get_model_version(model["name"], number)) if number else None
        if found is None:
            return None
        if not found.run_id:
            raise UserError(f"{name} was registered without a run, so there are no results of it to compare")
        row = _row(client, found.run_id, Version(found.name, str(found.version)))
        if row is None:
            raise UserError(f"the run that made {name} is gone from MLflow, so there are no results of it to compare")
        return row
    except StoreError as error:
        raise _unasked(error) from None


def aliases(client: MlflowClient, name: str) -> Mapping[str, str]:
    """Alias → version of a registered model; empty where there is no such model. Raises `StoreError`."""
    model = _or_none(lambda: client.get_registered_model(name))
    return {alias: str(number) for alias, number in model.aliases.items()} if model else {}


def _row(client: MlflowClient, run_id: str, version: Version | None) -> StoredRow | None:
    run = _or_none(lambda: client.get_run(run_id))
    if run is None:
        return None
    with guarded():
        experiment = client.get_experiment(run.info.experiment_id)
    if not experiment.name.startswith(EXPERIMENT_PREFIX):
        raise UserError(f"run {run_id} is of the experiment {experiment.name}, which this project does not write")
    check_not_moved(experiment)
    return _of_run(client, run, version)


def _of_run(client: MlflowClient, run: Run, version: Version | None) -> StoredRow:
    tags, info = run.data.tags, run.info
    if version is None and VERSION_TAG in tags:
        version = Version(*tags[VERSION_TAG].rsplit("/", 1))
    metrics, params = run.data.metrics, run.data.params
    return StoredRow(client, info.run_id, params, version, tags, metrics, info.status, info.start_time, info.end_time)


def _or_none(ask: Callable[[], T]) -> T | None:
    """The store's answer; None where it says that there is no such thing."""
    from mlflow.exceptions import MlflowException

    with guarded():
        try:
            return ask()
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return None


def _unasked(error: StoreError) -> UserError:
    return UserError(f"MLflow cannot be asked: {error}")
