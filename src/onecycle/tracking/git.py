"""What git knows. Never asks for a remote's address, which may hold a password."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from onecycle import paths
from onecycle.git_command import git_says

SECONDS = 3.0
"""The longest that git may take; a stage waits for it."""
RESULTS = (":(exclude)results", ":(exclude)dvc.lock")
"""What the pipeline itself writes, so that it says nothing about whether anything was changed."""


def git(*arguments: str, strip: bool = True) -> str:
    """What git prints in the time that it may take."""
    return git_says(*arguments, seconds=SECONDS, strip=strip)


def final_lock(workspace: Path, experiment: str | None, baseline: str | None) -> str:
    """The dvc.lock that a command left which has ended; empty when there is none (yet).

    A temporary experiment's folder goes after its end; DVC has then made a commit of it.
    """
    with suppress(FileNotFoundError, NotADirectoryError):
        return (workspace / paths.DVC_LOCK).read_text(encoding="utf-8")
    commit = experiment_commit(experiment, baseline) if experiment and baseline else ""
    return git("-C", str(paths.original_root()), "show", f"{commit}:./{paths.DVC_LOCK}", strip=False) if commit else ""


def experiment_commit(experiment: str, baseline: str) -> str:
    """The commit that DVC made of an experiment which started from the commit `baseline`; empty when there is none."""
    reference = f"refs/exps/{baseline[:2]}/{baseline[2:]}/{experiment}"
    return git("-C", str(paths.original_root()), "rev-parse", "--verify", "--quiet", reference)
