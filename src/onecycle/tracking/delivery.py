"""What a stage knows of the sender: start it, and wait a little for it at the end. Imports nothing heavy."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import onecycle
from onecycle import paths
from onecycle.tracking.journal import Journal

WAIT_SECONDS = 4.0
"""The longest a stage waits, at its end, for the store to have what it said."""
POLL_SECONDS = 0.02


def start(journal: Journal) -> None:
    """Start the journal's sender in the background, unless it has one."""
    sender = journal.sent().sender
    if sender and sender.alive():
        return
    code = str(Path(onecycle.__file__).parents[1])  # an experiment's own, which writes the journal; not the workspace's
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("DVC_")}
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "onecycle.tracking.sender", str(journal.folder)],
        cwd=paths.original_root(),
        env={**inherited, "PYTHONPATH": code},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,  # Ctrl-C is for the stage; the sender then closes the row
    )
    process.returncode = 0  # it outlives us on purpose, so there is nothing for Popen to wait for or to warn about


def wait(journal: Journal) -> str | None:
    """Wait until the store has all of the journal; returns what is in the way, if anything is.

    So a command's row is whole, as a rule, when the command ends. A slow store is not waited for: its sender goes on.
    """
    end, deadline = journal.size(), time.monotonic() + WAIT_SECONDS
    while time.monotonic() < deadline:
        sent = journal.sent()
        if sent.trouble or sent.offset >= end:
            return sent.trouble
        time.sleep(POLL_SECONDS)
    return None
