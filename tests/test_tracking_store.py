"""Tracking with real MLflow stores, real processes and real signals."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import shutil
import signal
import socket
import sqlite3
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import asdict, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import quote

import mlflow
import psutil
import pytest
from filelock import FileLock, Timeout
from mlflow import MlflowClient
from mlflow.entities import Experiment
from tracked_workspace import REPO, Workspace, finish, forget_stores, wait_for

from onecycle import paths
from onecycle.errors import UserError
from onecycle.exits import CRASHED
from onecycle.tracking import database, registry
from onecycle.tracking.collect import STAGES
from onecycle.tracking.database import default_uri, prepare
from onecycle.tracking.ending import cut_short, final_lock
from onecycle.tracking.errors import StoreError, guarded
from onecycle.tracking.execution import Execution, Process
from onecycle.tracking.journal import Journal
from onecycle.tracking.rebuild import NOBODY
from onecycle.tracking.relay import Relay
from onecycle.tracking.relocate import relocate
from onecycle.tracking.row_state import Model
from onecycle.tracking.store import EXPERIMENT_PREFIX, Store, connect, open_client
from onecycle.tracking.sync import sync

JOURNAL = {"ONECYCLE_TRACKING": "journal"}
SECRET = "s3cret-that-nobody-may-see"
STALE = {
    "MLFLOW_RUN_ID": "0" * 32,
    "MLFLOW_EXPERIMENT_ID": "7",
    "DVC_ROOT": "/nowhere",
    "DVC_STAGE": "evaluate",
    "DVC_EXP_NAME": "of-another-day",
    "DVC_EXP_BASELINE_REV": "0" * 40,
}
"""What a shell may have left from other runs; by hand, all of it is to change nothing."""

FAKE_DVC = """
import subprocess, sys
for stage in sys.stdin:
    subprocess.run([sys.executable, "-c", stage.strip()], check=False)
    print("done", flush=True)
"""
"""A Python file called dvc, which is all that an execution is told by; runs the stages that it is sent."""


NEWER = "f" * 12


def set_version(database: Path, version: str) -> str:
    """Have a database say that it has the tables of another version of MLflow; returns what it said before."""
    with closing(sqlite3.connect(database)) as store, store:
        [(before,)] = store.execute("SELECT version_num FROM alembic_version")
        store.execute("UPDATE alembic_version SET version_num = ?", (version,))
    return str(before)


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database with MLflow's tables and nothing in them, since making them takes seconds."""
    database = tmp_path_factory.mktemp("store") / "mlflow.db"
    prepare(database)
    return database


@pytest.fixture
def fresh_workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Workspace]:
    """An empty workspace, in a folder that a careless quoting would trip over; the test runs in it."""
    workspace = Workspace(tmp_path / "ä b#c%20d?e")
    forget_stores()  # of whatever folder the tests before worked in
    monkeypatch.chdir(workspace.root)
    yield workspace
    workspace.close()
    forget_stores()


@pytest.fixture
def workspace(fresh_workspace: Workspace, empty_store: Path) -> Workspace:
    """The same with a store in it."""
    shutil.copy(empty_store, fresh_workspace.root)
    return fresh_workspace


@pytest.fixture
def silent_server() -> Iterator[str]:
    """The address of a server that takes connections and never answers."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen(20)
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


def one_stage(stage: str, body: str = "pass") -> str:
    """A stage by hand as one line, for FAKE_DVC."""
    code = f"from onecycle.stage import run\ndef main(params, row): {body}\nrun({stage!r}, main)\n"
    return f"exec({code!r})\n"


def tell(dvc: subprocess.Popen[str], line: str) -> None:
    """Have FAKE_DVC run one stage, and wait for its end."""
    assert dvc.stdin and dvc.stdout
    dvc.stdin.write(line)
    dvc.stdin.flush()
    assert dvc.stdout.readline() == "done\n"


def test_ten_executions_in_folders_that_disappear_become_ten_rows_in_a_fresh_store(
    fresh_workspace: Workspace, tmp_path: Path
) -> None:
    """As queued experiments do."""
    workspace = fresh_workspace
    folders = [workspace.root / f".dvc/tmp/exps/tmp{i}" for i in range(10)]
    for number, folder in enumerate(folders):
        (folder / "results/stats").mkdir(parents=True)
        shutil.copy(workspace.root / "params.yaml", folder)
        (folder / "results/stats/samples.png").write_bytes(b"picture %d" % number)
        (folder / "results/stats/stats.json").write_text(json.dumps({"mean": {"red": number / 10}}))
    stages = [workspace.stage("stats", cwd=folder, **STALE, **JOURNAL) for folder in folders]
    for stage, folder in zip(stages, folders, strict=True):
        finish(stage)
        shutil.rmtree(folder)
    assert len(workspace.journals) == 10
    list(sync())

    rows = workspace.rows()
    assert [row.status for row in rows] == ["FINISHED"] * 10
    assert sorted(row.metrics["stats/mean_red"][0][1] for row in rows) == [i / 10 for i in range(10)]
    for row in rows:
        number = round(row.metrics["stats/mean_red"][0][1] * 10)
        assert (row.artifacts / "stats/samples.png").read_bytes() == b"picture %d" % number
        assert row.artifacts.is_relative_to(workspace.root / "mlartifacts")
        assert row.params["epochs"] == "24" and len(row.params) > 50
    assert list(tmp_path.iterdir()) == [workspace.root]  # no folder with a quoted name beside it
    download = mlflow.MlflowClient(default_uri()).download_artifacts
    assert Path(download(rows[0].run_id, "stats/stats.json", str(tmp_path))).is_file()
    assert not workspace.journals
    left = {path.name for path in workspace.root.iterdir()}
    assert left <= {".dvc", ".state", "params.yaml", "mlflow.db", "mlflow.db-wal", "mlflow.db-shm", "mlartifacts"}


def test_two_processes_that_create_the_store_at_once_get_the_same(fresh_workspace: Workspace) -> None:
    """MLflow's own creation fails then, nearly always; a creation that was killed leaves nothing that matters."""
    fresh_workspace.write("mlflow.db.1.tmp", "half a database")
    code = """
import mlflow.store.tracking.sqlalchemy_store
from onecycle.tracking.store import connect
input(print("ready", flush=True) or "")
print(connect("onecycle-digits").identity)
"""
    creators = [fresh_workspace.python("-c", code) for _ in range(2)]
    for creator in creators:
        assert creator.stdout and creator.stdout.readline() == "ready\n"
    for creator in creators:
        assert creator.stdin
        creator.stdin.write("go\n")
        creator.stdin.flush()
    identities = {creator.communicate(timeout=120)[0] for creator in creators}
    assert len(identities) == 1 and re.fullmatch(r"[0-9a-f]{16}#1@\d+\n", identities.pop())  # the address is in no file
    assert not list(fresh_workspace.root.glob("*.tmp*"))


