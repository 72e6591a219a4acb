"""Ways to execute, from one workspace: a whole row for each that runs a stage, none for one that runs none."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest
from conftest import command
from mlflow import MlflowClient


def rows(workspace: Path) -> list[Any]:
    """The rows of a workspace's store, oldest first."""
    client = MlflowClient(f"sqlite:///{workspace / 'mlflow.db'}")
    return list(client.search_runs(["1"], order_by=["attributes.start_time ASC"]))


@pytest.mark.slow
def test_an_experiment_a_repro_with_nothing_to_do_and_a_stage_by_hand(workspace: Path) -> None:
    change = "one_cycle.max_lr=0.02"
    command(workspace, "dvc", "exp", "run", "--name", "odd-name", "-S", change, "train")
    command(workspace, "dvc", "repro", "train")
    command(workspace, "python", "-m", "stages.stats")
    command(workspace, "onecycle", "sync")
    experiment, by_hand = rows(workspace)
    assert [row.info.status for row in (experiment, by_hand)] == ["FINISHED"] * 2

    assert experiment.info.run_name == experiment.data.tags["dvc.exp_name"] == "odd-name"
    assert experiment.data.tags["dvc.stages"] == "download cached, stats cached, lr_range cached, train ran"
    assert experiment.data.tags["params.changed"] == f"-S {change}"
    head = command(workspace, "git", "rev-parse", "HEAD").stdout.strip()
    assert experiment.data.tags["dvc.baseline"] == experiment.data.tags["git.commit"] == head
    lock = (workspace / "dvc.lock").read_bytes()
    assert experiment.data.tags["dvc.lock"] == hashlib.sha256(lock).hexdigest()
    assert f"dvc exp run -S {change}" in experiment.data.tags["mlflow.note.content"]
    assert experiment.data.params["one_cycle.max_lr"] == "0.02"
    assert {"stats/mean_red", "lr_range/loss", "train/loss"} <= set(experiment.data.metrics)

    assert by_hand.data.tags["dvc.stages"] == "download cached, stats ran"
    assert "dvc.exp_name" not in by_hand.data.tags
