"""How long trainings took, and on what machine. Only rows know: nothing that DVC hashes holds a time or a host."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from itertools import chain
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
    found: dict[str, Training] = {}
    for md5, training in chain(_in_store(), _in_journals()):
        if training.seconds is not None or md5 not in found:  # a row that has all of its epochs comes first
            found[md5] = training
    return found


def _in_journals() -> Iterator[tuple[str, Training]]:
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
            if md5 and epochs:
                yield md5, _training(epochs, state.metrics, state.tags)


def _in_store() -> Iterator[tuple[str, Training]]:
    client = existing_client()
    if client is not None:
        for name, number in experiments(client):
            yield from _of(client, name, number)


def _of(client: MlflowClient, name: str, number: str) -> Iterator[tuple[str, Training]]:
    """Of the rows of an experiment, after which the registered model is named, too."""
    with guarded():
        versions = client.search_model_versions(f"name = '{name}'")
        models = {f"{name}/{version.version}": version.tags.get(MD5_TAG) for version in versions}
        for run in all_runs(client, [number], f"metrics.`{EPOCH_SECONDS}` > 0"):
            md5 = run.data.tags.get(TRAINED_TAG) or models.get(run.data.tags.get(VERSION_TAG, ""))
            epochs = {point.step: point.value for point in client.get_metric_history(run.info.run_id, EPOCH_SECONDS)}
            if md5 and epochs:
                yield md5, _training(epochs, run.data.metrics, run.data.tags)


def _training(epochs: Mapping[int, float], metrics: Mapping[str, float], tags: Mapping[str, str]) -> Training:
    """As a row tells it that has these epochs' seconds."""
    return Training(sum(epochs.values()) if len(epochs) == metrics.get(EPOCHS) else None, tags)
