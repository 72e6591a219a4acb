"""A store that is away, stops midway, is locked, is none: the stages finish, the user is told, nothing is lost."""

from __future__ import annotations

import os
import socket
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from signal import SIGTERM
from urllib.error import URLError
from urllib.request import urlopen

import pytest
from conftest import command, set_params
from ending import HANG_SECONDS, wait_for_file_before_renaming, wait_for_trouble_before_writing
from tracked_workspace import wait_for

from onecycle.tracking.store import prepare

TOLD = "nothing is lost, `onecycle sync` sends it later"


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def rows(workspace: Path, database: str = "mlflow.db") -> list[tuple[str, int]]:
    """Of each row in a store, its status and of how many epochs it has the training loss; oldest first."""
    with closing(sqlite3.connect(workspace / database)) as store:
        return store.execute(
            "SELECT status, (SELECT count(*) FROM metrics WHERE run_uuid = runs.run_uuid AND key = 'train/loss') "
            "FROM runs ORDER BY start_time"
        ).fetchall()


@pytest.mark.slow
def test_26_down_from_the_start(workspace: Path, tmp_path: Path) -> None:
    """Told once, though each stage of the command could; replayed by `onecycle sync`."""
    hook = wait_for_trouble_before_writing(tmp_path / "hook", "stats", "samples.png")
    address = f"http://127.0.0.1:{free_port()}"
    line = ("dvc", "repro", "--force", "--single-item", "stats", "train")
    done = command(workspace, *line, MLFLOW_TRACKING_URI=address, **hook)
    assert "epoch  3/3  train" in done.stderr
    assert done.stderr.count("tracking: ") == 1
    assert TOLD in done.stderr
    assert command(workspace, "git", "status", "--porcelain").stdout == ""
    command(workspace, "onecycle", "sync")
    assert rows(workspace) == [("FINISHED", 3)]


@contextmanager
def server(workspace: Path, port: int) -> Iterator[None]:
    """MLflow's server, with its store in the workspace."""
    options = f"--host 127.0.0.1 --port {port} --workers 1 --backend-store-uri sqlite:///server.db".split()
    options += ["--artifacts-destination", str(workspace / "served")]
    process = subprocess.Popen(
        [sys.executable, "-m", "mlflow", "server", *options],
        cwd=workspace,
        env={**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        wait_for(lambda: answers(f"http://127.0.0.1:{port}/health"), HANG_SECONDS)
        yield
    finally:
        os.killpg(process.pid, SIGTERM)  # the command, and the server that it started
        process.wait()


def answers(address: str) -> bool:
    try:
        with urlopen(address, timeout=5):
            return True
    except (URLError, OSError):
        return False


@pytest.mark.slow
def test_26_stopped_midway(workspace: Path, tmp_path: Path) -> None:
    """The server ends while training is held up after its second epoch; when it is back, the row is made whole."""
    port, go_on = free_port(), tmp_path / "go on"
    set_params(workspace, {"runtime.checkpoint_seconds": 3600})
    hook = wait_for_file_before_renaming(tmp_path / "hook", "train", "step-00000018.ckpt", go_on)
    address = {"MLFLOW_TRACKING_URI": f"http://127.0.0.1:{port}"}
    with server(workspace, port):
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        training = subprocess.Popen(
            ["dvc", "repro", "--force", "--single-item", "train"],
            cwd=workspace,
            env={**os.environ, "PATH": path, **address, **hook},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            wait_for(lambda: (workspace / "server.db").exists() and ("RUNNING", 2) in rows(workspace, "server.db"), 120)
        except AssertionError:
            training.kill()
            raise
    go_on.touch()
    _, said = training.communicate(timeout=HANG_SECONDS)
    assert training.returncode == 0, said
    assert said.count("tracking: ") == 1 and TOLD in said
    assert rows(workspace, "server.db") == [("RUNNING", 2)]
    with server(workspace, port):
        command(workspace, "onecycle", "sync", **address)
    assert rows(workspace, "server.db") == [("FINISHED", 3)]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """An empty store."""
    file = tmp_path_factory.mktemp("store") / "mlflow.db"
    prepare(file)
    return file.read_bytes()


@contextmanager
def locked(workspace: Path) -> Iterator[None]:
    with closing(sqlite3.connect(workspace / "mlflow.db", isolation_level=None)) as holder:
        holder.execute("PRAGMA locking_mode = EXCLUSIVE")
        holder.execute("BEGIN EXCLUSIVE")
        yield


@contextmanager
def in_its_place(path: Path, content: bytes | None) -> Iterator[None]:
    """A file, or a folder, where something else should be; it must be as it was in the end."""
    aside = path.with_name("aside")
    if path.exists():
        path.rename(aside)
    path.mkdir() if content is None else path.write_bytes(content)
    yield
    assert list(path.iterdir()) == [] if content is None else path.read_bytes() == content
    path.rmdir() if content is None else path.unlink()
    if aside.exists():
        aside.rename(path)


@contextmanager
def newer(workspace: Path) -> Iterator[None]:
    """As a later MLflow has changed it."""
    file = workspace / "mlflow.db"
    with closing(sqlite3.connect(file)) as database, database:
        [(ours,)] = database.execute("SELECT version_num FROM alembic_version").fetchall()
        database.execute("UPDATE alembic_version SET version_num = 'ffffffffffff'")
    changed = file.read_bytes()
    yield
    assert file.read_bytes() == changed
    with closing(sqlite3.connect(file)) as database, database:
        database.execute("UPDATE alembic_version SET version_num = ?", (ours,))


OBSTACLES = {
    "locked": (locked, "database is locked"),
    "unwritable": (lambda workspace: in_its_place(workspace / "mlflow.db", None), "unable to open database file"),
    "artifacts-unwritable": (lambda workspace: in_its_place(workspace / "mlartifacts", b"a file"), "mlartifacts"),
    "malformed": (lambda workspace: in_its_place(workspace / "mlflow.db", b"not a database" * 999), "not a database"),
    "newer": (newer, "of a newer MLflow than"),
}


SLOW = [pytest.param(obstacle, marks=pytest.mark.slow) for obstacle in OBSTACLES if obstacle != "malformed"]


@pytest.mark.parametrize("obstacle", ["malformed", *SLOW])
def test_27_database(workspace: Path, store: bytes, tmp_path: Path, obstacle: str) -> None:
    (workspace / "mlflow.db").write_bytes(store)
    hinder, reason = OBSTACLES[obstacle]
    stages, file = ["stats"], "samples.png"
    if obstacle == "artifacts-unwritable":  # which shows only when the first stage has some
        stages, file = ["stats", "train"], "schedule.csv"
    hook = wait_for_trouble_before_writing(tmp_path / "hook", stages[-1], file)
    with hinder(workspace):
        done = command(workspace, "dvc", "repro", "--force", "--single-item", *stages, **hook)
        told = [text for text in done.stderr.splitlines() if text.startswith("tracking: ")]
        assert len(told) == 1 and reason in told[0] and told[0].endswith(TOLD), done.stderr
    assert command(workspace, "git", "status", "--porcelain").stdout == ""
    command(workspace, "onecycle", "sync")
    assert [status for status, _ in rows(workspace)] == ["FINISHED"]
    assert not list((workspace / ".state" / "journal").glob("*/entries.jsonl"))
