"""The models of a store: one version for each models/model.pt, known by its MD5, which is its name in dvc.lock too."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from filelock import FileLock

from onecycle import paths
from onecycle.tracking.errors import guarded
from onecycle.tracking.export import export
from onecycle.tracking.row_state import Model
from onecycle.tracking.store import Store, as_mlflows_own, once, uploading

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

CANDIDATE = "candidate"
"""Alias of the version that was evaluated last."""
EVALUATED_TAG = "model.evaluated"
"""Of a version that was the candidate: when it was evaluated, in milliseconds since 1970."""
MD5_TAG = "model.md5"
VERSION_TAG = "model.version"
"""Of a row: the version it made or shares, as "onecycle-cifar10/3"."""


def attach_model(store: Store, run_id: str, model: Model, files: Path, evaluated: int | None) -> None:
    """Have a row name the version of its model; one that the store has not got is exported and registered.

    Args:
        files: the folder that `model`'s files are in.
        evaluated: when the row itself evaluated it, in milliseconds since 1970; the last one is the candidate.

    Raises:
        StoreError: the store does not take it, or it could not be exported this time.
    """
    paths.state().mkdir(exist_ok=True)
    with FileLock(paths.state() / "model.lock"):  # one export at a time, and none twice
        version = find(store.client, store.name, model.md5)
        if version is None and model.file and model.pictures:
            with TemporaryDirectory(prefix="onecycle-") as folder:
                exported = Path(folder) / "model"
                trouble = export(files / model.file, files / model.pictures, exported)
                if trouble:
                    store.log(run_id, tags={"model.error": trouble})
                    return
                with as_mlflows_own():
                    version = _register(store, run_id, model.md5, exported)
        if version is None:  # a cached evaluation of a model that is not here
            return
        _name(store, run_id, version)
        if evaluated is not None:
            _propose(store.client, version, evaluated)


def find(client: MlflowClient, name: str, md5: str) -> ModelVersion | None:
    """The first version of the registered model `name` that was made from the model file with this MD5.

    Raises:
        StoreError: the store cannot be asked.
    """
    query = f"name = '{name}' and tags.`{MD5_TAG}` = '{md5}'"
    with guarded():
        found = client.search_model_versions(query, max_results=1, order_by=["version_number ASC"])
    return found[0] if found else None


def _register(store: Store, run_id: str, md5: str, folder: Path) -> ModelVersion:
    """Log an exported model and make it a version; after a kill in between, the same logged model is used again.

    Another workspace may register the same model at the same time, which no lock of ours prevents. Of both versions
    the first one counts, for both: whoever made the other takes it back.
    """
    from mlflow.exceptions import MlflowException

    tags: dict[str, Any] = {MD5_TAG: md5}
    with guarded(), once():
        logged = store.client.search_logged_models([store.experiment_id], f"source_run_id = '{run_id}'", max_results=1)
        model = next(iter(logged), None) or store.client.create_logged_model(
            store.experiment_id, "model", source_run_id=run_id, tags=tags
        )
        with uploading():
            store.client.log_model_artifacts(model.model_id, str(folder))
        store.client.finalize_logged_model(model.model_id, "READY")
        try:
            store.client.create_registered_model(store.name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        made = store.client.create_model_version(
            store.name, f"models:/{model.model_id}", run_id, tags=tags, model_id=model.model_id
        )
        first = find(store.client, store.name, md5) or made
        if str(first.version) != str(made.version):
            store.client.delete_model_version(store.name, made.version)
            if first.source != made.source:  # else they are two versions of one logged model
                store.client.delete_logged_model(model.model_id)
        return first


def _propose(client: MlflowClient, version: ModelVersion, evaluated: int) -> None:
    """Make a version the candidate, unless that was evaluated later: rows reach a store in any order."""
    with guarded():
        candidate = client.get_registered_model(version.name).aliases.get(CANDIDATE)
        tags = client.get_model_version(version.name, candidate).tags if candidate else {}
        if evaluated >= int(tags.get(EVALUATED_TAG, 0)):
            client.set_model_version_tag(version.name, version.version, EVALUATED_TAG, str(evaluated))
            client.set_registered_model_alias(version.name, CANDIDATE, version.version)


def _name(store: Store, run_id: str, version: ModelVersion) -> None:
    """Tell the row's version in a tag, and show the model on the row's page."""
    from mlflow.entities import LoggedModelOutput

    store.log(run_id, tags={VERSION_TAG: f"{store.name}/{version.version}"})
    with guarded():
        logged = str(version.source).removeprefix("models:/")  # its model_id is empty when read from SQLite
        outputs = store.client.get_run(run_id).outputs
        if not outputs or logged not in {output.model_id for output in outputs.model_outputs}:
            store.client.log_outputs(run_id, [LoggedModelOutput(logged, 0)])
