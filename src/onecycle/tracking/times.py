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
    """One training, as the row in which it ended tells it."""

    seconds: float | None
    """That its epochs took, validation and checkpoints included; None where it was interrupted, and earlier ones are in
    other rows, perhaps of other machines."""
    tags: Mapping[str, str]
    """Of the row: device, machine, versions, commit."""


def trainings() -> dict[str, Training]:
    """MD5 of a models/model.pt → how it was trained.

    Raises:
        StoreError: the store cannot be asked.
    """
    found = _in_store()
    _add_in_journals(found)
    return found


def _add_in_journals(found: dict[str, Training]) -> None:
    """Of rows that wait to be sent."""
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
            if md5:
                _add(found, md5, epochs, state.metrics, state.tags)


def _in_store() -> dict[str, Training]:
    client = existing_client()
    if client is None:
        return {}
    found: dict[str, Training] = {}
    for name, number in experiments(client):
        _add_of(client, name, number, found)
    return found


def _add_of(client: MlflowClient, name: str, number: str, found: dict[str, Training]) -> None:
    """Of the rows of an experiment, after which the registered model is named, too."""
    with guarded():
        versions = client.search_model_versions(f"name = '{name}'")
        models = {f"{name}/{version.version}": version.tags.get(MD5_TAG) for version in versions}
        for run in all_runs(client, [number], f"metrics.`{EPOCH_SECONDS}` > 0"):
            md5 = run.data.tags.get(TRAINED_TAG) or models.get(run.data.tags.get(VERSION_TAG, ""))
            epochs = {point.step: point.value for point in client.get_metric_history(run.info.run_id, EPOCH_SECONDS)}
            if md5:
                _add(found, md5, epochs, run.data.metrics, run.data.tags)


def _add(
    found: dict[str, Training],
    md5: str,
    epochs: Mapping[int, float],
    metrics: Mapping[str, float],
    tags: Mapping[str, str],
) -> None:
    """A row that has any of the epochs of the training whose model it names; one that has them all comes first."""
    whole = len(epochs) == metrics.get(EPOCHS)
    if epochs and (whole or md5 not in found):
        found[md5] = Training(sum(epochs.values()) if whole else None, tags)
