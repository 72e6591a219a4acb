"""Rows made again: to the bit where nothing differs, told apart where something does, and nothing else touched."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
from conftest import PARAMS_FILE, command, set_params
from ending import HANG_SECONDS
from mlflow import MlflowClient
from test_pipeline import STAGES
from tracked_workspace import Run, Workspace, forget_stores

from onecycle import paths
from onecycle.errors import UserError
from onecycle.reproduction import keeper
from onecycle.reproduction.record import find_record
from onecycle.reproduction.record import set_params as conform
from onecycle.reproduction.worktree import worktree
from onecycle.tracking.database import default_uri

EVALUATION = Path("src/onecycle/evaluation.py")


@dataclass
class Tracked:
    """A repository in which the small pipeline has run, with its row in a store of its own."""

    root: Path

    def rows(self) -> list[Run]:
        """Rows in the store, oldest first."""
        command(self.root, "onecycle", "sync")
        rows: list[Run] = Workspace.rows(self)  # type: ignore[arg-type]
        return rows

    def files(self) -> dict[str, bytes]:
        """Everything a person has there: files in git and out of it, settings, branches and experiments."""
        ours = (".dvc/cache", ".dvc/tmp", ".git", ".state", "mlartifacts", "mlflow.db", "__pycache__")
        files = {
            file.relative_to(self.root).as_posix(): file.read_bytes()
            for file in sorted(self.root.rglob("*"))
            if file.is_file() and not any(part in file.relative_to(self.root).as_posix() for part in ours)
        }
        refs = command(self.root, "git", "for-each-ref").stdout
        return files | {"refs": refs.encode(), "index": (self.root / ".git" / "index").read_bytes()}

    def reproduce(self, *words: str, code: int = 0, **environment: str) -> dict[str, Any]:
        """`onecycle reproduce … --json`, checked to leave the workspace as it was."""
        before = self.files()
        done = command(self.root, "onecycle", "reproduce", *words, "--json", check=False, **environment)
        assert done.returncode == code, f"exit {done.returncode}\n{done.stdout}\n{done.stderr}"
        assert self.files() == before
        assert self.worktrees() == []
        found: dict[str, Any] = json.loads(done.stdout) | {"said": done.stderr}
        return found

    def worktrees(self) -> list[str]:
        """What is left of those that were made."""
        listed = command(self.root, "git", "worktree", "list", "--porcelain").stdout.split("\n\n")[1:]
        left = [path.name for path in (self.root / ".dvc/tmp/exps").glob("reproduce-*")]
        return [one for one in listed if one.strip()] + left + [p.name for p in (self.root / ".state").glob("repro*")]


@pytest.fixture
def tracked(pipeline: Path, tmp_path: Path) -> Tracked:
    """A copy of the shared run, moved with its row."""
    root = tmp_path / "repo"
    shutil.copytree(pipeline, root, symlinks=True)
    command(root, "onecycle", "sync", "--relocate")
    return Tracked(root)


def assert_identical(found: dict[str, Any]) -> None:
    assert found["verdict"] == "identical", found
    assert all(one["recorded"] == one["now"] is not None for one in found["outputs"])
    assert {one["stage"] for one in found["outputs"]} == set(STAGES)
    assert all(one["recorded"] == one["now"] for one in found["metrics"].values())
    assert "evaluate.accuracy" in found["metrics"]
    assert found["weights"]["tensors"] > 40
    assert found["weights"]["differing"] == 0
    assert (found["predictions"]["images"], found["predictions"]["changed"]) == (320, 0)
    elsewhere = "is in another row"  # what kept stages ran with, which is no difference
    assert [one for one in found["surroundings"] if one["recorded"] != elsewhere] == []


def test_a_row_made_again_is_identical_and_linked(tracked: Tracked) -> None:
    [first] = tracked.rows()
    found = tracked.reproduce(first.run_id, "--from", "report")
    assert_identical(found)
    assert found["ran"] == ["params", "report"]  # its commit has no results, and a row has no use for a constant
    before, again = tracked.rows()
    assert found["rerun_id"] == again.run_id
    assert (again.status, again.tags["reproduces"]) == ("FINISHED", first.run_id)
    assert again.tags["reproduction.verdict"] == "identical"
    of_its_time = ("system/", "train/epoch_seconds", "train/images_per_second")
    assert again.metrics.keys() >= {key for key in first.metrics if not key.startswith(of_its_time)}
    new = {key: value for key, value in before.tags.items() if first.tags.get(key) != value}
    assert new.keys() == {"reproduced.at", "reproduced.verdict"}
    assert (before.params, before.metrics) == (first.params, first.metrics)

    # and with the cache no stage needs to run: the record is whole
    found = tracked.reproduce("HEAD")
    assert_identical(found)
    assert (found["ran"], found["rerun_id"], found["run_id"]) == ([], None, first.run_id)
    assert [row.tags for row in tracked.rows()] == [before.tags, again.tags]


def test_a_reference_run(tracked: Tracked) -> None:
    command(tracked.root, "onecycle", "record", "workspace", "--recipe", "digits")
    found = tracked.reproduce("digits")
    assert found["verdict"] == "identical"
    assert {one["stage"] for one in found["outputs"] if one["recorded"] == one["now"] is not None} == set(STAGES)
    assert {name.partition(".")[0] for name in found["metrics"]} == {"train", "evaluate"}  # it keeps no stats.json
    assert all(one["recorded"] == one["now"] for one in found["metrics"].values())
    assert (found["weights"]["differing"], found["predictions"]["changed"]) == (0, 0)
    assert (found["ran"], found["surroundings"]) == (["params", "evaluate"], [])  # the rest is in DVC's run-cache
    assert "not known" not in found["said"]

    # a machine that is another, code that no commit holds, and a stage that only a dvc.lock could begin with
    environment = tracked.root / "results/reference/digits/seed-0/environment.json"
    trained = json.loads(environment.read_text(encoding="utf-8"))
    trained |= {"processor": "Z80", "changed": f"params.yaml, {EVALUATION.as_posix()}"}
    environment.write_text(json.dumps(trained), encoding="utf-8")
    hashes = environment.with_name("hashes.json")
    recorded = json.loads(hashes.read_text(encoding="utf-8"))
    recorded["code"][EVALUATION.as_posix()] = "0" * 32
    recorded["outputs"]["results/evaluate/per_class.csv"] = "1" * 32
    hashes.write_text(json.dumps(recorded), encoding="utf-8")
    found = tracked.reproduce("digits", code=1)
    assert (found["verdict"], found["culprits"]) == ("different", [EVALUATION.as_posix()])
    assert found["parted"] == {"stage": "evaluate", "path": "results/evaluate/per_class.csv"}
    assert [one["recorded"] for one in found["surroundings"] if one["what"] == "processor"] == ["Z80"]
    assert f"its changes of {EVALUATION.as_posix()} are in no commit, and not made again" in found["said"]
    done = command(tracked.root, "onecycle", "reproduce", "digits", "--from", "train", check=False)
    assert (done.returncode, done.stderr.count("--from needs the dvc.lock of")) == (2, 1)


@pytest.mark.slow
def test_from_scratch_every_stage_runs_and_is_identical(tracked: Tracked) -> None:
    [first] = tracked.rows()
    found = tracked.reproduce(first.run_id, "--from-scratch")
    assert_identical(found)
    assert (found["ran"], found["surroundings"]) == (STAGES, [])
    _, again = tracked.rows()
    assert again.tags["reproduction.verdict"] == "identical"


@pytest.mark.slow
def test_a_run_that_ended_with_training_is_compared_as_far_as_it_went(tracked: Tracked) -> None:
    (tracked.root / "notes.txt").write_text("a thought\n", encoding="utf-8")
    command(tracked.root, "dvc", "exp", "run", "--name", "trained", "-S", "seed=5", "train")
    row = tracked.rows()[-1]
    assert row.tags["dvc.stages"].endswith("train ran")
    found = tracked.reproduce(row.run_id)
    assert (found["verdict"], found["ran"]) == ("identical", ["params"])  # it reads the file as -S had laid it out
    assert {one["stage"] for one in found["outputs"]} == set(STAGES[: STAGES.index("train") + 1])
    assert "the run did not make what evaluate, report would, so that is not compared" in found["notes"]


@pytest.mark.slow
def test_a_commit_with_a_knob_that_is_no_more(tracked: Tracked) -> None:
    """Its own code reads its params."""
    code = tracked.root / "src" / "onecycle" / "params.py"
    text = code.read_text(encoding="utf-8")
    knob = "    checkpoint_seconds: Positive\n"
    assert knob in text
    code.write_text(text.replace(knob, f"{knob}    gone: bool\n"), encoding="utf-8")
    set_params(tracked.root, {"runtime.gone": True})
    command(tracked.root, "dvc", "repro")
    command(tracked.root, "git", "commit", "-qam", "a knob")
    command(tracked.root, "git", "revert", "--no-edit", "HEAD")
    assert tracked.reproduce("HEAD~1")["verdict"] == "identical"


@pytest.mark.slow
def test_one_changed_line_of_code_is_different_and_named(tracked: Tracked) -> None:
    """A commit whose dvc.lock is not of its code."""
    code = (tracked.root / EVALUATION).read_text(encoding="utf-8")
    changed = code.replace('"wrong": ', '"wrong": 1 + ', 1)
    assert changed != code
    (tracked.root / EVALUATION).write_text(changed, encoding="utf-8")
    command(tracked.root, "git", "commit", "-qam", "one line")
    found = tracked.reproduce("HEAD", code=1)
    assert found["verdict"] == "different"
    assert found["parted"] == {"stage": "evaluate", "path": paths.EVALUATE_METRICS.as_posix()}
    assert found["culprits"] == [EVALUATION.as_posix()]
    assert found["ran"] == ["evaluate", "report"]
    assert found["metrics"]["evaluate.wrong"]["now"] == found["metrics"]["evaluate.wrong"]["recorded"] + 1
    assert found["weights"]["differing"] == 0
    assert (found["predictions"], len(found["notes"])) == (None, 1)  # not to be believed, beside such metrics
    assert re.search(r"wrong is \d+, but predictions.parquet beside it gives \d+", found["notes"][0])
    first, again = tracked.rows()
    assert first.tags["reproduced.verdict"] == again.tags["reproduction.verdict"] == "different"
    said = command(tracked.root, "onecycle", "show", again.run_id).stdout
    assert f"onecycle reproduce {again.run_id}" in said
    shown = json.loads(command(tracked.root, "onecycle", "show", again.run_id, "--json").stdout)
    made_by = {stage["name"]: (stage["became"], stage["made_by"]) for stage in shown["stages"]}
    assert made_by["train"] == ("cached", first.run_id)
    assert made_by["evaluate"] == ("ran", "")


@pytest.mark.slow
def test_a_stage_that_is_none_is_refused(tracked: Tracked) -> None:
    done = command(tracked.root, "onecycle", "reproduce", "HEAD", "--from", "nowhere", check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert "--from must be one of params, download" in done.stderr
    assert tracked.worktrees() == []


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (
            "<<<<<<< HEAD\nstages: {}\n=======\n",
            "error: dvc.yaml of workspace: cannot be read as YAML: holds the marks of a merge conflict",
        ),
        ("stages: {other: {cmd: echo}}\n", "error: dvc.lock of workspace records no stage of its dvc.yaml"),
    ],
    ids=["marks of a merge", "another pipeline"],
)
def test_a_pipeline_that_is_none_of_the_runs_is_refused(tracked: Tracked, content: str, said: str) -> None:
    (tracked.root / "dvc.yaml").write_text(content, encoding="utf-8")
    done = command(tracked.root, "onecycle", "reproduce", "workspace", check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert said in done.stderr and "Traceback" not in done.stderr
    assert tracked.worktrees() == []


def test_in_a_submodule_it_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """DVC takes a submodule's worktree for the submodule itself."""
    for name in ("library", "project"):
        (tmp_path / name / ".dvc").mkdir(parents=True)
        for words in (("init", "-q"), ("commit", "-q", "--allow-empty", "-m", "start")):
            command(tmp_path / name, "git", "-c", "user.name=test", "-c", "user.email=test@example.com", *words)
    add = ("submodule", "add", "-q", str(tmp_path / "library"), "library")
    command(tmp_path / "project", "git", "-c", "protocol.file.allow=always", *add)
    (tmp_path / "project/library/.dvc").mkdir()
    monkeypatch.chdir(tmp_path / "project/library")
    with pytest.raises(UserError, match="this workspace is a git submodule"), worktree("HEAD", "abc"):
        pass
    assert not (tmp_path / "project/library/.dvc/tmp").exists()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_killed_in_the_middle_it_leaves_nothing(tracked: Tracked, number: signal.Signals) -> None:
    set_params(tracked.root, {"epochs": 100_000})
    command(tracked.root, "git", "commit", "-qam", "a training without end")
    lock = (tracked.root / "dvc.lock").read_text(encoding="utf-8")
    (tracked.root / "dvc.lock").write_text(lock.replace("epochs: 3", "epochs: 100000"), encoding="utf-8")
    command(tracked.root, "git", "commit", "-qam", "and a dvc.lock that claims it")
    before = tracked.files()
    with subprocess.Popen(
        [Path(sys.executable).with_name("onecycle"), "reproduce", "HEAD", "--from", "train"],
        cwd=tracked.root,
        env={**os.environ, "ONECYCLE_TRACKING": "journal"},
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    ) as process:
        assert process.stderr
        for line in process.stderr:
            if line.startswith("epoch"):
                break
        process.send_signal(number)
        said = process.stderr.read()  # to its end: the keeper, too, has this pipe
    assert process.returncode == (-9 if number == signal.SIGKILL else 128 + number), said
    wait_until(lambda: tracked.worktrees() == [])
    running = [
        line for line in command(tracked.root, "ps", "-eo", "args").stdout.splitlines() if "stages.train" in line
    ]
    assert not [line for line in running if str(tracked.root) in line]
    assert tracked.files() == before


