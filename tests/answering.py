"""What the processes of test_bench build; apart, since they import its module, which without torch takes no time."""

from __future__ import annotations

import os
import time

from onecycle.errors import UserError


class Answering:
    """Says who it is, ends or sleeps."""

    def __init__(self, word: str) -> None:
        if word == "bad":
            raise UserError("a bad word")
        if word == "end":
            self.end()
        self._word = word

    def who(self) -> tuple[int, str]:
        return os.getpid(), self._word

    def end(self) -> None:
        os._exit(7)

    def fill(self) -> None:
        bytearray(2**60)

    def sleep(self) -> None:
        time.sleep(3600)
