"""What a stage knows of the sender: start it, and wait a little for it at the end. Imports nothing heavy."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from tempfile import mkdtemp

import onecycle
from onecycle import paths
from onecycle.tracking.execution import Process
from onecycle.tracking.journal import Journal

SECONDS_A_STAGE = 3.5
"""What a stage has for its row: opening it, filling it in, and waiting at the end for the store to have it. Only that
wait is cut short by what the others took; a slow git, or large files to copy, may take longer."""
POLL_SECONDS = 0.02


def start(journal: Journal) -> Process:
    """Start the journal's sender in the background, unless it has one; returns the one it has now."""
    sender = journal.sent().sender
    if sender and sender.alive():
        return sender
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("DVC_")}
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "onecycle.tracking.sender", str(journal.folder)],
        cwd=paths.original_root(),
        env={**inherited, "PYTHONPATH": python_path(_kept_code(journal))},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,  # Ctrl-C is for the stage; the sender then closes the row
    )
    process.returncode = 0  # it outlives us on purpose, so there is nothing for Popen to wait for or to warn about
    return Process.of(process.pid)


def python_path(code: Path) -> str:
    """PYTHONPATH for a process that runs the package in `code`, with what else the user's holds."""
    return os.pathsep.join(filter(None, (str(code), os.environ.get("PYTHONPATH"))))


def _kept_code(journal: Journal) -> Path:
    """The package that writes the journal, as a copy in it.

    The sender outlives the command, and exports the model last. A queued experiment's code is not the workspace's, and
    DVC has removed its folder by then.
    """
    code = journal.folder / "code"
    if not code.exists():
        new = Path(mkdtemp(prefix="code-", dir=journal.folder))
        package = Path(onecycle.__file__).parent
        half_written = shutil.ignore_patterns("*.pyc.*")  # the rest of __pycache__ holds for copies, too
        shutil.copytree(package, new / package.name, ignore=half_written)
        new.rename(code)
    return code


def wait(journal: Journal, started: Process, seconds: float) -> str | None:
    """Wait until the store has all of the journal; returns what is in the way, if anything is.

    So a command's row is whole, as a rule, when the command ends. A slow store is not waited for: its sender goes on.

    Args:
        started: the sender that the stage started, or found; another may have taken over.
        seconds: the longest to wait.
    """
    end, deadline = journal.size(), time.monotonic() + seconds
    while time.monotonic() < deadline:
        senders = (started, journal.sent().sender)
        ended = not any(sender.alive() for sender in senders if sender)
        sent = journal.sent()
        if sent.trouble or sent.offset >= end:
            return sent.trouble
        if ended:
            return "the process that sends rows to the store has ended"
        time.sleep(POLL_SECONDS)
    return None
