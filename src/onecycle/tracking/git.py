"""What git knows. Never asks for a remote's address, which may hold a password."""

from __future__ import annotations

from onecycle.git_command import git_says

SECONDS = 3.0
"""The longest that git may take; a stage waits for it."""
RESULTS = (":(exclude)results", ":(exclude)dvc.lock")
"""What the pipeline itself writes, so that it says nothing about whether anything was changed."""


def git(*arguments: str, strip: bool = True) -> str:
    """What git prints in the time that it may take."""
    return git_says(*arguments, seconds=SECONDS, strip=strip)
