"""What a user sees of a stage: one line for an error, the code's own words only when asked for, and nothing twice."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from conftest import REPO, command

DVC = ("Running stage ", "> python -m ", "Updating lock file ", "Generating lock file ", "To track ", "\tgit add ")
"""How DVC's own lines begin, which it prints for each stage."""


@pytest.mark.parametrize("debug", ["", "1"])
def test_a_traceback_only_when_asked_for(tmp_path: Path, debug: str) -> None:
    (tmp_path / "params.yaml").write_text("epochs: 0\n", encoding="utf-8")
    environment = {"PYTHONPATH": str(REPO), "ONECYCLE_DEBUG": debug}
    done = command(tmp_path, "python", "-m", "stages.params", check=False, **environment)
    assert done.returncode == 2
    assert done.stderr.endswith("error: params.yaml: key seed is missing\n")
    assert ("Traceback (most recent call last)" in done.stderr) == bool(debug)
    assert done.stderr.count("\n") == 1 or debug


@pytest.mark.parametrize("printed", ["print('x\\n' * 1_000_000)", "show(['x'] * 100_000)"])
def test_output_that_nobody_reads_on_is_no_fault(tmp_path: Path, printed: str) -> None:
    """As SIGPIPE ends other programs: `onecycle show --json | head -1`."""
    imports = "from onecycle.exits import exit_with; from onecycle.tables import show"
    code = f"{imports}; exit_with(lambda: {printed})"
    done = command(tmp_path, "bash", "-c", f'set -o pipefail; python -c "{code}" | head -1', check=False)
    assert (done.returncode, done.stdout, done.stderr) == (141, "x\n", "")


def test_another_pipe_that_breaks_is_a_fault(tmp_path: Path) -> None:
    """As one to a process of ours."""
    ends = "r, w = os.pipe(); os.close(r)"
    code = f"import os; from onecycle.exits import exit_with; {ends}; exit_with(lambda: os.write(w, bytes(1)))"
    done = command(tmp_path, "python", "-c", code, check=False)
    assert done.returncode == 70 and "BrokenPipeError" in done.stderr


def test_the_stages_of_one_command_say_nothing_twice(pipeline: Path) -> None:
    lines = (pipeline / ".git" / "repro.log").read_text(encoding="utf-8").splitlines()
    said = Counter(line for line in lines if line.strip() and not line.startswith(DVC))
    assert any(line.startswith("epoch  3/3  train") for line in said)
    assert {line: times for line, times in said.items() if times > 1} == {}


@pytest.mark.parametrize("number", ["EACCES", "EPERM", "EROFS"])
def test_a_file_of_another_user_is_named(tmp_path: Path, number: str) -> None:
    """As what a container has left that ran as root."""
    raises = f"def body(): raise OSError(errno.{number}, os.strerror(errno.{number}), '.state/train/a.lock')"
    code = f"import errno, os; from onecycle.exits import exit_with\n{raises}\nexit_with(body)"
    done = command(tmp_path, "python", "-c", code, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: .state/train/a.lock may not be read or written here: ")
