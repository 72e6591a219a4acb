"""`onecycle sync`: send every journal that is still there to the store that is current now."""

from __future__ import annotations

from collections.abc import Iterator

from onecycle.errors import UserError
from onecycle.tracking.errors import StoreError
from onecycle.tracking.journal import Journal, all_journals, sweep
from onecycle.tracking.row_state import RowState
from onecycle.tracking.sender import is_held, send
from onecycle.tracking.store import EXPERIMENT_PREFIX, connect

PATIENCE_SECONDS = 300.0
"""How long to wait for a sender that is about to finish with an execution that is over."""


def sync() -> Iterator[str]:
    """Send what is unsent; yields a line an execution.

    Raises:
        UserError: the store does not take one of them, after the others; it stays in the journal.
    """
    sweep()
    journals = all_journals()
    troubles: list[str] = []
    unreadable: list[str] = []
    away: set[str] = set()
    for journal in journals:
        try:
            state = RowState.of(journal)
        except StoreError as error:
            unreadable.append(str(error))
            yield f"{journal.folder.name}: not sent"
            continue
        if _looked_after(journal, state):
            yield f"{journal.folder.name}: still running, sent as it goes"
            continue
        experiment = state.params.get("data.dataset")
        if experiment not in away:  # a store that is away is waited for once, and one that is deleted stops no other
            try:
                send(journal, wait=PATIENCE_SECONDS)
            except StoreError as error:
                troubles.append(str(error))
                if experiment and not _there(experiment):  # else it is this journal that cannot go
                    away.add(experiment)
        yield f"{journal.folder.name}: {'not sent yet' if journal.unsent() else 'sent'}"
    if troubles:
        trouble = "; ".join(dict.fromkeys([*unreadable, *troubles]))
        raise UserError(f"{trouble}; nothing is lost, run `onecycle sync` again when the store is back")
    if unreadable:
        raise UserError("; ".join(unreadable))
    if not journals:
        yield "nothing to send"


def _there(dataset: str) -> bool:
    """Whether the store can be opened for rows of a data set."""
    try:
        connect(EXPERIMENT_PREFIX + dataset)
    except StoreError:
        return False
    return True


def _looked_after(journal: Journal, state: RowState) -> bool:
    """Whether its execution is running and has a sender; one on another machine is known by the lock that it holds."""
    execution, sender = state.execution, journal.sent().sender
    if not (execution and journal.runs(execution.process) and sender):
        return False
    return journal.runs(sender) if sender.here else is_held(journal)
