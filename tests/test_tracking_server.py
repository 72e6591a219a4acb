"""Rows on a tracking server: one that dies midway, and one with PostgreSQL that everything has to work on."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psycopg2
import pytest
from conftest import command
from mlflow import MlflowClient
from mlflow_server import Server
from tracked_workspace import Workspace, finish, wait_for

from onecycle import paths
from onecycle.tracking.database import prepare
from onecycle.tracking.journal import Journal

EPOCHS = """
import time
from onecycle import paths, tracking
from onecycle.params import load

longest, epoch = 0.0, 0
started = time.monotonic()
with tracking.join("train", load(paths.PARAMS)) as row:
    row.artifact(paths.PARAMS, "before")
    opened = time.monotonic()
    while not Path("enough").exists():
        epoch += 1
        before = time.monotonic()
        row.metrics({"train/loss": 1 / epoch}, step=epoch)
        longest = max(longest, time.monotonic() - before)
        time.sleep(0.1)
    row.artifact(paths.PARAMS, "after")
    trained = time.monotonic()
print(f"{epoch} epochs, {opened - started + time.monotonic() - trained:.2f} s for tracking, {longest:.3f} s an epoch")
"""
"""A stage that trains until there is a file called enough."""


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    """A server with a SQLite file, which answers."""
    database = tmp_path / "server" / "rows.db"
    prepare(database)
    server = Server(f"sqlite:///{database}", tmp_path / "server" / "artifacts")
    try:
        server.start()
        yield server
    finally:
        server.kill()


def rows(server: Server) -> list[Any]:
    """All rows of a server, oldest first."""
    client = MlflowClient(server.address)
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    return list(client.search_runs(experiments, order_by=["attributes.start_time ASC"]))


def losses(server: Server, run_id: str) -> list[tuple[int, float]]:
    """(epoch, loss) of a row."""
    history = MlflowClient(server.address).get_metric_history(run_id, "train/loss")
    return sorted((point.step, point.value) for point in history)


def test_a_server_that_dies_midway_hinders_nothing_and_gets_everything_once_when_it_is_back(
    server: Server, tmp_path: Path
) -> None:
    workspace = Workspace(tmp_path / "work")
    stage = workspace.python("-c", f"from pathlib import Path{EPOCHS}", MLFLOW_TRACKING_URI=server.address)
    try:
        wait_for(lambda: workspace.journals, 120)
        [file] = workspace.journals
        wait_for(lambda: any(row.data.metrics for row in rows(server)), 120)
        server.kill()
        wait_for(lambda: Journal(file.parent).sent().trouble, 120)
        workspace.write("enough", "")
        output = finish(stage)
    finally:
        workspace.close()
    [(epochs, tracking, longest)] = re.findall(r"^(\d+) epochs, ([\d.]+) s for tracking, ([\d.]+) s an", output, re.M)
    assert float(tracking) < 6 and float(longest) < 1
    [told] = [line for line in output.splitlines() if line.startswith("tracking: ")]
    assert "nothing is lost" in told

    server.start()
    finish(workspace.sync(MLFLOW_TRACKING_URI=server.address))
    [row] = rows(server)
    assert row.info.status == "FINISHED"
    assert losses(server, row.info.run_id) == [(epoch, 1 / epoch) for epoch in range(1, int(epochs) + 1)]
    download = MlflowClient(server.address).download_artifacts
    for folder in ("before", "after"):
        page = Path(download(row.info.run_id, f"{folder}/params.yaml", str(tmp_path)))
        assert page.read_bytes() == (workspace.root / "params.yaml").read_bytes()
    assert not workspace.journals
    assert not list(workspace.root.glob("mlflow.db*"))


# ------------------------------------------------------------------------------------------------ PostgreSQL


@pytest.fixture
def postgresql() -> Iterator[str]:
    """The address of an empty database in a cluster of its own, which goes afterwards."""
    version = max((path.name for path in Path("/usr/lib/postgresql").iterdir()), key=int)
    name = f"onecycle{uuid.uuid4().hex[:8]}"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])

    def run(*words: str) -> None:
        done = subprocess.run(words, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False, cwd="/")
        assert done.returncode == 0, done.stdout + done.stderr

    run("pg_createcluster", version, name, "--port", port, "--", "--auth-host=trust")
    try:
        run("pg_ctlcluster", version, name, "start")
        psycopg2.connect(host="127.0.0.1", port=port, user="postgres").close()
        yield f"postgresql+psycopg2://postgres@127.0.0.1:{port}/postgres"  # else SQLAlchemy takes psycopg
    finally:
        run("pg_dropcluster", "--stop", version, name)


@pytest.fixture
def postgresql_server(postgresql: str, tmp_path: Path) -> Iterator[Server]:
    """A server with PostgreSQL, which answers."""
    server = Server(postgresql, tmp_path / "server")
    try:
        server.start()
        yield server
    finally:
        server.kill()


LOAD = """
import sys
import mlflow, numpy as np

