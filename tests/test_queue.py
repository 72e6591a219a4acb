"""Experiments from DVC's queue: a row each in the original workspace's store, run by the code they were queued with."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from conftest import command
from mlflow import MlflowClient

GENEROUS_SECONDS = 2700.0
ARTIFACTS = {
    "stats/stats.json",
    "stats/samples.png",
    "lr_range/curve.csv",
    "lr_range/curve.png",
    "lr_range/suggestion.json",
    "train/history.csv",
    "train/schedule.csv",
    "train/metrics.json",
    "train/model.txt",
    "train/augmented.png",
    "source/dvc.lock",
    "source/changes.patch",
}
"""Of a row whose execution ended with training."""


def statuses(workspace: Path, names: set[str]) -> dict[str, str]:
    """Status of each experiment: queued, running, success, failed or missing."""
    said = command(workspace, "timeout", "300", "dvc", "exp", "show", "--json", "--all-commits", check=False)
    table = json.loads(said.stdout or "[]")  # DVC fails or hangs while it clears away what an experiment has left
    found = {
        experiment["revs"][0].get("name"): (experiment.get("executor") or {}).get("state") or "success"
        for revision in table
        for experiment in revision.get("experiments") or []
        if experiment["revs"]
    }
    return {name: found.get(name, "missing") for name in names}


def waited_for(workspace: Path, names: set[str]) -> dict[str, str]:
    """Status of each experiment of the queue, once none of `names` waits or runs any more."""
    deadline = time.monotonic() + GENEROUS_SECONDS
    while True:
        found = statuses(workspace, names)
        if not {"queued", "running", "missing"} & set(found.values()) or time.monotonic() > deadline:
            return found
        time.sleep(10)  # asking DVC takes seconds of a processor that the experiments need


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_four_queued_with_two_workers_are_four_rows(workspace: Path) -> None:
    """Of the pipeline only training runs, two at a time; what is before it comes from the cache, into each row too."""
    peaks = {f"peak-{peak}": str(peak) for peak in (0.01, 0.02, 0.03, 0.04)}
    for name, peak in peaks.items():
        changes = ("-S", f"one_cycle.max_lr={peak}", "-S", "epochs=1", "-S", "one_cycle.max_at_epoch=0.5")
        command(workspace, "dvc", "exp", "run", "--queue", "--name", name, *changes, "train")
    # The workspace's own code breaks now; what is queued has the code it was queued with.
    (workspace / "src" / "onecycle" / "training.py").write_text("raise RuntimeError('not this one')\n", "utf-8")
    command(workspace, "dvc", "queue", "start", "--jobs", "2")
    assert waited_for(workspace, set(peaks)) == dict.fromkeys(peaks, "success")
    command(workspace, "onecycle", "sync")

    client = MlflowClient(f"sqlite:///{workspace / 'mlflow.db'}")
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    rows = client.search_runs(experiments)
    assert {row.info.run_name: row.data.params["one_cycle.max_lr"] for row in rows} == peaks
    assert len(rows) == 4
    for row in rows:
        assert row.info.status == "FINISHED"
        assert row.data.tags["dvc.stages"] == "download cached, stats cached, lr_range cached, train ran"
        assert {"stats/mean_red", "lr_range/loss", "train/loss"} <= set(row.data.metrics)
        target = workspace.parent / row.info.run_id
        target.mkdir()
        got = Path(client.download_artifacts(row.info.run_id, "", str(target)))
        assert {file.relative_to(got).as_posix() for file in got.rglob("*") if file.is_file()} == ARTIFACTS
        assert all(file.stat().st_size > 0 for file in got.rglob("*"))
    assert len({row.data.metrics["train/loss"] for row in rows}) == 4
