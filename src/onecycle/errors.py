"""What a user may be told, and the exit codes that go with it. A leaf: it imports nothing of the package."""

from __future__ import annotations


class UserError(ValueError):
    """Bad input: one sentence that names what, where and what to do next. Ends the process with exit code 2."""


class Stopped(BaseException):
    """The process was asked to end by a signal. Ends it with exit code 128 + signal number."""

    def __init__(self, signal_number: int) -> None:
        super().__init__(signal_number)
        self.signal_number = signal_number


def printable(name: object) -> str:
    """Text for a terminal, whose author may be a stranger: what would steer it, or cannot be encoded, is a question
    mark."""
    return "".join(sign if sign.isprintable() else "?" for sign in str(name))


def printable_lines(text: str) -> str:
    """As `printable`, of text that may have several lines."""
    return "\n".join(printable(line) for line in text.splitlines())
