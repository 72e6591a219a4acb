"""How long trainings took, and on what machine. Only rows know: nothing that DVC hashes holds a time or a host."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

from onecycle.tracking.errors import guarded
from onecycle.tracking.filling import TRAINED_TAG
from onecycle.tracking.journal import all_journals
from onecycle.tracking.registry import MD5_TAG, VERSION_TAG
from onecycle.tracking.store import all_runs, connect, experiments, missing_file
from onecycle.tracking.summary import Summary

if TYPE_CHECKING:
    from onecycle.tracking.store import Store

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
        summary = Summary.of(journal)
        epochs = {
            entry["step"]: entry["values"][EPOCH_SECONDS]
            for entry, _ in journal.entries()
            if entry["event"] == "metrics" and EPOCH_SECONDS in entry["values"]
        }
        evaluated = summary.model.md5 if summary.model else None
        md5 = summary.tags.get(TRAINED_TAG, evaluated)
        if md5 and _whole(epochs, summary.metrics):
            found[md5] = Training(sum(epochs.values()), summary.tags)
    return found


def _in_store() -> dict[str, Training]:
    if missing_file():
        return {}
    found: dict[str, Training] = {}
    for name, _ in experiments():
        found |= _of(connect(name))
    return found


def _of(store: Store) -> dict[str, Training]:
    with guarded():
        versions = store.client.search_model_versions(f"name = '{store.name}'")
        models = {f"{store.name}/{version.version}": version.tags.get(MD5_TAG) for version in versions}
        trained = all_runs(store.client, [store.experiment_id], f"metrics.`{EPOCH_SECONDS}` > 0")
        found: dict[str, Training] = {}
        for run in trained:
            md5 = run.data.tags.get(TRAINED_TAG) or models.get(run.data.tags.get(VERSION_TAG, ""))
            epochs = {
                point.step: point.value for point in store.client.get_metric_history(run.info.run_id, EPOCH_SECONDS)
            }
            if md5 and _whole(epochs, run.data.metrics):
                found[md5] = Training(sum(epochs.values()), run.data.tags)
    return found


def _whole(epochs: Mapping[int, float], metrics: Mapping[str, float]) -> bool:
    """Whether a row saw every epoch of its training."""
    return bool(epochs) and len(epochs) == metrics.get(EPOCHS)