mlflow.set_tracking_uri(sys.argv[1])
np.save("loaded.npy", mlflow.pyfunc.load_model(f"models:/{sys.argv[3]}@candidate").predict(np.load(sys.argv[2])))
"""


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.skipif(shutil.which("pg_createcluster") is None, reason="needs Debian's: apt-get install postgresql")
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, who alone may make a cluster")
def test_rows_artifacts_the_model_and_what_was_missed_reach_a_server_with_postgresql(
    postgresql_server: Server, workspace: Path, tmp_path: Path
) -> None:
    server = postgresql_server
    store = {"MLFLOW_TRACKING_URI": server.address}
    command(workspace, "dvc", "repro", "--force", "--single-item", "stats", **store)
    server.kill()
    command(workspace, "dvc", "repro", "--force", "--single-item", "evaluate", **store)
    command(workspace, "python", "-m", "stages.report", **store, ONECYCLE_TRACKING="journal")
    server.start()
    command(workspace, "onecycle", "sync", **store)

    client = MlflowClient(server.address)
    found = rows(server)
    assert [row.info.status for row in found] == ["FINISHED"] * 3
    assert [row.data.tags["dvc.stages"].split(", ")[-1] for row in found] == [
        "report cached",
        "report cached",
        "report ran",
    ]
    for row in found:
        assert {"stats/mean_red", "train/loss", "test/accuracy"} <= set(row.data.metrics)
        assert row.data.params["epochs"] == "3" and len(row.data.params) > 50
        assert [point.step for point in client.get_metric_history(row.info.run_id, "train/loss")] == [1, 2, 3]
        assert row.inputs.dataset_inputs[0].dataset.name == "digits"
        target = tmp_path / row.info.run_id
        target.mkdir()
        got = Path(client.download_artifacts(row.info.run_id, "stats/stats.json", str(target)))
        assert got.read_bytes() == (workspace / paths.STATS_JSON).read_bytes()
        assert row.data.tags["model.version"] == "onecycle-digits/1"
    assert not list((workspace / ".state/journal").glob("*/entries.jsonl"))
    assert not list(workspace.glob("mlflow.db*")) and not (workspace / "mlartifacts").exists()

    (tmp_path / "load.py").write_text(LOAD, encoding="utf-8")
    images = workspace / paths.DATASET / "test_images.npy"
    command(tmp_path, "python", "-P", "load.py", server.address, str(images), "onecycle-digits")
    assert np.abs(np.load(tmp_path / "loaded.npy") - np.load(workspace / paths.PROBABILITIES)).max() <= 1e-5

    before = [(row.info.run_id, row.data.metrics) for row in rows(server)]
    assert command(workspace, "onecycle", "sync", **store).stdout == "nothing to send\n"
    assert [(row.info.run_id, row.data.metrics) for row in rows(server)] == before
