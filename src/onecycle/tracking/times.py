"""How long trainings took, and on what machine. Only rows know: nothing that DVC hashes holds a time or a host."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple

from onecycle.tracking.errors import StoreError, guarded
from onecycle.tracking.filling import TRAINED_TAG
from onecycle.tracking.journal import all_journals
from onecycle.tracking.registry import MD5_TAG, VERSION_TAG
from onecycle.tracking.row_state import RowState
from onecycle.tracking.store import all_runs, existing_client, experiments

if TYPE_CHECKING:
    from mlflow import MlflowClient

EPOCH_SECONDS = "train/epoch_seconds"
EPOCHS = "train/epochs"


class Training(NamedTuple):
    """One training, from its first epoch to its last, as its row tells it."""

    seconds: float
    """That its epochs took, validation and checkpoints included."""
    tags: Mapping[str, str]
    """Of the row: device, machine, versions, commit."""


def trainings() -> dict[str, Training]:
    """MD5 of a models/model.pt → how it was trained.

    A training that was interrupted is left out: its epochs are in several rows, perhaps of several machines.

    Raises:
        StoreError: the store cannot be asked.
    """
    return _in_journals() | _in_store()


def _in_journals() -> dict[str, Training]:
    """Of rows that wait to be sent."""
    found: dict[str, Training] = {}
    for journal in all_journals():
        with suppress(StoreError):  # of another version, or damaged, which `sync` tells
            state = RowState.of(journal)
            epochs = {
                entry["step"]: entry["values"][EPOCH_SECONDS]
                for entry, _ in journal.entries()
                if entry["event"] == "metrics" and EPOCH_SECONDS in entry["values"]
            }
            evaluated = state.model.md5 if state.model else None
            md5 = state.tags.get(TRAINED_TAG, evaluated)
            if md5 and _whole(epochs, state.metrics):
                found[md5] = Training(sum(epochs.values()), state.tags)
    return found


def _in_store() -> dict[str, Training]:
    client = existing_client()
    if client is None:
        return {}
    found: dict[str, Training] = {}
    for name, number in experiments(client):
        found |= _of(client, name, number)
    return found


def _of(client: MlflowClient, name: str, number: str) -> dict[str, Training]:
    """Of the rows of an experiment, after which the registered model is named, too."""
    with guarded():
        versions = client.search_model_versions(f"name = '{name}'")
        models = {f"{name}/{version.version}": version.tags.get(MD5_TAG) for version in versions}
        found: dict[str, Training] = {}
        for run in all_runs(client, [number], f"metrics.`{EPOCH_SECONDS}` > 0"):
            md5 = run.data.tags.get(TRAINED_TAG) or models.get(run.data.tags.get(VERSION_TAG, ""))
            epochs = {point.step: point.value for point in client.get_metric_history(run.info.run_id, EPOCH_SECONDS)}
            if md5 and _whole(epochs, run.data.metrics):
                found[md5] = Training(sum(epochs.values()), run.data.tags)
    return found


def _whole(epochs: Mapping[int, float], metrics: Mapping[str, float]) -> bool:
    """Whether a row saw every epoch of its training."""
    return bool(epochs) and len(epochs) == metrics.get(EPOCHS)
