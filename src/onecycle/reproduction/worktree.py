"""A git worktree that is gone when whoever asked for it is, however that ends: a keeper outlives its owner.

It lies in `.dvc/tmp/exps/`, where DVC's own temporary experiments do: what a stage finds by walking up from there, the
MLflow store, the journal, the downloaded archive, is the workspace's.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from onecycle import paths, signals
from onecycle.errors import UserError
from onecycle.git_command import complaint, run_git


@dataclass(frozen=True)
class Worktree:
    """A checkout of one commit."""

    top: Path
    """Its top folder."""
    folder: Path
    """What the workspace is in it: the folder that holds dvc.yaml."""
    _keeper: IO[bytes]

    def apply(self, changes: bytes) -> None:
        """Apply a patch. Raises `UserError` where it does not fit."""
        done = run_git("apply", "--binary", "--whitespace=nowarn", "-", folder=self.top, given=changes)
        if done.returncode != 0:
            raise UserError(f"the patch of what no commit holds does not apply: {complaint(done)}")

    def run(self, command: Sequence[str], environment: dict[str, str]) -> Iterator[str]:
        """Run a command here; yields what it says, line by line, and ends with its exit code as CalledProcessError.

        Its process group ends with the keeper's owner.
        """
        with signals.deferred() as request:  # or it would run on, and the keeper not know of it
            process = subprocess.Popen(
                command,
                cwd=self.folder,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                start_new_session=True,
            )
            self._keeper.write(f"{process.pid}\n".encode())
            self._keeper.flush()
        request.obey()
        assert process.stdout
        with process.stdout:
            yield from process.stdout
        if process.wait() != 0:
            raise subprocess.CalledProcessError(process.returncode, list(command))


@contextmanager
def worktree(commit: str, attempt: str) -> Iterator[Worktree]:
    """A worktree of `commit`; afterwards it is gone, and so is what was started in it.

    Args:
        attempt: a name of its own, also of the checkpoints that a training in it leaves.

    Raises:
        UserError: git cannot make one.
    """
    workspace = paths.original_root()
    if run_git("rev-parse", "--show-superproject-working-tree", folder=workspace).stdout.strip():
        raise UserError(
            "this workspace is a git submodule, in whose worktrees DVC does not run; use a clone of its own"
        )
    prefix = run_git("rev-parse", "--show-prefix", folder=workspace).stdout.decode().strip()
    top = workspace / ".dvc" / "tmp" / "exps" / f"reproduce-{attempt}"
    top.parent.mkdir(parents=True, exist_ok=True)
    keeper = subprocess.Popen(
        [sys.executable, "-m", "onecycle.reproduction.keeper", str(top), str(paths.training_state(attempt))],
        cwd=workspace,
        stdin=subprocess.PIPE,
        start_new_session=True,  # a Ctrl-C is for its owner
    )
    assert keeper.stdin
    try:
        add = ("-c", "core.hooksPath=/dev/null", "worktree", "add")  # `dvc install` has git check out data, too
        done = run_git(*add, "--quiet", "--detach", str(top), commit, folder=workspace)
        if done.returncode != 0:
            raise UserError(f"git makes no worktree of {commit[:12]}: {complaint(done)}")
        yield Worktree(top, top / prefix, keeper.stdin)
    finally:
        keeper.stdin.close()
        keeper.wait()
