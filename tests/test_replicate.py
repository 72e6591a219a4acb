"""Seeds and names of replicates, what is told of them, and the real thing with a stage that takes seconds."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import command, set_params
from crafted_run import commit, repository, write_run
from PIL import Image
from seeded_repo import seeded_repository

from onecycle import experiments, replicate
from onecycle.errors import UserError
from onecycle.experiments import Task
from onecycle.params import flatten, load
from onecycle.recipe import recipe_differing
from onecycle.tracking.git import SECONDS, git


@pytest.fixture
def repo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A git repository with params.yaml, in which the test stands."""
    folder = repository(tmp_path / "repo")
    write_run(folder, np.arange(30))
    commit(folder, "start")
    monkeypatch.chdir(folder)
    return folder


def add_experiment(folder: Path, name: str, **changes: Any) -> str:
    """An experiment as DVC keeps it, with params of its own; the commit."""
    head = command(folder, "git", "rev-parse", "HEAD").stdout.strip()
    set_params(folder, changes)
    made = commit(folder, name)
    command(folder, "git", "update-ref", f"refs/exps/{head[:2]}/{head[2:]}/{name}", made)
    command(folder, "git", "reset", "-q", "--hard", head)
    return made


def first(count: int, folder: Path, *in_queue: Task) -> list[int]:
    seeds = replicate.free_seeds(flatten(load(folder / "params.yaml")), in_queue)
    return [next(seeds) for _ in range(count)]


def test_seeds_go_on_after_those_that_are_there(repo: Path) -> None:
    assert first(3, repo) == [1, 2, 3]
    add_experiment(repo, "one", seed=1)
    add_experiment(repo, "three", seed=3, **{"gate.floor": 0.5, "runtime.workers": 2})
    add_experiment(repo, "another-recipe", seed=2, epochs=30)
    assert first(3, repo) == [2, 4, 5]
    set_params(repo, {"epochs": 30, "seed": 7})
    assert first(2, repo) == [8, 9]
    set_params(repo, {"seed": 1})
    assert first(2, repo) == [3, 4]


def test_seeds_of_reference_runs_are_taken(repo: Path) -> None:
    for recipe, seed, changes in (
        ("exercise", 1, {}),
        ("exercise", 2, {"runtime.workers": 2}),
        ("long", 3, {"epochs": 30}),
    ):
        folder = repo / f"results/reference/{recipe}/seed-{seed}"
        write_run(folder, np.arange(30))
        set_params(folder, {"seed": seed, **changes})
    assert first(3, repo) == [3, 4, 5]


