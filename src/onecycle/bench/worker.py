"""A process of its own that builds one object and calls its methods when asked to.

glibc's allocator settings hold for a whole process, so what runs with them and what runs without cannot share one.
"""

from __future__ import annotations

import signal
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pkgutil import resolve_name
from types import TracebackType
from typing import Any

from onecycle.errors import UserError
from onecycle.exits import no_memory
from onecycle.stage import preload_loader_server

PATIENCE_SECONDS = 10


class Worker:
    """A context manager: `with Worker("onecycle.bench.student:Student") as student: student.build(…)`."""

    def __init__(self, kind: str) -> None:
        """Start the process; it imports `kind`, "module:class", while this one goes on."""
        context = get_context("spawn")  # a fork would start with this process's heap
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_answer, args=(theirs, kind), name=kind.rpartition(":")[2].lower())
        self._process.start()
        theirs.close()

    def __enter__(self) -> Worker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pipe.close()
        self._process.join(PATIENCE_SECONDS if error is None else 0)
        self._process.terminate()
        self._process.join()

    def build(self, *arguments: object) -> None:
        """Build the object, without waiting for it."""
        self._send(arguments)

    def ask(self, method: str, *arguments: object) -> Any:
        """What the object's `method` returns.

        Raises:
            UserError: raised over there, or the process is gone.
        """
        self._send((method, arguments))
        try:
            answer = self._pipe.recv()
        except (EOFError, OSError):  # a reset, where the process left a question unread
            raise self._gone() from None
        if isinstance(answer, UserError):
            raise answer
        return answer

    def _send(self, words: object) -> None:
        try:
            self._pipe.send(words)
        except OSError:
            raise self._gone() from None

    def _gone(self) -> UserError:
        self._process.join(PATIENCE_SECONDS)
        return UserError(
            f"the benchmark's process `{self._process.name}` ended by itself (exit code {self._process.exitcode}); "
            "unless it says why above, memory ran out: lower batch_size"
        )


def _answer(pipe: Connection, kind: str) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches both processes; the one that asks ends this one
    preload_loader_server()
    build = resolve_name(kind)
    try:
        built = build(*pipe.recv())
        while True:
            method, arguments = pipe.recv()
            pipe.send(getattr(built, method)(*arguments))
    except UserError as error:
        pipe.send(error)
    except EOFError:  # nobody asks any more
        pass
    except Exception as error:
        if not no_memory(error):
            raise
        said = (str(error) or type(error).__name__).splitlines()[0]
        pipe.send(UserError(f"the benchmark ran out of memory ({said}); lower batch_size"))
