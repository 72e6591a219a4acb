"""The workflow and the pre-commit hooks, run as they are written; pull requests from their branch to their table."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from conftest import REPO, clone, command, set_params
from crafted_run import commit, errors, write_run
from numpy.typing import NDArray

WORKFLOW = REPO / ".github/workflows/ci.yml"
HOOKS = REPO / ".pre-commit-config.yaml"
TYPES = {"MYPY_CACHE_DIR": str(REPO / ".mypy_cache")}
"""What `make check` has found out here already."""


@cache
def workflow() -> dict[str, Any]:
    tree = yaml.safe_load(WORKFLOW.read_text(encoding="utf-8"))
    assert isinstance(tree, dict)
    return tree


@cache
def steps(job: str) -> tuple[dict[str, Any], ...]:
    return tuple(workflow()["jobs"][job]["steps"])


def position(run: str) -> int:
    """Of a step of the first job."""
    [found] = [place for place, step in enumerate(steps("check")) if step.get("run") == run]
    return found


def test_the_workflow_is_what_github_takes() -> None:
    command(REPO, "check-jsonschema", "--builtin-schema", "vendor.github-workflows", str(WORKFLOW))


def test_actions_are_pinned_and_whatever_runs_a_branch_may_only_read() -> None:
    text = WORKFLOW.read_text(encoding="utf-8")
    uses = re.findall(r"uses: (.*)", text)
    assert uses and all(re.fullmatch(r"actions/[a-z-]+@[0-9a-f]{40}  # v\d+\.\d+\.\d+", action) for action in uses)
    assert workflow()["permissions"] == {"contents": "read"}
    assert "secrets." not in text and "pull_request_target" not in text
    may_write = {name: job["permissions"] for name, job in workflow()["jobs"].items() if "permissions" in job}
    assert may_write == {"comment": {"pull-requests": "write"}}
    assert [set(step) for step in steps("comment")] == [{"name", "env", "run"}]  # nothing of the branch is there
    assert "${{" not in "".join(step.get("run", "") for job in workflow()["jobs"] for step in steps(job))
    for job in ("check", "pipeline", "slow"):
        assert steps(job)[0]["with"] == {"fetch-depth": 0, "persist-credentials": False}


def test_the_first_job_runs_what_a_pull_request_needs_in_this_order() -> None:
    run = [step["run"] for step in steps("check") if "run" in step]
    assert run[:3] == ["make check", "make test", ".venv/bin/onecycle check-lock"]
    assert len(run) == 4 and '.venv/bin/onecycle gate --baseline "$BASELINE"' in run[3]


def test_what_was_merged_is_checked_and_not_gated() -> None:
    """There is no other branch to compare it with."""
    assert "\n  push:\n    branches: [main]\n" in WORKFLOW.read_text(encoding="utf-8")
    gated = [step["name"] for step in steps("check") if step.get("if") == "github.event_name == 'pull_request'"]
    assert gated == ["Gate"]


def test_each_schedule_has_its_job() -> None:
    text = WORKFLOW.read_text(encoding="utf-8")
    crons = re.findall(r'- cron: "(.+)"', text)
    assert len(crons) == 2 and re.findall(r"github\.event\.schedule == '(.+?)'", text) == crons
    assert steps("slow")[-1]["run"] == "make test-all"


def test_the_hooks_are_the_checks_of_make() -> None:
    makefile = (REPO / "Makefile").read_text(encoding="utf-8")
    recipe = makefile.partition("\ncheck: ")[2].partition("\n\n")[0].splitlines()[1:]
    [repo] = yaml.safe_load(HOOKS.read_text(encoding="utf-8"))["repos"]
    assert [hook["entry"] for hook in repo["hooks"]] == [f".venv/bin/{line.strip()}" for line in recipe]


# ------------------------------------------------------------------------------------------------ a pull request


@dataclass
class Job:
    """What became of a job."""

    log: str
    failed: str | None
    """Name of the step that ended it."""
    code: int
    summary: str
    output: str


@pytest.fixture(scope="module")
def origin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository as its server has it: main with results; branches whose results are equal but for chance, are worse
    by 60 of 10,000 images, and are those of other params."""
    folder = clone(tmp_path_factory.mktemp("origin") / "repo")
    record(folder, errors(375, 225))
    commit(folder, "Results")
    for branch, params, wrong in (
        ("good", {"one_cycle.max_at_epoch": 6}, errors(375, 225, 225)),
        ("bad", {"model.dropout": 0.5}, errors(375, 285, 225)),
    ):
        command(folder, "git", "switch", "-qc", branch, "main")
        record(folder, wrong, **params)
        commit(folder, f"A {branch} idea")
    command(folder, "git", "switch", "-qc", "forgetful", "main")
    set_params(folder, {"epochs": 30})
    commit(folder, "30 epochs, not run")
    command(folder, "git", "switch", "-qc", "unrun", "main")
    with (folder / "src/onecycle/training.py").open("a", encoding="utf-8") as code:
        code.write("# Changed since it ran.\n")
    commit(folder, "Other code, not run")
    command(folder, "git", "switch", "-q", "main")
    return folder