def test_a_slow_git_hides_no_experiment(repo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stage does not wait for it; who chooses seeds by the answer does."""
    add_experiment(repo, "one", seed=1)
    slow = repo.parent / "bin" / "git"
    slow.parent.mkdir()
    slow.write_text(f'#!/bin/sh\nsleep {SECONDS + 0.3}\nexec {shutil.which("git")} "$@"\n', encoding="utf-8")
    slow.chmod(0o755)
    monkeypatch.setenv("PATH", f"{slow.parent}{os.pathsep}{os.environ['PATH']}")
    assert [one.name for one in experiments.finished()] == ["one"]
    assert git("rev-parse", "HEAD") == ""


def test_a_dvc_that_does_not_answer_is_not_waited_for_for_ever(repo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As it does where it reads a blob of git that is being cleared away; `Watch` asks again."""
    monkeypatch.setattr(experiments, "SECONDS", 0.05)
    with pytest.raises(UserError, match=r"^`dvc exp show` fails: no answer in 0\.05 s$"):
        experiments.tasks("HEAD")


def test_seeds_that_wait_or_run_are_taken_and_failed_ones_are_not(repo: Path) -> None:
    made = [add_experiment(repo, f"task-{seed}", seed=seed) for seed in (1, 2, 3)]
    for name in command(repo, "git", "for-each-ref", "--format=%(refname)", "refs/exps").stdout.split():
        command(repo, "git", "update-ref", "-d", name)
    tasks = [Task(f"task-{state}", made[n], state) for n, state in enumerate(("queued", "running", "failed"))]
    assert first(2, repo, *tasks) == [3, 4]


def test_names_say_branch_changes_and_seed(repo: Path) -> None:
    params = flatten(load(repo / "params.yaml"))
    assert replicate.experiment_names(params, [1, 2], []) == ["main-seed-1", "main-seed-2"]
    assert replicate.experiment_names(params, [1, 2], ["main-seed-2"]) == ["main-2-seed-1", "main-2-seed-2"]
    changed = {**params, "seed": 9, "epochs": 12, "one_cycle.max_lr": 0.01}
    command(repo, "git", "checkout", "-q", "-b", "feature/wide-net")
    names = replicate.experiment_names(changed, [10], [])
    assert names == ["feature-wide-net-epochs-12-one_cycle.max_lr-0.01-seed-10"]
    for name in names:
        command(repo, "git", "check-ref-format", f"refs/exps/ab/cd/{name}")
    many = {**changed, "batch_size": 128, "model.name": "resnet18"}
    assert replicate.experiment_names(many, [1], []) == ["feature-wide-net-changed-seed-1"]


def test_the_line_and_the_account(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("Running stage 'train'\nerror: the disk is full\nERROR: failed to reproduce 'train'\n", "utf-8")
    ended = [Task("a-seed-1", "", "success"), Task("a-seed-2", "", "failed", 1, log), Task("a-seed-3", "", "lost")]
    assert replicate.progress(ended) == "3 of 3 done, 2 failed"
    assert replicate.progress([Task("x", "", "running"), Task("y", "", "queued")]) == "0 of 2 done, x runs"
    lines = list(replicate.account(ended))
    assert lines[0] == "1 of 3 experiments succeeded: a-seed-1"
    assert lines[1] == "a-seed-2 failed: the disk is full; `dvc queue logs a-seed-2` has all it said"
    assert lines[2].startswith("a-seed-3 is lost: nothing runs it any more; `dvc queue kill a-seed-3`")
    assert any("onecycle compare <run> a-seed-1" in line for line in lines)
    assert list(replicate.account(ended[1:2])) == ["0 of 1 experiments succeeded", lines[1]]


def test_an_experiment_whose_worker_was_killed_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    """DVC calls it running for ever."""
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    running = [Task("here", "c", "running", os.getpid()), Task("gone", "c", "running", ended.pid)]
    monkeypatch.setattr(experiments, "tasks", lambda baseline: running)
    monkeypatch.setattr(replicate, "LOST_SECONDS", 0.0)
    for workers, states in ((1, ["running", "running", "lost"]), (0, ["running", "lost", "lost"])):
        monkeypatch.setattr(experiments, "workers", lambda workers=workers: workers)
        watch = replicate.Watch(["here", "gone", "taken-out"], "baseline")
        assert [task.state for task in watch.look()] == states


def test_none_is_lost_by_an_answer_that_took_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """And which then leaves out the one that DVC is clearing away."""
    clock = [0.0]

    def tasks(baseline: str) -> list[Task]:
        if clock[0]:
            return []
        clock[0] = 10 * replicate.LOST_SECONDS
        raise UserError("no answer")

    monkeypatch.setattr(replicate.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(replicate.time, "sleep", lambda seconds: None)
    monkeypatch.setattr(experiments, "tasks", tasks)
    watch = replicate.Watch(["a"], "baseline")
    assert watch.look() == [Task("a", "", "queued")]
    clock[0] += 2 * replicate.LOST_SECONDS
    assert watch.look() == [Task("a", "", "lost")]


def test_what_git_has_is_done_whatever_dvc_says(repo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """DVC calls an experiment running until it has cleared away the folder that it ran in."""
    head = command(repo, "git", "rev-parse", "HEAD").stdout.strip()
    add_experiment(repo, "main-seed-1", seed=1)
    asked = [Task("main-seed-1", "c", "running", os.getpid()), Task("main-seed-2", "c", "failed")]
    monkeypatch.setattr(experiments, "tasks", lambda baseline: asked)
    watch = replicate.Watch(["main-seed-1", "main-seed-2"], head)
    assert [task.state for task in watch.look()] == ["success", "failed"]
    elsewhere = replicate.Watch(["main-seed-1"], "0" * 40)
    assert [task.state for task in elsewhere.look()] == ["running"]


def test_dvc_may_fail_to_answer_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    answers: list[Any] = [UserError("clearing away")] * 3 + [[Task("a", "c", "success")]]

    def tasks(baseline: str) -> list[Task]:
        answer = answers.pop(0)
        if isinstance(answer, UserError):
            raise answer
        assert isinstance(answer, list)
        return answer

    monkeypatch.setattr(experiments, "tasks", tasks)
    monkeypatch.setattr(replicate, "POLL_SECONDS", 0.0)
    assert replicate.Watch(["a"], "baseline").look() == [Task("a", "c", "success")]
    answers[:] = [UserError("broken for good")] * replicate.PATIENCE
    with pytest.raises(UserError, match="broken for good"):
        replicate.Watch(["a"], "baseline").look()


def test_what_is_refused(repo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    params = flatten(load(repo / "params.yaml"))
    with pytest.raises(UserError, match="-n must be ≥ 1, got 0"):
        replicate.replicate(0, 1, params)
    with pytest.raises(UserError, match="--jobs must be ≥ 1, got -1"):
        replicate.replicate(1, -1, params)
    command(repo, "rm", "-r", ".git")
    with pytest.raises(UserError, match="needs a commit"):
        replicate.replicate(1, 1, params)


def test_a_recipe_is_all_params_but_the_seed() -> None:
    one = {"seed": 0, "epochs": 24, "optimizer.epsilon": 0.00000001, "gate.floor": 0.9}
    assert recipe_differing(one, {"seed": 4, "epochs": 24.0, "optimizer.epsilon": "1e-08", "gate.floor": 0.8}) == []
    assert recipe_differing(one, {**one, "epochs": 25, "model.width": 8}) == ["epochs", "model.width"]


# ------------------------------------------------------------------------------------------------ DVC's own queue


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_seeds_are_queued_run_and_summarised(tmp_path: Path) -> None:
    """Three seeds with a change of the workspace that is in no commit; one of them fails."""
    folder = seeded_repository(tmp_path / "repo")
    before = command(folder, "git", "stash", "list").stdout
    script = folder / "made_up.py"
    script.write_text(script.read_text(encoding="utf-8") + "# changed\n", encoding="utf-8")
    done = command(folder, "onecycle", "replicate", "-n", "3", check=False)
    lines = done.stdout.splitlines()
    assert lines[0] == "2 of 3 experiments succeeded: main-seed-1, main-seed-2", done.stdout + done.stderr
    assert lines[1].startswith("main-seed-3 failed: params.yaml: seed must not be 3")
    assert done.returncode == 1
    assert "queueing main-seed-2, 2 of 3" in done.stderr and " done" in done.stderr
    assert command(folder, "git", "show", f"{reference(folder, 'main-seed-1')}:made_up.py").stdout.endswith(
        "# changed\n"
    )
    assert command(folder, "git", "status", "--short").stdout == " M made_up.py\n"
    assert command(folder, "git", "stash", "list").stdout == before

    summary = json.loads(command(folder, "onecycle", "summary", "--json", "--picture", "seeds.png").stdout)
    [recipe] = summary["recipes"]
    assert recipe["n"] == 3 and {run["seed"] for run in recipe["executions"]} == {0, 1, 2}
    assert ["workspace", "HEAD"] in [run["names"] for run in recipe["executions"]]
    with Image.open(folder / "seeds.png") as image:
        assert image.format == "PNG"

    again = command(folder, "onecycle", "replicate", "-n", "1", check=False)  # the seed that failed is tried again
    assert again.returncode == 1 and again.stdout.startswith("0 of 1 experiments succeeded\nmain-2-seed-3 failed")


def reference(folder: Path, name: str) -> str:
    """Where git keeps an experiment."""
    listed = command(folder, "git", "for-each-ref", "--format=%(refname)", "refs/exps").stdout.split()
    [found] = [line for line in listed if line.endswith(f"/{name}")]
    return found


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_interrupted_what_is_queued_stays_queued(tmp_path: Path) -> None:
    folder = seeded_repository(tmp_path / "repo")
    (folder / "params.yaml").write_text((folder / "params.yaml").read_text("utf-8") + "# changed\n", "utf-8")
    process = subprocess.Popen(
        [str(Path(sys.executable).with_name("onecycle")), "replicate", "-n", "2"],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stderr is not None
    for line in process.stderr:
        if "queueing main-seed-2" in line:
            break
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does, to the whole group: DVC is at work on the workspace
    _, error = process.communicate(timeout=300)
    assert process.returncode == 130
    assert "what is queued stays queued (main-seed-1" in error and "Traceback" not in error
    assert command(folder, "git", "status", "--short").stdout == " M params.yaml\n"
    assert "main-seed-1" in command(folder, "dvc", "queue", "status").stdout