def test_one_lock_guards_a_new_database_however_it_is_named(
    fresh_workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the workspace that it is in, and by another that borrows it."""
    file = fresh_workspace.root / "mlflow.db"
    locked = []

    def create(new: Path) -> None:
        try:
            FileLock(fresh_workspace.root / ".state/mlflow.lock").acquire(timeout=0)
        except Timeout:
            locked.append(new)
        new.touch()

    monkeypatch.setattr(database, "_create", create)
    prepare(Path("mlflow.db"))
    file.unlink()
    monkeypatch.chdir(Workspace(tmp_path / "borrower").root)
    prepare(file)
    assert locked == [Path("mlflow.db"), file]


def test_a_run_whose_creation_gets_no_answer_is_not_made_twice(fresh_workspace: Workspace) -> None:
    """A server that was restarted may have made it; what was asked to be logged is asked again."""
    asked: list[str] = []

    class Restarted(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked.append(self.path.rsplit("/", 1)[-1])
            self.close_connection = True

        def log_message(self, *_args: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Restarted) as server:
        threading.Thread(target=server.serve_forever).start()
        uri = f"http://127.0.0.1:{server.server_port}"
        store = Store(open_client(uri), uri, Experiment("1", "onecycle-digits", "", "active"))
        with pytest.raises(StoreError):
            store.create("row", 1)
        with pytest.raises(StoreError):
            store.log("run", tags={"a": "b"})
        server.shutdown()
    assert asked == ["create", "log-batch", "log-batch"]


def test_values_are_in_the_store_while_the_stage_runs_and_killed_stages_are_noted(workspace: Workspace) -> None:
    """The one that is killed now by its own sender, one that was killed with its sender by the next execution's."""
    earlier = workspace.stage("stats", "print('ready', flush=True); time.sleep(60)", **JOURNAL)
    assert earlier.stdout and earlier.stdout.readline() == "ready\n"
    earlier.kill()
    earlier.communicate()
    body = "for epoch in range(1, 600):\n    row.metrics({'train/loss': 1 / epoch}, step=epoch); time.sleep(0.1)"
    stage = workspace.stage("train", body, **STALE)
    wait_for(lambda: [row for row in workspace.rows() if len(row.metrics.get("train/loss", ())) > 5])
    wait_for(lambda: "system/cpu_utilization_percentage" in workspace.rows()[-1].metrics)
    wait_for(lambda: len(workspace.rows()) == 2)
    assert [row.status for row in workspace.rows()] == ["KILLED", "RUNNING"]
    stage.kill()
    stage.communicate()
    wait_for(lambda: workspace.rows()[-1].status == "KILLED", 20)
    assert not {"dvc.exp_name", "dvc.baseline"} & set(workspace.rows()[-1].tags)
    assert [row.tags["dvc.stages"] for row in workspace.rows()] == ["stats killed", "train killed"]
    wait_for(lambda: not workspace.journals, 20)


def test_signals_leave_killed_rows_with_what_was_logged(workspace: Workspace) -> None:
    body = "row.metrics({'train/loss': 1.0}, step=1); print('ready', flush=True); time.sleep(60)"
    codes = {signal.SIGTERM: 143, signal.SIGINT: 130, signal.SIGHUP: 129, signal.SIGKILL: -9}
    stages = {number: workspace.stage("train", body, **JOURNAL) for number in codes}
    for number, stage in stages.items():
        assert stage.stdout and stage.stdout.readline() == "ready\n"
        stage.send_signal(number)
    for number, stage in stages.items():
        finish(stage, codes[number])
    list(sync())
    rows = workspace.rows()
    assert [row.status for row in rows] == ["KILLED"] * 4
    assert all(row.metrics["train/loss"] == [(1, 1.0)] for row in rows)


def test_under_nohup_a_closed_terminal_ends_nothing(workspace: Workspace) -> None:
    nohup = ("sh", "-c", 'trap "" HUP; exec "$@"', "nohup")
    stage = workspace.stage("train", "print('ready', flush=True); sys.stdin.readline()", under=nohup, **JOURNAL)
    assert stage.stdout and stage.stdin and stage.stdout.readline() == "ready\n"
    stage.send_signal(signal.SIGHUP)
    stage.stdin.write("go on\n")
    finish(stage)


def test_a_signal_after_a_stages_work_does_not_cost_its_result(workspace: Workspace) -> None:
    body = """
import os, signal
from onecycle.tracking.row import Row
collect = Row._collect
Row._collect = lambda row: (os.kill(os.getpid(), signal.SIGTERM), collect(row))
"""
    said = finish(workspace.stage("train", body, **JOURNAL))
    assert said == "train was done when SIGTERM came, and keeps its result; once more ends what follows\n"
    list(sync())
    assert [row.status for row in workspace.rows()] == ["FINISHED"]


def test_what_a_kill_leaves_in_doubt_is_sent_again_and_stored_once(workspace: Workspace) -> None:
    body = """
for step in range(2000): row.metrics({"train/loss": float(step % 7), "train/odd": float("nan")}, step=step)
for number in range(30):
    Path(f"{number}.txt").write_text(str(number)); row.artifact(Path(f"{number}.txt"))
"""
    workspace.write("data/arrays/dataset.json", {"name": "digits", "classes": ["0"], "digest": "ab" * 32})
    finish(workspace.stage("train", body, **JOURNAL))
    [journal] = workspace.journals
    shutil.copytree(journal.parent, workspace.root / "copy")

    for seconds in (0.0, 0.15, 0.4):  # killed at some point after the row was created
        sender = workspace.sync()
        wait_for(workspace.rows)
        time.sleep(seconds)
        sender.kill()
        sender.communicate()
    list(sync())
    [row] = workspace.rows()
    assert row.status == "FINISHED"

    shutil.copytree(workspace.root / "copy", journal.parent)  # killed after sending all, before noting any
    list(sync())
    [again] = workspace.rows()
    assert again == row
    assert [value for _, value in row.metrics["train/loss"]] == [float(step % 7) for step in range(2000)]
    assert len(row.metrics["train/odd"]) == 2000
    assert sorted(path.name for path in (row.artifacts / "train").iterdir()) == sorted(f"{i}.txt" for i in range(30))


def test_a_server_that_is_down_or_hangs_costs_seconds_and_loses_nothing(
    workspace: Workspace, silent_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        down = f"http://me:{SECRET}@127.0.0.1:{closed.getsockname()[1]}"
    timed = """
import time
from onecycle import paths, tracking
from onecycle.params import load
params, started = load(paths.PARAMS), time.monotonic()
with tracking.join("train", params) as row:
    for epoch in range(100): row.metrics({"train/loss": 1 / (epoch + 1)}, step=epoch)
print(time.monotonic() - started)
"""
    stages = [workspace.python("-c", timed, MLFLOW_TRACKING_URI=address) for address in (down, silent_server)]
    for stage in stages:
        output = finish(stage)
        assert float(re.findall(r"^[\d.]+$", output, re.MULTILINE)[0]) < 6
        assert SECRET not in output
    with monkeypatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", down)
        with pytest.raises(UserError, match="nothing is lost") as refusal:
            list(sync())
    assert SECRET not in str(refusal.value)

    list(sync())  # into the store that is current now
    assert [len(row.metrics["train/loss"]) for row in workspace.rows()] == [100, 100]
    assert not [path for path in workspace.root.rglob("*") if path.is_file() and SECRET.encode() in path.read_bytes()]


def test_a_second_signal_while_the_row_is_closed_does_not_leave_it_open(
    workspace: Workspace, silent_server: str
) -> None:
    stage = workspace.stage("train", "print('ready', flush=True); time.sleep(60)", MLFLOW_TRACKING_URI=silent_server)
    assert stage.stdout and stage.stdout.readline() == "ready\n"
    stage.send_signal(signal.SIGINT)
    wait_for(lambda: workspace.entries()[-1]["event"] == "close")
    stage.send_signal(signal.SIGTERM)
    finish(stage, 130)
    assert workspace.entries()[-1]["status"] == "KILLED"


@pytest.mark.parametrize(
    ("obstacle", "told"),
    [
        ("folder", "mlflow.db: unable to open"),
        ("garbage", "mlflow.db: file is not a database"),
        (
            "torn",
            r"mlflow.db: database disk image is malformed; move mlflow.db\* away, then `onecycle sync --from-git`",
        ),
        ("newer", "mlflow.db is of a newer MLflow than .* name another store"),
        ("unfinished", "mlflow.db is half made .* move it away"),
        ("older", "mlflow.db is of an older MLflow.*`mlflow db upgrade sqlite:///mlflow.db`"),
    ],
)
def test_a_database_that_is_no_use_is_told_and_left_alone(workspace: Workspace, obstacle: str, told: str) -> None:
    database = workspace.root / "mlflow.db"
    match obstacle:
        case "folder":
            database.unlink()
            database.mkdir()
        case "garbage":
            database.write_bytes(b"not a database" * 1000)
        case "torn":  # the first page says where everything is
            content = database.read_bytes()
            database.write_bytes(content[:4096] + b"\xff" * (len(content) - 4096))
        case "newer":
            set_version(database, NEWER)
        case "unfinished":
            with closing(sqlite3.connect(database)) as store, store:
                store.execute("DELETE FROM alembic_version")
        case "older":  # MLflow would migrate it as soon as a table is missing, whoever else is at it
            set_version(database, "0584bdc529eb")
            with closing(sqlite3.connect(database)) as store, store:
                store.execute("DROP TABLE webhook_events")
    before = None if obstacle == "folder" else database.read_bytes()
    finish(workspace.stage("train", **JOURNAL))
    with pytest.raises(UserError, match=told) as refusal:
        list(sync())
    assert "\n" not in str(refusal.value)
    assert database.is_dir() if before is None else database.read_bytes() == before
    assert workspace.journals


def test_what_a_deleted_database_leaves_spoils_no_new_one(fresh_workspace: Workspace) -> None:
    """As `rm mlflow.db` leaves the log of what was being written."""
    for suffix in ("wal", "shm", "journal"):
        fresh_workspace.write(f"mlflow.db-{suffix}", b"\xff" * 8192)
    put_by = ("mlflow.db-old", "mlflow.db-2026-11-01.sqlite", "mlflow.db.old.tmp")
    for name in put_by:
        fresh_workspace.write(name, "a copy")
    finish(fresh_workspace.stage("stats"))
    finish(fresh_workspace.sync())
    [row] = fresh_workspace.rows()
    assert row.status == "FINISHED"
    assert all((fresh_workspace.root / name).exists() for name in put_by)


def test_a_journal_that_is_none_keeps_no_other_from_the_store(workspace: Workspace) -> None:
    Journal(workspace.root / ".state/journal/none").append("metrics", stage="train", values={"a": 1.0}, step=None)
    (workspace.root / ".state/journal/none/sent.json").touch()
    finish(workspace.stage("train", **JOURNAL))
    with pytest.raises(UserError, match="none lacks the entry that opens a row"):
        list(sync())
    assert [row.status for row in workspace.rows()] == ["FINISHED"]
    assert [file.parent.name for file in workspace.journals] == ["none"]


def test_a_journal_that_lacks_a_file_keeps_no_younger_one_from_the_store(workspace: Workspace) -> None:
    workspace.write("results/stats/stats.json", {"mean": {"red": 0.5}})
    finish(workspace.stage("stats", **JOURNAL))
    [older] = workspace.journals
    [copy] = older.parent.glob("files/*/stats.json")
    copy.unlink()
    finish(workspace.stage("train", **JOURNAL))
    with pytest.raises(UserError, match=r"stats\.json"):
        list(sync())
    assert "train ran" in [row.tags.get("dvc.stages") for row in workspace.rows()]
    assert workspace.journals == [older]


def test_a_damaged_journal_ends_no_sender_that_takes_it_along(workspace: Workspace) -> None:
    damaged = Journal(workspace.root / ".state/journal/damaged")
    damaged.append("open", stage="train")
    stage = workspace.stage("train", "sys.stdin.readline()")
    wait_for(lambda: damaged.sent().trouble)
    assert damaged.sent().trouble == "KeyError: 'row'"
    finish(stage)
    wait_for(lambda: workspace.journals == [damaged.file])
    assert [row.status for row in workspace.rows()] == ["FINISHED"]


def test_a_row_that_was_meant_for_another_store_waits_for_it_or_for_its_user(workspace: Workspace) -> None:
    finish(workspace.stage("stats", MLFLOW_TRACKING_URI="http://127.0.0.1:9"))  # nobody listens there
    wait_for(lambda: not Journal(workspace.journals[0].parent).sent().sender.alive())
    meant = workspace.journals
    finish(workspace.stage("train", "sys.stdin.readline()"))
    wait_for(lambda: workspace.journals == meant)
    assert [row.tags["dvc.stages"] for row in workspace.rows()] == ["train ran"]
    assert "not sent" not in finish(workspace.sync())
    assert sorted(row.tags["dvc.stages"] for row in workspace.rows()) == ["stats ran", "train ran"]


UNTIL_TOLD = """
from onecycle.tracking.journal import all_journals
for epoch in range(1, 121):
    row.metrics({"train/loss": 1 / epoch}, step=epoch)
    if all_journals()[0].sent().trouble: break
    time.sleep(0.5)
"""
"""A stage that goes on until the sender has noticed what is in the way, a minute at most."""


@pytest.mark.skipif(not (shutil.which("prlimit") and shutil.which("setpriv")), reason="needs util-linux")
def test_a_store_that_takes_nothing_is_told_in_a_line_and_has_everything_once_it_does(
    tmp_path: Path, empty_store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    under = {
        "full": ["prlimit", "--fsize=40000"],  # room for the journal, none for MLflow's tables
        "read-only": ["setpriv", "--inh-caps=-dac_override", "--bounding-set=-dac_override"] * (os.geteuid() == 0),
        "newer": [],
    }
    workspaces = {name: Workspace(tmp_path / name) for name in under}
    databases = {name: Path(shutil.copy(empty_store, workspaces[name].root)) for name in under}
    databases["read-only"].chmod(0o444)
    version = set_version(databases["newer"], NEWER)
    before = {name: database.read_bytes() for name, database in databases.items()}
    quiet = {"PYTHONDONTWRITEBYTECODE": "1"}  # half of a module's would be left where the disk is full
    stages = {name: workspaces[name].stage("train", UNTIL_TOLD, under=under[name], **quiet) for name in under}
    said = {name: finish(stage) for name, stage in stages.items()}
    for name, words in (("full", "disk"), ("read-only", "readonly database"), ("newer", "of a newer MLflow")):
        [line] = said[name].splitlines()
        assert line.startswith("tracking: ") and words in line and "nothing is lost" in line
        assert databases[name].read_bytes() == before[name]

    # before the stores take anything: a sender may still be there, and get rid of its journal
    logged = {name: [entry for entry in workspaces[name].entries() if entry.get("step")] for name in under}
    databases["read-only"].chmod(0o644)
    set_version(databases["newer"], version)
    for name, workspace in workspaces.items():
        monkeypatch.chdir(workspace.root)
        list(sync())
        forget_stores()
        [row] = workspace.rows()
        assert row.status == "FINISHED"
        assert row.metrics["train/loss"] == [(epoch, 1 / epoch) for epoch in range(1, len(logged[name]) + 1)]
        assert not workspace.journals


def test_a_locked_database_stalls_nobody_and_is_told(workspace: Workspace) -> None:
    finish(workspace.stage("stats", **JOURNAL))
    list(sync())
    with closing(sqlite3.connect(workspace.root / "mlflow.db")) as holder:
        holder.execute("BEGIN IMMEDIATE")
        assert "tracking: mlflow.db: database is locked; nothing is lost" in finish(
            workspace.stage("train", UNTIL_TOLD)
        )
        assert len(workspace.rows()) == 1
    list(sync())
    assert [row.status for row in workspace.rows()] == ["FINISHED", "FINISHED"]


def test_a_row_follows_its_execution_through_a_lost_store_and_stays_deleted_when_a_person_deletes_it(
    workspace: Workspace,
) -> None:
    workspace.write("dvc", FAKE_DVC)
    dvc = workspace.python("dvc", "repro")
    tell(dvc, one_stage("stats", "row.metrics({'stats/a': 1.0})"))
    wait_for(lambda: [row for row in workspace.rows() if row.status == "FINISHED"])
    for name in ("mlflow.db", "mlflow.db-wal", "mlflow.db-shm"):
        (workspace.root / name).unlink(missing_ok=True)
    tell(dvc, one_stage("train", "row.metrics({'train/b': 2.0})"))
    both = ("FINISHED", "stats ran, train ran")
    wait_for(lambda: [row for row in workspace.rows() if (row.status, row.tags.get("dvc.stages")) == both])
    [row] = workspace.rows()
    assert {"stats/a", "train/b"} <= set(row.metrics)

    with closing(sqlite3.connect(workspace.root / "mlflow.db", timeout=20)) as store, store:
        store.execute("UPDATE runs SET lifecycle_stage = 'deleted'")
    tell(dvc, one_stage("report"))
    finish(dvc)
    wait_for(lambda: not workspace.journals)
    assert len(workspace.rows()) == 1


def test_who_sends_a_journal_along_is_not_taken_for_its_sender(workspace: Workspace) -> None:
    """That one was killed, as where memory is full; the next stage starts another, though this process lives on."""
    workspace.write("dvc", FAKE_DVC)
    dvc = workspace.python("dvc", "repro")
    tell(dvc, one_stage("stats"))
    journal = Journal(workspace.journals[0].parent)
    wait_for(lambda: journal.sent().sender)
    sender = journal.sent().sender
    assert sender
    os.kill(sender.pid, signal.SIGKILL)
    wait_for(lambda: not sender.alive())
    list(sync())
    assert journal.sent().offset
    tell(dvc, one_stage("train"))
    wait_for(lambda: [row for row in workspace.rows() if row.tags.get("dvc.stages") == "stats ran, train ran"])
    finish(dvc)
    wait_for(lambda: not workspace.journals)


def test_what_cannot_be_read_keeps_nothing_else_from_the_row(workspace: Workspace) -> None:
    """The commit's params.yaml is broken, and dvc.lock holds the marks of a merge."""
    good = (workspace.root / "params.yaml").read_text(encoding="utf-8")
    workspace.write("params.yaml", "seed: [\n")
    for command in (["init", "-q"], ["add", "params.yaml"], ["commit", "-qm", "broken"]):
        subprocess.run(["git", "-c", "user.name=a", "-c", "user.email=a@b", *command], check=True)
    workspace.write("params.yaml", good)
    workspace.write("dvc.lock", "<<<<<<< HEAD\nstages: {}\n=======\n")
    assert "tracking: train's row is incomplete: dvc.lock: cannot be read as YAML" in finish(workspace.stage("train"))
    wait_for(lambda: [row for row in workspace.rows() if row.status == "FINISHED"])
    [row] = workspace.rows()
    assert row.tags["git.commit"] and row.tags["git.dirty"] == "true" and "params.changed" not in row.tags


def test_what_shows_only_at_the_end_of_a_command_is_added_then(workspace: Workspace) -> None:
    """The digest of dvc.lock, which DVC writes after a stage, and results of later stages that it left as they were."""
    workspace.write("dvc", FAKE_DVC)
    workspace.write("results/evaluate/metrics.json", {"accuracy": 0.5})
    content = (workspace.root / "results/evaluate/metrics.json").read_bytes()
    out = {"path": "results/evaluate/metrics.json", "md5": hashlib.md5(content).hexdigest(), "size": len(content)}
    dvc = workspace.python("dvc", "repro", **JOURNAL)
    tell(dvc, one_stage("stats"))
    evaluated = {"params": {"params.yaml": {"seed": 0}}, "outs": [out]}
    workspace.write("dvc.lock", {"stages": {"stats": {}, "evaluate": evaluated}})
    finish(dvc)
    list(sync())
    [row] = workspace.rows()
    assert row.tags["dvc.stages"] == "stats ran, evaluate cached"
    assert row.metrics["test/accuracy"] == [(0, 0.5)]
    assert row.tags["dvc.lock"] == hashlib.sha256((workspace.root / "dvc.lock").read_bytes()).hexdigest()
    assert not workspace.journals


def test_a_row_that_is_sent_late_gets_no_other_run_s_dvc_lock(workspace: Workspace) -> None:
    """Two runs on a machine without a store: dvc.lock is then the second's, and says nothing of the first."""
    workspace.write("dvc", FAKE_DVC)
    for mean in (0.1, 0.2):
        dvc = workspace.python("dvc", "repro", **JOURNAL)
        workspace.write("results/stats/stats.json", {"mean": {"red": mean}})
        tell(dvc, one_stage("stats"))
        content = (workspace.root / "results/stats/stats.json").read_bytes()
        md5 = hashlib.md5(content).hexdigest()
        out = {"path": "results/stats/stats.json", "md5": md5, "size": len(content)}
        workspace.write("dvc.lock", {"stages": {"stats": {"outs": [out]}}})
        finish(dvc)
    list(sync())
    first, second = workspace.rows()
    assert [row.metrics["stats/mean_red"] for row in (first, second)] == [[(0, 0.1)], [(0, 0.2)]]
    assert "dvc.lock" not in first.tags and not (first.artifacts / "source/dvc.lock").exists()
    assert second.tags["dvc.lock"] == hashlib.sha256((workspace.root / "dvc.lock").read_bytes()).hexdigest()


@pytest.mark.parametrize(
    ("edited", "text", "has_lock"),
    [("dvc.lock", "<<<<<<< HEAD\nstages: {}\n", False), ("dvc.yaml", "stages:\n  train:\n", True)],
)
def test_what_a_person_edits_when_a_command_ends_costs_the_row_no_more_than_that(
    workspace: Workspace, edited: str, text: str, has_lock: bool
) -> None:
    workspace.write("dvc", FAKE_DVC)
    dvc = workspace.python("dvc", "repro")
    tell(dvc, one_stage("stats"))
    workspace.write("dvc.lock", {"stages": {"stats": {}}})
    workspace.write(edited, text)
    finish(dvc)
    wait_for(lambda: not workspace.journals)
    [row] = workspace.rows()
    assert (row.status, row.tags["dvc.stages"]) == ("FINISHED", "stats ran")
    assert ("dvc.lock" in row.tags) == has_lock


@pytest.mark.parametrize(
    ("words", "status", "stages"),
    [
        (["repro", "--force"], "FAILED", "stats ran, lr_range cached, train not run, evaluate not run"),
        (["repro", "stats"], "FINISHED", "stats ran, lr_range cached"),
    ],
)
def test_a_command_that_ended_before_it_had_run_all_is_no_success(
    workspace: Workspace, words: list[str], status: str, stages: str
) -> None:
    """Killed between two stages, say, or by one that could not even start: dvc.lock shows what it left."""
    workspace.write("dvc", FAKE_DVC)
    workspace.write("dvc.yaml", {"stages": {stage: {"frozen": stage == "report"} for stage in STAGES}})
    made = {"stats.json": "1", "model.pt": "2"}
    lock = {
        "download": {},
        "stats": {"outs": [{"path": "stats.json", "md5": made["stats.json"]}]},
        "lr_range": {"deps": [{"path": "stats.json", "md5": made["stats.json"]}]},
        "train": {"params": {"params.yaml": {"seed": 99}}, "outs": [{"path": "model.pt", "md5": made["model.pt"]}]},
        "evaluate": {"deps": [{"path": "model.pt", "md5": "another"}]},
    }
    dvc = workspace.python("dvc", *words)
    tell(dvc, one_stage("stats"))
    workspace.write("dvc.lock", {"stages": lock})
    finish(dvc)
    wait_for(lambda: not workspace.journals)
    [row] = workspace.rows()
    assert (row.status, row.tags["dvc.stages"]) == (status, f"download cached, {stages}")
    assert row.tags.get("error") == ("dvc ended before it ran train, evaluate" if status == "FAILED" else None)


@pytest.mark.parametrize(
    ("words", "all_of_it"),
    [
        ("dvc repro", True),
        ("dvc repro --force -v", True),
        ("dvc repro train", False),
        ("dvc repro --dry", False),
        ("dvc --cd elsewhere repro", False),
        ("dvc unprotect", False),
    ],
)
def test_a_command_that_names_no_stage_was_to_run_all(workspace: Workspace, words: str, all_of_it: bool) -> None:
    assert cut_short(Execution(Process.current(), words), workspace.root) == all_of_it


def test_an_experiment_came_to_its_end_when_dvc_has_made_a_commit_of_it(workspace: Workspace) -> None:
    folder = workspace.root / ".dvc/tmp/exps/tmp1"
    folder.mkdir(parents=True)
    baseline = "ab" * 20
    experiment = Execution(Process.current(), "dvc exp run --queue", "odd-name", baseline)
    assert cut_short(experiment, folder) is None  # nothing is known as long as that is there
    assert cut_short(experiment, workspace.root) is True
    folder.rmdir()
    assert cut_short(experiment, folder) is True
    for command in (["init", "-q"], ["commit", "-q", "--allow-empty", "-m", "an experiment"]):
        subprocess.run(["git", "-c", "user.name=a", "-c", "user.email=a@b", *command], check=True)
    subprocess.run(["git", "update-ref", f"refs/exps/ab/{baseline[2:]}/odd-name", "HEAD"], check=True)
    assert cut_short(experiment, folder) is False


@pytest.mark.parametrize("folder_stays", [False, True])
def test_an_experiments_folder_says_nothing_of_its_end_for_a_while(workspace: Workspace, folder_stays: bool) -> None:
    """Half removed it is of one that ended; left as it is, of one whose worker was killed."""
    workspace.write("dvc.yaml", {"stages": {"stats": {}, "train": {}}})
    folder = workspace.root / ".dvc/tmp/exps/tmp1"
    folder.mkdir(parents=True)
    execution = asdict(Execution(NOBODY, "dvc exp run --queue", "odd-name", "ab" * 20))
    journal = Journal(workspace.root / ".state/journal/one")
    opened = {"process": asdict(NOBODY), "params": {}, "row": "row", "workspace": str(folder)}
    journal.append("open", stage="stats", execution=execution, **opened)
    journal.append("close", stage="stats", status="FINISHED")
    relay = Relay(journal)
    relay.read()
    relay._watched = True
    assert not relay.finish(patient=True)
    if not folder_stays:
        folder.rmdir()
    assert relay.finish()
    assert (relay.state.status, relay.state.stages) == ("FAILED", {"stats": "ran", "train": "not run"})


EARLIER = {"stats": {"params": {"params.yaml": {"epochs": 2}}}, "train": {}}
"""What a dvc.lock records of a run with other params."""


@pytest.mark.parametrize("stages", [{}, EARLIER])
@pytest.mark.parametrize(("seconds_later", "status"), [(-60, "FAILED"), (60, "FINISHED")])
def test_a_lock_that_lacks_what_was_run_is_not_taken_for_its_own(
    workspace: Workspace, stages: dict[str, Any], seconds_later: int, status: str
) -> None:
    """A later one is of the next command, as where a slow store lets that be first; an earlier one was there before,
    and DVC ended before it recorded what the stage had done.
    """
    workspace.write("dvc.yaml", {"stages": {"stats": {}, "train": {}}})
    journal = Journal(workspace.root / ".state/journal/one")
    opened = {"process": asdict(NOBODY), "params": {"epochs": "3"}, "row": "row", "workspace": str(workspace.root)}
    journal.append("open", stage="stats", execution=asdict(Execution(NOBODY, "dvc repro")), **opened)
    journal.append("close", stage="stats", status="FINISHED")
    workspace.write("dvc.lock", {"stages": stages})
    written = time.time() + seconds_later
    os.utime("dvc.lock", (written, written))
    relay = Relay(journal)
    relay.read()
    relay._watched = True
    assert relay.finish()
    assert "dvc.lock" not in relay.state.tags
    assert relay.state.status == status
    assert relay.state.stages == {"stats": "not recorded" if status == "FAILED" else "ran"}


def test_an_experiment_of_one_stage_has_its_lock_whatever_that_records_of_the_others(workspace: Workspace) -> None:
    """As of `dvc exp run --temp -s -S epochs=3 report`: its row has the params that the training before it had."""
    folder = workspace.root / ".dvc/tmp/exps/tmp1"
    folder.mkdir(parents=True)
    workspace.write(".dvc/tmp/exps/tmp1/dvc.yaml", {"stages": {"stats": {}}})
    execution = asdict(Execution(NOBODY, "dvc exp run --temp -s stats", "odd-name", "ab" * 20))
    journal = Journal(workspace.root / ".state/journal/one")
    opened = {"process": asdict(NOBODY), "params": {"epochs": "3"}, "row": "row", "workspace": str(folder)}
    journal.append("open", stage="stats", execution=execution, **opened)
    journal.append("close", stage="stats", status="FINISHED")
    workspace.write(".dvc/tmp/exps/tmp1/dvc.lock", {"stages": EARLIER})
    written = time.time() + 60
    os.utime(folder / "dvc.lock", (written, written))
    relay = Relay(journal)
    relay.read()
    relay._watched = True
    assert relay.finish(patient=True)
    assert (relay.state.status, relay.state.stages) == ("FINISHED", {"stats": "ran", "train": "cached"})
    assert "dvc.lock" in relay.state.tags


CONTAINERS = pytest.mark.parametrize(
    "container",
    [Process("a-container", 1, 0.0), Process(platform.node(), 1, 0.0, "pid:[1]")],
    ids=["named otherwise", "named as its host"],
)


@CONTAINERS
def test_a_command_on_another_machine_is_over_a_day_after_its_last_word_and_stays_so(
    workspace: Workspace, container: Process
) -> None:
    """As of a container that is gone: what is added to its journal, here that its stage was killed, is not its word."""
    journal = Journal(workspace.root / ".state/journal/one")
    opened = {"process": asdict(container), "params": {}, "row": "row", "workspace": str(workspace.root)}
    journal.append("open", stage="stats", execution=asdict(Execution(container, "dvc repro")), **opened)
    relay = Relay(journal)
    relay.read()
    assert not relay.over
    before = time.time() - 90_000
    os.utime(journal.file, (before, before))
    relay.read()
    assert relay.over and relay.state.status == "KILLED"


@CONTAINERS
def test_what_another_machine_has_left_is_sent_once_nobody_else_sends_it(
    workspace: Workspace, container: Process
) -> None:
    """As of a container that ended with its sender; a quarter of an hour later its command has ended, too."""
    journal = Journal(workspace.root / ".state/journal/one")
    values = {"data.dataset": "digits"}
    opened = {"process": asdict(container), "params": values, "row": "row", "workspace": str(workspace.root)}
    journal.append("open", stage="stats", execution=asdict(Execution(container, "dvc repro")), **opened)
    journal.append("close", stage="stats", status="FINISHED")
    journal.acknowledge(replace(journal.sent(), sender=container))
    lock = journal.folder.with_name("one.lock")
    with FileLock(lock):
        assert list(sync()) == ["one: still running, sent as it goes"]
    assert workspace.rows() == []
    assert list(sync()) == ["one: sent"] and journal.file.exists()
    assert [row.status for row in workspace.rows()] == ["FINISHED"]
    quarter = time.time() - 1000
    os.utime(journal.file, (quarter, quarter))
    list(sync())
    assert not journal.file.exists()


def test_a_journal_of_another_version_hinders_no_other(workspace: Workspace) -> None:
    Journal(workspace.root / ".state/journal/a").append("open", stage="stats", what="another version wrote")
    finish(workspace.stage("stats", ONECYCLE_TRACKING="journal"))
    said = finish(workspace.sync(), code=2)
    assert "a: not sent" in said and "Traceback" not in said
    assert "a cannot be read (KeyError('row')): another version wrote it, or it is damaged; remove it" in said
    assert [row.tags["dvc.stages"] for row in workspace.rows()] == ["stats ran"]


def test_the_lock_of_an_experiment_whose_folder_is_gone_is_read_from_its_commit(workspace: Workspace) -> None:
    workspace.write("dvc.lock", "schema: '2.0'\n")
    for command in (["init", "-q"], ["add", "dvc.lock"], ["commit", "-qm", "an experiment"]):
        subprocess.run(["git", "-c", "user.name=a", "-c", "user.email=a@b", *command], check=True)
    baseline = "ab" * 20
    subprocess.run(["git", "update-ref", f"refs/exps/ab/{baseline[2:]}/odd-name", "HEAD"], check=True)
    gone = workspace.root / ".dvc/tmp/exps/gone"
    assert final_lock(gone, "odd-name", baseline) == "schema: '2.0'\n"
    assert final_lock(gone, "other-name", baseline) == ""
    assert final_lock(gone, None, None) == ""


def test_a_moved_workspace_is_noticed_and_mended(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace.write("results/stats/samples.png", b"picture")
    finish(workspace.stage("stats", **JOURNAL))
    list(sync())
    workspace.root = workspace.root.rename(tmp_path / "elsewhere %20")
    monkeypatch.chdir(workspace.root)
    assert "was moved or copied; `onecycle sync --relocate` mends it" in finish(workspace.stage("train", UNTIL_TOLD))
    with monkeypatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{quote(str(workspace.root / 'mlflow.db'))}")
        with pytest.raises(StoreError, match="moved or copied"):
            connect(f"{EXPERIMENT_PREFIX}cifar10")
    with pytest.raises(UserError, match="moved or copied"):
        list(sync())
    assert workspace.journals

    left = tmp_path / "ä b#c%20d?e" / "mlartifacts"  # not moved along
    left.parent.mkdir()
    (workspace.root / "mlartifacts").rename(left)
    with pytest.raises(UserError, match=r"files of runs are in .*c%20d\?e/mlartifacts and not in .*; copy them there"):
        relocate()
    left.rename(workspace.root / "mlartifacts")
    assert relocate() == 2
    assert relocate() == 0
    list(sync())
    rows = workspace.rows()
    assert len(rows) == 2
    assert (rows[0].artifacts / "stats/samples.png").read_bytes() == b"picture"
    assert all(row.artifacts.is_relative_to(workspace.root) for row in rows)


def test_artifacts_behind_a_server_are_no_sign_of_a_moved_workspace(workspace: Workspace) -> None:
    """As where a server with this mlflow.db has made the experiment."""
    MlflowClient(default_uri()).create_experiment(f"{EXPERIMENT_PREFIX}digits", "mlflow-artifacts:/1")
    with pytest.raises(StoreError, match="which is behind an MLflow server; start that and name its address"):
        connect(f"{EXPERIMENT_PREFIX}digits")
    assert relocate() == 0


def test_whatever_a_driver_raises_is_the_stores_trouble() -> None:
    with pytest.raises(StoreError, match="No module named 'boto3'"), guarded():
        raise ModuleNotFoundError("No module named 'boto3'")
    with pytest.raises(UserError, match="a sentence"), guarded():
        raise UserError("a sentence")


def test_a_workspace_that_borrows_a_database_leaves_its_owner_no_artifacts_elsewhere(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may be the first there with a data set."""
    owner = Workspace(tmp_path / "owner")
    shutil.copy(workspace.root / "mlflow.db", owner.root)
    with monkeypatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{owner.root / 'mlflow.db'}")
        connect(f"{EXPERIMENT_PREFIX}digits")
    monkeypatch.chdir(owner.root)
    forget_stores()
    store = connect(f"{EXPERIMENT_PREFIX}digits")
    found = store.client.get_experiment(store.experiment_id)
    assert found.artifact_location == (owner.root / "mlartifacts").as_uri()


def export_nothing(_model: Path, _pictures: Path, target: Path) -> None:
    """Stands in for the export, which takes ten seconds: a folder that is logged as a model."""
    target.mkdir()
    (target / "MLmodel").write_text("flavors: {}", encoding="utf-8")


def test_a_version_is_made_in_the_current_store_and_touches_no_other(
    fresh_workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also from a folder in the workspace; no empty one of the workspace's quoted name is left beside it."""
    monkeypatch.setattr(registry, "export", export_nothing)
    folder = fresh_workspace.root / "folder"
    folder.mkdir()
    monkeypatch.chdir(folder)
    store = connect(f"{EXPERIMENT_PREFIX}digits")
    run_id = store.create("row", 1)
    registry.attach_model(store, run_id, Model("0" * 32, "model.pt", "pictures.npz"), folder, evaluated=1)
    [version] = store.client.search_model_versions(f"name = '{store.name}'")
    assert (version.run_id, str(version.version)) == (run_id, "1")
    assert list(folder.iterdir()) == []
    assert [path for path in tmp_path.iterdir() if path.is_dir()] == [fresh_workspace.root]


def test_a_version_that_a_request_made_twice_keeps_its_model(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where the first answer was lost on its way: the second version goes, and what both are made of stays."""
    monkeypatch.setattr(registry, "export", export_nothing)
    store = connect(f"{EXPERIMENT_PREFIX}digits")
    create = store.client.create_model_version

    def twice(*arguments: Any, **named: Any) -> Any:
        create(*arguments, **named)
        return create(*arguments, **named)

    monkeypatch.setattr(store.client, "create_model_version", twice)
    model = Model("0" * 32, "model.pt", "pictures.npz")
    registry.attach_model(store, store.create("row", 1), model, workspace.root, evaluated=1)
    [version] = store.client.search_model_versions(f"name = '{store.name}'")
    [logged] = store.client.search_logged_models([store.experiment_id])
    assert (str(version.version), version.source) == ("1", f"models:/{logged.model_id}")


def test_the_candidate_is_what_was_evaluated_last_in_whatever_order_rows_arrive(workspace: Workspace) -> None:
    """The first, evaluated again, is a model that another row has made a version of before."""
    store = connect(f"{EXPERIMENT_PREFIX}digits")
    store.client.create_registered_model(store.name)
    for number in (1, 2, 3):
        source, tags = (workspace.root / str(number)).as_uri(), {registry.MD5_TAG: f"model {number}"}
        store.client.create_model_version(store.name, source, tags=tags)
    candidates = []
    for number, evaluated in ((2, 20), (1, 10), (1, 40), (3, 30), (2, None), (3, 50)):
        run_id = store.create(f"row {len(candidates)}", evaluated or 60)
        registry.attach_model(store, run_id, Model(f"model {number}", None, None), workspace.root, evaluated)
        candidates.append(int(store.client.get_model_version_by_alias(store.name, registry.CANDIDATE).version))
    assert candidates == [2, 2, 1, 1, 1, 3]


def test_an_experiments_model_is_exported_by_its_own_code_when_dvc_has_removed_that(workspace: Workspace) -> None:
    """As of a queued experiment; what the code says of something that is no model tells which code it was."""
    folder = workspace.root / ".dvc/tmp/exps/tmp1"
    shutil.copytree(REPO / "src/onecycle", folder / "src/onecycle", ignore=shutil.ignore_patterns("__pycache__"))
    code = folder / "src/onecycle/model.py"
    code.write_text(code.read_text(encoding="utf-8").replace("of this project", "of this experiment"), encoding="utf-8")
    shutil.copy(workspace.root / "params.yaml", folder)
    for path in (paths.MODEL, paths.GALLERY_IMAGES):
        (folder / path).parent.mkdir(parents=True)
        (folder / path).touch()
    finish(workspace.stage("evaluate", cwd=folder, PYTHONPATH=str(folder / "src")))
    wait_for((workspace.root / ".state/model.lock").exists)
    shutil.rmtree(folder)
    wait_for(lambda: not workspace.journals)
    [row] = workspace.rows()
    assert "is no model of this experiment" in row.tags["model.error"]


def test_a_model_whose_export_is_killed_is_exported_another_time(workspace: Workspace) -> None:
    """As where memory is full: nothing is known of the model then."""
    store = connect(f"{EXPERIMENT_PREFIX}digits")
    run_id, model = store.create("row", 1), Model("0" * 32, "model.pt", "galleries.npz")
    with ThreadPoolExecutor() as pool:
        recording = pool.submit(registry.attach_model, store, run_id, model, workspace.root, evaluated=1)
        wait_for(lambda: recording.done() or exports())
        for process in exports():
            process.kill()
        with pytest.raises(StoreError, match="exporting the model was ended by signal 9"):
            recording.result()
    assert "model.error" not in store.client.get_run(run_id).data.tags


def exports() -> list[psutil.Process]:
    """The children of this process that export a model."""
    return [child for child in psutil.Process().children() if "onecycle.tracking.export" in child.cmdline()]


def test_credentials_reach_neither_store_nor_journal(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    def git(*arguments: str) -> None:
        subprocess.run(["git", "-c", "user.name=a", "-c", "user.email=a@b", *arguments], cwd=workspace.root, check=True)

    git("init", "-q")
    git("remote", "add", "origin", f"https://me:{SECRET}@example.org/x.git")
    git("add", "params.yaml")
    git("commit", "-qm", "first")
    body = f"""
import os
row.tags({{"note": os.environ["MY_TOKEN"]}})
raise RuntimeError("https://me:{SECRET}@host/x " + os.environ["MY_TOKEN"])
"""
    finish(workspace.stage("train", body, MY_TOKEN=SECRET + "2", **JOURNAL), CRASHED)
    files = [path for path in workspace.root.rglob("*") if path.is_file() and ".git" not in path.parts]
    assert not [path for path in files if SECRET.encode() in path.read_bytes()]
    monkeypatch.setenv("MY_TOKEN", SECRET + "2")
    list(sync())
    [row] = workspace.rows()
    assert row.status == "FAILED"
    assert row.tags["error"] == "train: RuntimeError: https://host/x $MY_TOKEN"
    files = [path for path in workspace.root.rglob("*") if path.is_file() and ".git" not in path.parts]
    assert not [path for path in files if SECRET.encode() in path.read_bytes()]


def test_the_data_set_is_an_input_of_the_row(workspace: Workspace) -> None:
    import numpy as np

    workspace.write("data/arrays/dataset.json", {"name": "digits", "classes": ["0", "1"], "digest": "ab" * 32})
    for split in ("train", "test"):
        np.save(workspace.root / f"data/arrays/{split}_labels.npy", np.zeros(4, np.int64))
    finish(workspace.stage("download", **JOURNAL))
    list(sync())
    with closing(sqlite3.connect(workspace.root / "mlflow.db")) as store:
        [(name, digest, profile)] = store.execute("SELECT name, digest, dataset_profile FROM datasets").fetchall()
        assert store.execute("SELECT count(*) FROM inputs").fetchall() == [(1,)]
    assert (name, digest) == ("digits", "ab" * 16)
    assert json.loads(profile) == {"train_images": 4, "test_images": 4, "classes": 2}
