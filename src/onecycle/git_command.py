"""git, called so that it never asks for a password and never makes the user's own git wait."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from pathlib import Path

from onecycle.errors import UserError


def run_git(
    *arguments: str,
    folder: Path | None = None,
    given: bytes | None = None,
    seconds: float | None = None,
    environment: Mapping[str, str] | None = None,
) -> subprocess.CompletedProcess[bytes]:
    """Run git to its end, whatever its exit code.

    Args:
        folder: where; here by default.
        given: on its standard input.
        seconds: the longest it may take; longer raises `subprocess.TimeoutExpired`.
        environment: beside this process's.

    Raises:
        UserError: there is no git.
    """
    quiet = {"GIT_OPTIONAL_LOCKS": "0", "GIT_TERMINAL_PROMPT": "0"}
    try:
        return subprocess.run(
            ["git", *arguments],
            cwd=folder,
            env={**os.environ, **quiet, **(environment or {})},
            input=given,
            capture_output=True,
            timeout=seconds,
            check=False,
        )
    except OSError as error:
        raise UserError(f"git cannot be run: {error.strerror}") from None


def git_says(*arguments: str, seconds: float | None = None, strip: bool = True) -> str:
    """What git prints; empty without git, outside a repository, before the first commit, and after so many seconds."""
    try:
        done = run_git(*arguments, seconds=seconds)
    except (UserError, subprocess.TimeoutExpired):
        return ""
    if done.returncode != 0:
        return ""
    text = done.stdout.decode(errors="replace")
    return text.rstrip() if strip else text


def complaint(done: subprocess.CompletedProcess[bytes]) -> str:
    """The first line of git's complaint."""
    lines = done.stderr.decode(errors="replace").splitlines()
    return next(iter(lines), "it gave no reason").removeprefix("fatal: ").removeprefix("error: ")
