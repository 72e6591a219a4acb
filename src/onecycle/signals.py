"""Signals that end a process, as exceptions; where one would come between, they wait."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import NoReturn

from onecycle.errors import Stopped

ENDING = [signal.SIGINT, signal.SIGTERM]
if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # as nohup starts a process
    ENDING.append(signal.SIGHUP)


def exit_at_once(silently: bool = False) -> None:
    """From now on a signal to end does so, with a word or `silently`: the process still imports, or ends already.

    An exception would have to find its way out of whatever it meets there, as a traceback of that.
    """

    def leave(number: int, _frame: FrameType | None) -> NoReturn:
        if not silently:
            os.write(2, said(number).encode() + b"\n")
        os._exit(128 + number)

    for number in ENDING:
        signal.signal(number, leave)


def said(number: int) -> str:
    """What a user reads when the process ends by signal `number`."""
    return f"stopped by {signal.Signals(number).name}"


def raise_stopped() -> None:
    """From now on a signal to end raises `Stopped` where the process stands."""

    def stop(number: int, _frame: FrameType | None) -> NoReturn:
        _let_children_end()
        raise Stopped(number)

    for number in ENDING:
        signal.signal(number, stop)


def _let_children_end() -> None:
    """A signal to all processes ends those that load images, too, for which torch would raise wherever this one is."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)


@dataclass
class Request:
    """Whether the process was asked to end, and by which signal."""

    signal_number: int | None = None

    def obey(self) -> None:
        """Raise `Stopped` if so."""
        if self.signal_number is not None:
            raise Stopped(self.signal_number)


@contextmanager
def deferred() -> Iterator[Request]:
    """While open, a signal to end is only noted, for the body to act on where it can."""
    request = Request()

    def note(number: int, _frame: FrameType | None) -> None:
        _let_children_end()
        request.signal_number = number

    before = {number: signal.signal(number, note) for number in ENDING}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