def record(folder: Path, wrong: NDArray[np.int64], **params: float) -> None:
    """Results of a run with these params that gets the images `wrong` wrong, and the dvc.lock that DVC makes of them;
    what no gate looks at is a file with its own name in it."""
    write_run(folder, wrong)
    set_params(folder, params)
    for stage in yaml.safe_load((folder / "dvc.yaml").read_text(encoding="utf-8"))["stages"].values():
        for out in (*stage.get("outs", ()), *stage.get("metrics", ()), *stage.get("plots", ())):
            path = folder / (out if isinstance(out, str) else next(iter(out)))
            if not path.exists():
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(f"{path.name}\n", encoding="utf-8")
    command(folder, "dvc", "commit", "--force", "--quiet")


def check_out(origin: Path, folder: Path, branch: str, *options: str) -> Path:
    """A branch as actions/checkout leaves it, with the environment that `make` would install."""
    command(folder, "git", "clone", "-q", "--branch", branch, *options, f"file://{origin}", branch)
    (folder / branch / ".venv").mkdir()
    for name in ("bin", "lib", "pyvenv.cfg"):
        (folder / branch / ".venv" / name).symlink_to(Path(sys.prefix) / name)
    (folder / branch / ".venv/.ready").write_text(f"{(folder / branch / '.venv').resolve()}\n", encoding="utf-8")
    return folder / branch