def test_worktrees_of_the_user_are_left_alone_also_when_their_disk_is_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    top, theirs, ours = tmp_path / "top", tmp_path / "disk/theirs", tmp_path / "ours"
    top.mkdir()
    for words in (("init", "-q"), ("commit", "-q", "--allow-empty", "-m", "start")):
        command(top, "git", "-c", "user.name=test", "-c", "user.email=test@example.com", *words)
    for folder in (theirs, ours):
        command(top, "git", "worktree", "add", "-q", "--detach", str(folder))
    command(top, "git", "worktree", "lock", str(ours))  # as git has it while it checks out
    theirs.parent.rename(tmp_path / "away")
    shutil.rmtree(ours)
    monkeypatch.chdir(top)
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    keeper.main(ours, tmp_path / "checkpoints")
    (tmp_path / "away").rename(theirs.parent)
    assert command(theirs, "git", "status", "--porcelain").stdout == ""
    assert str(ours) not in command(top, "git", "worktree", "list").stdout


def wait_until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + HANG_SECONDS
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.1)


def test_what_cannot_be_made_again_is_refused(tracked: Tracked, monkeypatch: pytest.MonkeyPatch) -> None:
    [first] = tracked.rows()
    monkeypatch.chdir(tracked.root)
    forget_stores()

    def refusal(name: str) -> str:
        with pytest.raises(UserError) as refused:
            find_record(name)
        return str(refused.value)

    assert "there is no git revision, DVC experiment, folder, recipe or MLflow run called nobody" in refusal("nobody")
    assert "is a folder, and says nothing of the code" in refusal("results")
    (tracked.root / "kept").mkdir()
    (tracked.root / "kept/environment.json").write_text('{"commit": "0123456789abcdef"}', encoding="utf-8")
    assert "is a folder, and says nothing of the code" in refusal("kept")
    (tracked.root / "kept/hashes.json").write_text('{"outputs": {"models/model.pt": "0"}}', encoding="utf-8")
    assert "the commit of kept, 0123456789ab, is not in this repository; fetch" in refusal("kept")
    assert "dvc.lock of HEAD~1 is missing" in refusal("HEAD~1")
    with monkeypatch.context() as away:  # which is no reason not to make a commit again
        away.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{paths.PARAMS}")
        record = find_record("HEAD")
        assert record.row is None and "MLflow cannot be asked" in record.trouble
    for words in (
        ("checkout", "-q", "--orphan", "new"),
        ("commit", "-qm", "history forgotten"),
        ("branch", "-qD", "main"),
        ("reflog", "expire", "--expire=now", "--all"),
        ("gc", "-q", "--prune=now"),
    ):
        command(tracked.root, "git", *words)
    said = refusal(first.run_id)
    assert re.search(rf"the commit of run {first.run_id}, [0-9a-f]{{12}}, is not in this repository; fetch", said)
    MlflowClient(default_uri()).set_terminated(first.run_id, "FAILED")
    assert f"run {first.run_id} is FAILED, so there is no result of it" in refusal(first.run_id)


