"""Sends a journal to the store: one process an execution, so that nothing a store does can stall a stage.

    python -m onecycle.tracking.sender .state/journal/<execution>

It follows the journal while the execution lasts, so metrics are in the UI while training runs; imports mlflow once an
execution instead of once a stage; notes a stage that was killed; and takes along journals that earlier executions
could not get rid of. What the store does not take stays in the journal.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

from filelock import FileLock, Timeout

from onecycle.tracking.errors import StoreError
from onecycle.tracking.execution import Process
from onecycle.tracking.journal import Journal, all_journals, sweep
from onecycle.tracking.redaction import without_secrets
from onecycle.tracking.relay import Relay
from onecycle.tracking.store import current_address
from onecycle.tracking.system import SystemMetrics

POLL_SECONDS = 0.2
RETRY_SECONDS = 10.0
COLLECT_SECONDS = 20.0
"""How long DVC may take to fetch a queued experiment from its temporary folder after its end."""


def follow(journal: Journal) -> bool:
    """Send a journal until its execution is over, and then once more what is left.

    Returns:
        Whether to start anew: the store was deleted, and MLflow keeps its connection to it as long as a process lives.
    """
    here = current_address()
    # `send` leaves it to whoever follows
    journal.acknowledge(replace(journal.sent(), sender=Process.current(), address=here))
    relay = Relay(journal)
    sweep()
    others = [other for other in all_journals() if other.folder != journal.folder]
    backlog = [other for other in others if other.sent().address in ("", here)]  # one meant for a server waits for it
    system: SystemMetrics | None = None
    retry_at, along_at, finish_by = 0.0, 0.0, float("inf")
    while not relay.store_is_lost():
        relay.read()
        now = time.monotonic()
        finished = False
        if relay.over:
            finish_by = min(finish_by, now + COLLECT_SECONDS)
            finished = relay.finish(patient=now <= finish_by)
        elif relay.connected:
            system = system or SystemMetrics()
            relay.note(system)
        if now >= retry_at or finished:
            try:
                relay.push()
                if backlog and now >= along_at:
                    along_at = _sent_along(backlog.pop(0))
                if finished:
                    relay.push_model()
            except StoreError:
                retry_at = time.monotonic() + RETRY_SECONDS  # from when it failed, which may have taken long
        if finished:
            if relay.done:
                journal.remove()
            return False
        time.sleep(POLL_SECONDS)
    return True


def _sent_along(journal: Journal) -> float:
    """Send another execution's journal; returns when the next may follow, which is later when this one could not go.

    What was in the way is noted in the journal.
    """
    try:
        send(journal)
    except StoreError:
        return time.monotonic() + RETRY_SECONDS
    return 0.0


def send(journal: Journal, wait: float = 0) -> None:
    """Send what there is of a journal now, unless another sender has it for longer than `wait` seconds.

    Raises:
        StoreError: the journal stays, since the store does not take it or it is damaged.
    """
    with _held(journal, wait) as held:
        if not held:
            return
        try:
            _send(Relay(journal))
        except (KeyError, OSError, TypeError, ValueError) as error:
            raise StoreError(f"{journal.folder} cannot be sent: {_noted(journal, error)}") from error


def _send(relay: Relay) -> None:
    relay.read()
    if relay.over:
        relay.finish()
    relay.push()
    if relay.over:
        relay.push_model()
    if relay.done:
        relay.journal.remove()


def _noted(journal: Journal, error: Exception) -> str:
    """Note a fault of ours in the journal, where a stage that waits for the store sees it; returns it in words."""
    fault = without_secrets(f"{type(error).__name__}: {error}")
    with suppress(OSError):  # the disk may be what is full; a stage also sees that nobody sends any more
        journal.acknowledge(replace(journal.sent(), trouble=fault))
    return fault


def is_held(journal: Journal) -> bool:
    """Whether somebody sends it."""
    with _held(journal, wait=0) as held:
        return not held and journal.file.exists()


@contextmanager
def _held(journal: Journal, wait: float) -> Iterator[bool]:
    """The right to send a journal, or False: another has it for longer than `wait` seconds, or has sent all of it."""
    file = journal.folder.with_name(f"{journal.folder.name}.lock")
    try:
        lock = FileLock(file).acquire(timeout=wait)
    except Timeout:
        yield False
        return
    with lock:
        yield journal.file.exists()
        if not journal.file.exists():
            file.unlink(missing_ok=True)


def main() -> None:
    """Follow the journal named on the command line, unless it has a sender."""
    journal, again = Journal(Path(sys.argv[1])), False
    with _held(journal, wait=5) as held:
        if held:
            try:
                again = follow(journal)
            except Exception as error:
                _noted(journal, error)
                raise
    if again:
        os.execv(sys.executable, sys.orig_argv)


if __name__ == "__main__":
    main()
