"""DVC, called as a person calls it: this environment's own, and its stages find this environment's python first."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryFile

from onecycle import signals

UNANSWERED = 124
"""The exit code that stands for none, as `timeout` has it."""


def environment() -> dict[str, str]:
    """What a `dvc` started from here gets, whether the virtual environment is activated or not."""
    binaries = str(Path(sys.executable).parent)
    return {**os.environ, "PATH": os.pathsep.join((binaries, os.environ.get("PATH", "")))}


def dvc(*arguments: str, folder: Path | None = None, seconds: float | None = None) -> subprocess.CompletedProcess[str]:
    """Run `dvc` to its end, here or in `folder`, and return what it said; of one that only asks, for `seconds` at most.

    It has a session of its own and a signal waits until it is done: killed while it puts an experiment into the queue,
    DVC leaves the changes of the workspace in a git stash. Files take what it says, since the worker that
    `queue start` leaves behind would hold a pipe open for hours.
    """
    command = [sys.executable, "-m", "dvc", *arguments]
    with TemporaryFile("w+") as out, TemporaryFile("w+") as error, signals.deferred() as request:
        try:
            code = subprocess.run(
                command,
                cwd=folder,
                env=environment(),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=error,
                start_new_session=True,
                timeout=seconds,
            ).returncode
        except subprocess.TimeoutExpired:
            code = UNANSWERED
            error.write(f"ERROR: no answer in {seconds:g} s\n")
        out.seek(0)
        error.seek(0)
        said = subprocess.CompletedProcess(command, code, out.read(), error.read())
    request.obey()
    return said


def complaint(said: subprocess.CompletedProcess[str]) -> str:
    """What went wrong, in DVC's words."""
    lines = [line.strip() for line in said.stderr.splitlines() if line.strip()]
    worst = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR: ")]
    return (worst or lines or ["it gave no reason"])[-1]