OWNER = """
import sys
from onecycle.reproduction.worktree import worktree

with worktree("HEAD", "abc") as tree:
    tree.apply(open("it.patch", "rb").read())
    print((tree.folder / "a.txt").read_text(), flush=True)
    for line in tree.run([sys.executable, "-c", "import time; print('runs', flush=True); time.sleep(600)"], {}):
        print(line, end="", flush=True)
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_worktree_and_what_runs_in_it_end_with_their_owner(tmp_path: Path, number: signal.Signals) -> None:
    (tmp_path / ".dvc").mkdir()
    for name, text in (("a.txt", "committed\n"), (".gitignore", ".dvc/tmp\n")):
        (tmp_path / name).write_text(text, encoding="utf-8")
    command(tmp_path, "git", "init", "-q")
    command(tmp_path, "git", "add", "-A")
    command(tmp_path, "git", "-c", "user.name=t", "-c", "user.email=t@example.com", "commit", "-qm", "start")
    (tmp_path / "a.txt").write_text("changed\n", encoding="utf-8")
    (tmp_path / "it.patch").write_text(command(tmp_path, "git", "diff").stdout, encoding="utf-8")
    command(tmp_path, "git", "checkout", "-q", "a.txt")
    with subprocess.Popen([sys.executable, "-c", OWNER], cwd=tmp_path, stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout
        assert [owner.stdout.readline() for _ in range(3)] == ["changed\n", "\n", "runs\n"]
        top = tmp_path / ".dvc/tmp/exps/reproduce-abc"
        [running] = [one.pid for one in psutil.process_iter(["cwd"]) if one.info["cwd"] == str(top)]
        owner.send_signal(number)
    wait_until(lambda: not top.exists())
    wait_until(lambda: not psutil.pid_exists(running))
    assert command(tmp_path, "git", "worktree", "list").stdout.count("\n") == 1
    assert (tmp_path / "a.txt").read_text(encoding="utf-8") == "committed\n"


def test_params_conform_to_a_record(tmp_path: Path) -> None:
    shipped = PARAMS_FILE.read_text(encoding="utf-8").replace("epochs: 24", "epochs: 24  # integer ≥ 1")
    file = tmp_path / "params.yaml"
    file.write_text(shipped, encoding="utf-8")
    assert conform(file, {"epochs": "24", "data.limit": "null", "optimizer.epsilon": "1e-08"}) == []
    assert file.read_text(encoding="utf-8") == shipped
    changed = {"epochs": "3", "one_cycle.max_lr": "0.01", "data.limit": "320", "train.deterministic": "true"}
    assert conform(file, changed) == list(changed)
    now = file.read_text(encoding="utf-8")
    assert re.search(r"^epochs: 3 +# integer ≥ 1$", now, re.MULTILINE)
    assert conform(file, changed) == []


@pytest.mark.slow
def test_a_dirty_workspace_and_an_experiment(tracked: Tracked) -> None:
    """With new code that git does not know yet, and stages that DVC kept from the run before."""
    (tracked.root / "src/onecycle/rounding.py").write_text("TINY = 0.001\n", encoding="utf-8")
    code = (tracked.root / EVALUATION).read_text(encoding="utf-8")
    changed = code.replace("from onecycle.errors", "from onecycle import rounding\nfrom onecycle.errors", 1)
    changed = changed.replace('"brier": ', '"brier": rounding.TINY + ', 1)
    assert changed.count("rounding") == 2
    (tracked.root / EVALUATION).write_text(changed, encoding="utf-8")
    command(tracked.root, "dvc", "repro")
    row = tracked.rows()[-1]
    assert "train cached, evaluate ran" in row.tags["dvc.stages"]
    assert row.tags["git.patch"] == "kept"
    found = tracked.reproduce(row.run_id, "--from-scratch")
    assert_identical(found)
    assert found["ran"] == STAGES

    command(tracked.root, "git", "checkout", "-q", "--", ".")
    command(tracked.root, "dvc", "exp", "run", "--temp", "--name", "faster", "-S", "one_cycle.max_lr=0.02")
    row = tracked.rows()[-1]
    assert row.name == "faster"
    assert_identical(tracked.reproduce(row.run_id, "--from-scratch"))
    assert_identical(tracked.reproduce("faster"))


@pytest.mark.slow
def test_a_queued_experiment(tracked: Tracked) -> None:
    command(tracked.root, "dvc", "exp", "run", "--queue", "--name", "queued", "-S", "seed=5")
    command(tracked.root, "dvc", "queue", "start")
    wait_until(lambda: "queued" in command(tracked.root, "git", "for-each-ref", "refs/exps").stdout)
    wait_until(lambda: tracked.rows()[-1].name == "queued" and "dvc.lock" in tracked.rows()[-1].tags)
    assert_identical(tracked.reproduce(tracked.rows()[-1].run_id, "--from-scratch"))


@pytest.mark.slow
def test_another_thread_count_is_never_identical_unless_it_is(tracked: Tracked) -> None:
    changes = {"train.threads": 0, "model.width": 16}
    set_params(tracked.root, changes)
    command(tracked.root, "git", "commit", "-qam", "all threads")
    command(tracked.root, "dvc", "repro", OMP_NUM_THREADS="1")
    row = tracked.rows()[-1]
    assert row.tags["threads"] == "1"
    done = command(
        tracked.root, "onecycle", "reproduce", row.run_id, "--from-scratch", "--json", check=False, OMP_NUM_THREADS="2"
    )
    found = json.loads(done.stdout)
    assert {"what": "threads", "recorded": "1", "here": "2"} in found["surroundings"]
    assert "not as it was: threads 1, here 2" in done.stderr
    same = all(one["recorded"] == one["now"] for one in found["outputs"])
    assert found["weights"]["differing"] > 0, "this network is too small to tell threads apart"
    assert not same
    assert found["verdict"] in ("equal within", "different")
    assert done.returncode == (found["verdict"] == "different")
