"""Ends what runs in a worktree, and removes it, when its owner has closed the pipe between them, or is no more.

    python -m onecycle.reproduction.keeper <worktree> <checkpoints>

Numbers of process groups come on its standard input.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil

from onecycle.git_command import run_git

PATIENCE_SECONDS = 60.0
"""For a stage that was asked to end: it finishes its step and saves it."""


def main(worktree: Path, checkpoints: Path) -> None:
    """Wait for the end of the owner, then tidy up."""
    groups = [int(line) for line in sys.stdin]
    for group in groups:
        _end(group)
    # forced twice: git locks a worktree that it checks out, and leaves it so where it is killed
    remove = ("worktree", "remove", "--force", "--force", str(worktree))
    run_git(*remove)
    shutil.rmtree(worktree, ignore_errors=True)  # its owner was killed before git knew it, or while it was made
    run_git(*remove)  # `prune` would forget others whose disk is away
    shutil.rmtree(checkpoints, ignore_errors=True)


def _end(group: int) -> None:
    """End a process group: asked first, killed if it does not end."""
    with suppress(ProcessLookupError, PermissionError):  # that is what macOS says of a group of zombies
        os.killpg(group, signal.SIGTERM)
        deadline = time.monotonic() + PATIENCE_SECONDS
        while _lives(group) and time.monotonic() < deadline:
            time.sleep(0.1)
        os.killpg(group, signal.SIGKILL)


def _lives(group: int) -> bool:
    """Whether a process of the group still runs; one that its parent has not looked after yet does not."""
    for process in psutil.process_iter(["status"]):
        with suppress(ProcessLookupError):
            if os.getpgid(process.pid) == group and process.info["status"] != psutil.STATUS_ZOMBIE:
                return True
    return False


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
