"""Which execution a stage belongs to: the `dvc` command that started it, or the stage itself when run by hand.

The nearest `dvc` ancestor is asked for, because nothing else tells executions apart: `DVC_*` variables are passed on
stale, and an id written into the workspace would be one more thing that DVC, git and two runs at once could trip over.
"""

from __future__ import annotations

import os
import platform
import signal
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from threading import Thread

import psutil

from onecycle.tracking.redaction import without_secrets

WATCH_SECONDS = 0.5


@dataclass(frozen=True)
class Process:
    """A process that cannot be mistaken for a later one with the same number."""

    host: str
    pid: int
    started: float
    """Linux: clock ticks since boot, which no clock step changes. Elsewhere seconds since 1970, as the kernel noted."""
    namespace: str = ""
    """Linux: in which `pid` is its number; a container has its own, and may be called as its host. Empty: unknown."""

    @classmethod
    def of(cls, pid: int) -> Process:
        """The process that has number `pid` now. Raises `psutil.NoSuchProcess` when there is none."""
        return cls(platform.node(), pid, _started(pid), _namespace())

    @classmethod
    def current(cls) -> Process:
        """This process."""
        return cls.of(os.getpid())

    @property
    def here(self) -> bool:
        """Whether it belongs to this machine or container, so that `alive` can tell."""
        return self.host == platform.node() and self.namespace in ("", _namespace())

    def alive(self) -> bool:
        """Whether it still runs."""
        try:
            return _started(self.pid) == self.started and psutil.Process(self.pid).status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return False


@dataclass(frozen=True)
class Execution:
    """One `dvc` command that runs stages, or one stage run by hand: one row."""

    process: Process
    command: str | None = None
    """What was typed: "dvc exp run -S epochs=2"; None: a stage by hand."""
    experiment: str | None = None
    baseline: str | None = None
    """DVC's name for the experiment and the commit it starts from; both None outside `dvc exp run`."""

    @property
    def name(self) -> str:
        """Its name as a folder."""
        return f"{self.process.host}-{self.process.pid}-{self.process.started:.0f}"


@cache
def current() -> Execution:
    """The execution this process belongs to; looked up once, since a `dvc` that was killed is no ancestor any more."""
    dvc, arguments = _nearest_dvc(psutil.Process().parents())
    if dvc is None:
        return Execution(Process.current())
    queued = "exec-run" in arguments  # what a queue's worker calls for each experiment
    experiment = queued or ("run" in arguments and not {"exp", "experiments"}.isdisjoint(arguments))
    return Execution(
        Process.of(dvc.pid),
        "dvc exp run --queue" if queued else without_secrets(" ".join(["dvc", *arguments])),
        os.environ.get("DVC_EXP_NAME") if experiment else None,
        os.environ.get("DVC_EXP_BASELINE_REV") if experiment else None,
    )


@cache
def end_with_dvc() -> None:
    """From now on this process gets SIGTERM when the `dvc` command that started it is gone.

    DVC leaves the stage it runs behind when it is killed; that would go on writing while the next command runs.
    """
    dvc = current().process
    if dvc != Process.current():
        Thread(target=_end_with, args=(dvc,), name="end_with_dvc", daemon=True).start()


def _end_with(process: Process) -> None:
    while process.alive():
        time.sleep(WATCH_SECONDS)
    os.kill(os.getpid(), signal.SIGTERM)


def _nearest_dvc(ancestors: Iterable[psutil.Process]) -> tuple[psutil.Process | None, Sequence[str]]:
    """The first `dvc` among `ancestors`, and its arguments."""
    for process in ancestors:
        try:
            arguments = dvc_arguments(process.cmdline())
        except (psutil.AccessDenied, psutil.NoSuchProcess):  # another user's, or just ended: not what started us
            continue
        if arguments is not None:
            return process, arguments
    return None, ()


def dvc_arguments(words: Sequence[str]) -> Sequence[str] | None:
    """What follows `dvc` in a command line like "/venv/bin/python /venv/bin/dvc repro"; None when it is not dvc's."""
    names = [Path(word).name for word in words]
    if names[:1] == ["dvc"]:
        return words[1:]
    if names and names[0].lower().startswith(("python", "pypy")) and "dvc" in names[:6]:
        return words[names.index("dvc") + 1 :]
    return None


@cache
def _namespace() -> str:
    try:
        return str(Path("/proc/self/ns/pid").readlink())
    except OSError:  # no Linux
        return ""


def _started(pid: int) -> float:
    stat = Path(f"/proc/{pid}/stat")
    if not Path("/proc/self/stat").exists():
        return psutil.Process(pid).create_time()
    try:
        after_name = stat.read_bytes().rpartition(b")")[2]
    except (FileNotFoundError, ProcessLookupError):
        raise psutil.NoSuchProcess(pid) from None
    return float(after_name.split()[19])
