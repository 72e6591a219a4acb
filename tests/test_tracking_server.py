"""Rows on a tracking server that dies midway, and whose address holds a password."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow_server import Server
from tracked_workspace import Workspace, finish, wait_for

from onecycle.tracking.database import prepare
from onecycle.tracking.journal import Journal

SECRET = "s3cret-of-the-server"

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


def losses(server: Server, run_id: str) -> list[tuple[int, float]]:
    """(epoch, loss) of a row."""
    history = MlflowClient(server.address).get_metric_history(run_id, "train/loss")
    return sorted((point.step, point.value) for point in history)


def test_a_server_that_dies_midway_hinders_nothing_and_gets_everything_once_when_it_is_back(
    server: Server, tmp_path: Path
) -> None:
    workspace = Workspace(tmp_path / "work")
    settings = {"MLFLOW_TRACKING_URI": server.login(SECRET), "MLFLOW_ENABLE_ASYNC_LOGGING": "true"}
    stage = workspace.python("-c", f"from pathlib import Path{EPOCHS}", **settings)
    try:
        wait_for(lambda: workspace.journals, 120)
        [file] = workspace.journals
        wait_for(lambda: any(row.data.metrics for row in server.rows()), 120)
        server.kill()
        wait_for(lambda: Journal(file.parent).sent().trouble, 120)
        workspace.write("enough", "")
        output = finish(stage)
    finally:
        workspace.close()
    [(epochs, tracking, longest)] = re.findall(r"^(\d+) epochs, ([\d.]+) s for tracking, ([\d.]+) s an", output, re.M)
    assert float(tracking) < 6 and float(longest) < 1
    [told] = [line for line in output.splitlines() if line.startswith("tracking: ")]
    assert "nothing is lost" in told and SECRET not in output

    server.start()
    assert re.fullmatch(r"\S+: sent\n", finish(workspace.sync(MLFLOW_TRACKING_URI=server.login(SECRET))))
    [row] = server.rows()
    assert row.info.status == "FINISHED"
    assert losses(server, row.info.run_id) == [(epoch, 1 / epoch) for epoch in range(1, int(epochs) + 1)]
    download = MlflowClient(server.address).download_artifacts
    for folder in ("before", "after"):
        page = Path(download(row.info.run_id, f"{folder}/params.yaml", str(tmp_path)))
        assert page.read_bytes() == (workspace.root / "params.yaml").read_bytes()
    assert not workspace.journals
    assert not list(workspace.root.glob("mlflow.db*"))

    ui = workspace.python("-c", "from onecycle.cli import main; main(['ui'])", MLFLOW_TRACKING_URI=server.login(SECRET))
    assert finish(ui).startswith(f"onecycle-cifar10: {server.address}/#/experiments/1/runs?")
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert [path for path in files if SECRET.encode() in path.read_bytes()] == []
