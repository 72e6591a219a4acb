"""Rows on a tracking server with PostgreSQL, through which the artifacts go, too: everything has to work there.

Needs Debian's packages: apt-get install postgresql. Each test makes a cluster of its own on a free port and drops it.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psycopg2
import pytest
from conftest import command
from mlflow import MlflowClient
from mlflow_server import Server
from test_queue import waited_for

from onecycle import paths
from onecycle.exits import CRASHED

VERSIONS = sorted((path.parts[-3] for path in Path("/usr/lib/postgresql").glob("*/bin/postgres")), key=int)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(2400),
    pytest.mark.skipif(
        not (VERSIONS and shutil.which("pg_createcluster")), reason="needs Debian's: apt-get install postgresql"
    ),
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root, who alone may make a cluster"),
]


@pytest.fixture
def postgresql() -> Iterator[str]:
    """The address of an empty database in a cluster of its own, which goes afterwards."""
    version, name = VERSIONS[-1], f"onecycle{uuid.uuid4().hex[:8]}"
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
def server(postgresql: str, tmp_path: Path) -> Iterator[Server]:
    """A server with PostgreSQL, which answers."""
    server = Server(postgresql, tmp_path / "server")
    try:
        server.start()
        yield server
    finally:
        server.kill()


SECRET = "s3cret-of-the-server"

WAYS = {"here": (), "temporary": ("--temp",), "queued-1": ("--queue",), "queued-2": ("--queue",)}
"""What `dvc exp run` is told, by the experiment's name."""

ENDS = {
    "1 / 0": (CRASHED, "FAILED"),
    "os.kill(os.getpid(), signal.SIGTERM)": (143, "KILLED"),
    "os.kill(os.getpid(), signal.SIGKILL)": (-9, "KILLED"),
}
"""Bad ends of a stage: its exit code and the row's status."""

BAD_END = """
import os, signal
from onecycle.stage import run

def main(params, row):
    row.metrics({{"train/loss": 0.5}}, step=1)
    {end}

run("train", main)
"""


def test_every_way_to_execute_is_a_row_whose_end_is_told_and_the_password_is_seen_nowhere(
    postgresql: str, server: Server, workspace: Path, tmp_path: Path
) -> None:
    said: list[str] = []

    def run(*words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        done = command(workspace, *words, check=check, MLFLOW_TRACKING_URI=server.login(SECRET))
        said.extend((done.stdout, done.stderr))
        return done

    run("dvc", "repro", "--force", "--single-item", "stats")
    for number, (name, way) in enumerate(WAYS.items(), 1):
        changes = ("-S", f"one_cycle.max_lr={number / 100}", "-S", "epochs=1", "-S", "one_cycle.max_at_epoch=0.5")
        run("dvc", "exp", "run", *way, "--name", name, *changes, "train")
    history = (workspace / paths.HISTORY).read_bytes()
    run("dvc", "queue", "start", "--jobs", "2")
    queued = {name for name, way in WAYS.items() if way == ("--queue",)}
    assert waited_for(workspace, queued) == dict.fromkeys(queued, "success")
    for end, (code, _) in ENDS.items():
        done = run("python", "-c", BAD_END.format(end=end), check=False)
        assert done.returncode == code, done.stderr
    run("onecycle", "sync")
    run("dvc", "repro", "stats")  # nothing to do, so no row
    run("onecycle", "sync")
    assert f"{server.address}/#/experiments/" in run("onecycle", "ui").stdout

    client = MlflowClient(server.address)
    repro, *others = server.rows()
    experiments = {row.info.run_name: row for row in others if "dvc.exp_name" in row.data.tags}
    by_hand = [row for row in others if "dvc.exp_name" not in row.data.tags]
    assert set(experiments) == set(WAYS)
    assert {row.info.status for row in (repro, *experiments.values())} == {"FINISHED"}
    assert [row.info.status for row in by_hand] == [status for _, status in ENDS.values()]
    assert all(row.data.metrics["train/loss"] == 0.5 for row in by_hand)
    assert repro.data.tags["dvc.stages"].startswith("download cached, stats ran")
    for name, row in experiments.items():
        assert row.data.tags["dvc.stages"] == "download cached, stats cached, lr_range cached, train ran"
        assert row.data.params["one_cycle.max_lr"] == f"{(1 + list(WAYS).index(name)) / 100}"
        assert row.info.artifact_uri.startswith("mlflow-artifacts:/")
        target = tmp_path / name
        target.mkdir()
        got = Path(client.download_artifacts(row.info.run_id, "", str(target)))
        files = {file.relative_to(got).as_posix() for file in got.rglob("*") if file.is_file()}
        assert {"stats/samples.png", "lr_range/curve.png", "train/history.csv", "train/augmented.png"} <= files
        assert ((got / "train/history.csv").read_bytes() == history) == (name == "here")
        measured = json.loads((got / "train/metrics.json").read_text(encoding="utf-8"))
        assert measured["train_loss"] == row.data.metrics["train/loss"]

    said.append(subprocess.run(["pg_dump", postgresql.replace("+psycopg2", "")], capture_output=True, text=True).stdout)
    assert repro.info.run_id in said[-1]
    files = [path for path in tmp_path.rglob("*") if path.is_file() and not path.is_symlink()]
    files = [path for path in files if not path.is_relative_to(workspace / "tests")]  # which have the word themselves
    assert [path for path in files if SECRET.encode() in path.read_bytes()] == []
    assert not [text for text in said if SECRET in text]
    assert not list(workspace.glob("mlflow.db*")) and not (workspace / "mlartifacts").exists()


LOAD = """
import sys
import mlflow, numpy as np

mlflow.set_tracking_uri(sys.argv[1])
np.save("loaded.npy", mlflow.pyfunc.load_model(f"models:/{sys.argv[3]}@candidate").predict(np.load(sys.argv[2])))
"""


def test_rows_artifacts_the_model_and_what_was_missed_reach_a_server_with_postgresql(
    server: Server, workspace: Path, tmp_path: Path
) -> None:
    store = {"MLFLOW_TRACKING_URI": server.address}
    command(workspace, "dvc", "repro", "--force", "--single-item", "stats", **store)
    server.kill()
    command(workspace, "dvc", "repro", "--force", "--single-item", "evaluate", **store)
    command(workspace, "python", "-m", "stages.report", **store, ONECYCLE_TRACKING="journal")
    server.start()
    command(workspace, "onecycle", "sync", **store)

    client = MlflowClient(server.address)
    found = server.rows()
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

    before = [(row.info.run_id, row.data.metrics) for row in server.rows()]
    assert command(workspace, "onecycle", "sync", **store).stdout == "nothing to send\n"
    assert [(row.info.run_id, row.data.metrics) for row in server.rows()] == before