def job(folder: Path, wanted: slice) -> Job:
    """Run steps of the first job in `folder`, in their shell, until one fails."""
    assert workflow()["defaults"] == {"run": {"shell": "bash"}}
    temporary = folder.with_name(f"{folder.name}.runner")
    temporary.mkdir()
    files = {name: temporary / name for name in ("GITHUB_STEP_SUMMARY", "GITHUB_OUTPUT")}
    for file in files.values():
        file.touch()
    log, failed, code = "", None, 0
    for step in (step for step in steps("check")[wanted] if "run" in step):
        (temporary / "step.sh").write_text(step["run"], encoding="utf-8")
        env = {name: value.replace("${{ github.base_ref }}", "main") for name, value in step.get("env", {}).items()}
        done = subprocess.run(
            ["bash", "--noprofile", "--norc", "-eo", "pipefail", str(temporary / "step.sh")],
            cwd=folder,
            env={**os.environ, **TYPES, "RUNNER_TEMP": str(temporary), **{k: str(v) for k, v in files.items()}, **env},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        log += f"--- {step['name']}\n{done.stdout}"
        if done.returncode:
            failed, code = step["name"], done.returncode
            break
    print(f"{folder.name}: {'passed' if failed is None else f'{failed} ended with {code}'}\n{log}")
    summary, output = (file.read_text(encoding="utf-8") for file in files.values())
    return Job(log, failed, code, summary, output)


AFTER = slice(position("make test") + 1, None)
"""The steps behind those that run before these tests do: lint, and the tests themselves."""


def test_a_good_branch_passes_every_step(origin: Path, tmp_path: Path) -> None:
    after = job(check_out(origin, tmp_path, "good"), AFTER)
    assert after.failed is None, after.log
    assert "dvc.lock agrees with dvc.yaml, params.yaml and the committed results" in after.log
    assert (
        after.summary.startswith("**Gate: pass**\n\n| check |") and "workspace against origin/main (" in after.summary
    )
    name, _, rest = after.output.partition("<<")
    end, _, rest = rest.partition("\n")
    assert (name, rest) == ("page", f"{after.summary}{end}\n")


def test_a_bad_branch_fails_with_a_table_that_says_why(origin: Path, tmp_path: Path) -> None:
    done = job(check_out(origin, tmp_path, "bad"), AFTER)
    assert (done.failed, done.code) == ("Gate", 1)
    assert done.summary.startswith("**Gate: regression**")
    assert "| accuracy | 94.00 % | 93.40 % | -0.60 | -0.97 to -0.23 |" in done.summary
    assert "Failed: accuracy." in done.summary and done.summary in done.output


def test_a_branch_whose_code_was_not_run_is_told_so_beside_the_verdict(origin: Path, tmp_path: Path) -> None:
    """Its results are the baseline's, which says nothing of it."""
    done = job(check_out(origin, tmp_path, "unrun"), AFTER)
    assert done.failed is None and done.summary.startswith("**Gate: pass**")
    assert "Both give the same predictions." in done.summary
    assert "\n\n    warning: train: src/onecycle/training.py is not what it ran with" in done.summary


def test_a_branch_whose_params_were_not_run_fails_before_the_gate(origin: Path, tmp_path: Path) -> None:
    done = job(check_out(origin, tmp_path, "forgetful"), AFTER)
    assert (done.failed, done.code, done.summary) == ("dvc.lock", 1, "")
    assert "error: train: epochs is 24 in dvc.lock and 30 in params.yaml; run `dvc repro`" in done.log


def test_what_cannot_be_judged_says_so_in_the_summary_as_plain_text(origin: Path, tmp_path: Path) -> None:
    """Indented, which Markdown takes as it is: the sentence may hold what a branch has written."""
    done = job(check_out(origin, tmp_path, "good", "--depth=1"), AFTER)
    assert (done.failed, done.code) == ("Gate", 2)
    assert done.summary.startswith(
        "\n    error: origin/main is not in this shallow clone; fetch the whole history: `fetch-"
    )
    assert done.summary in done.output


GH = """#!/bin/bash
case "$*" in
  *--paginate*) cat "$COMMENTS" ;;
  *) echo "$*"; cat "$RUNNER_TEMP/page.md" ;;
esac
"""
"""Stands in for GitHub: knows the comments in a file, and tells what it is asked to do."""


@pytest.mark.parametrize(
    ("ours", "does"),
    [
        ("", "pr comment 7 --body-file"),
        ("11\n12\n", "api --silent --method PATCH repos/o/r/issues/comments/12 --field"),
    ],
)
def test_a_pull_request_has_one_comment_that_is_kept_up(ours: str, does: str, tmp_path: Path) -> None:
    [step] = steps("comment")
    (tmp_path / "gh").write_text(GH, encoding="utf-8")
    (tmp_path / "gh").chmod(0o755)
    (tmp_path / "comments").write_text(ours, encoding="utf-8")
    environment = {"GH_REPO": "o/r", "NUMBER": "7", "PAGE": "**Gate: pass**", "RUNNER_TEMP": str(tmp_path)}
    environment |= {"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}", "COMMENTS": str(tmp_path / "comments")}
    done = command(tmp_path, "bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", step["run"], **environment)
    assert done.stdout.startswith(does)
    assert done.stdout.endswith("\n<!-- onecycle gate -->\n\n**Gate: pass**\n")


def test_the_hooks_let_a_good_commit_through_and_no_bad_one(origin: Path, tmp_path: Path) -> None:
    folder = check_out(origin, tmp_path, "good")
    environment = {**TYPES, "PRE_COMMIT_HOME": str(tmp_path / "home")}
    command(folder, "pre-commit", "install", **environment)
    done = command(folder, "pre-commit", "run", "--all-files", **environment)
    assert re.findall(r"(\w+)\.+Passed", done.stdout) == ["lint", "formatting", "types"]
    module = folder / "src/onecycle/errors.py"
    module.write_text(f"{module.read_text(encoding='utf-8')}\nimport os\nCODE: str =  3\n", encoding="utf-8")
    author = ("-c", "user.name=test", "-c", "user.email=test@example.com")
    refused = command(folder, "git", *author, "commit", "-qam", "wrong", check=False, **environment)
    assert refused.returncode != 0
    assert re.findall(r"(\w+)\.+Failed", refused.stdout + refused.stderr) == ["lint", "formatting", "types"]
    assert command(folder, "git", "log", "-1", "--format=%s").stdout == "A good idea\n"
