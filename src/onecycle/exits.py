"""How a process ends: the right exit code, errors of the user's as one line."""

from __future__ import annotations

import errno
import os
import select
import signal
import sys
import traceback
from collections.abc import Callable
from typing import NoReturn

from onecycle import signals
from onecycle.errors import Stopped, UserError, printable_lines

CRASHED = 70
"""The exit code of a fault of ours, EX_SOFTWARE in sysexits.h: not 1, by which the gate says that a model is worse."""


def exit_with(body: Callable[[], int | None]) -> NoReturn:
    """Call `body`; exit with its code or 0, 2 (bad input, one line), 128 + signal, or 70 with a traceback."""
    signals.raise_stopped()
    try:
        code = body()
    except UserError as error:
        _refuse(str(error))
    except Stopped as stopped:
        signals.exit_at_once(silently=True)  # `timeout` sends one to the group, and dvc passes it on
        print(signals.said(stopped.signal_number), file=sys.stderr)
        sys.exit(128 + stopped.signal_number)
    except Exception as error:
        if isinstance(error, BrokenPipeError) and _nobody_reads():
            sys.exit(128 + signal.SIGPIPE)
        if isinstance(error, OSError) and _no_room(error):
            _refuse(f"no room left to write {error.filename or 'a file'}; free some and run again")
        if isinstance(error, OSError) and error.errno in (errno.EACCES, errno.EPERM, errno.EROFS) and error.filename:
            _refuse(f"{error.filename} may not be read or written here: {error.strerror}; see whose it is")
        if isinstance(error, OSError) and error.errno == errno.ENOLCK:
            _refuse("this file system grants no locks; put the workspace on a local disk, or mount it with locks")
        traceback.print_exc()
        raise SystemExit(CRASHED) from error
    sys.exit(code or 0)


def _nobody_reads() -> bool:
    """Whether it is stdout's pipe that broke, as by `… | head`; then nothing more is written to it."""
    stdout = select.poll()
    stdout.register(sys.stdout, select.POLLOUT)
    if not any(event & ~select.POLLOUT for _, event in stdout.poll(0)):  # an error, as a pipe without a reader has
        return False
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return True


def _refuse(sentence: str) -> NoReturn:
    """End the process with one line; with ONECYCLE_DEBUG=1 also with where in the code it went wrong."""
    if os.environ.get("ONECYCLE_DEBUG") == "1":
        traceback.print_exc()
    print(f"error: {printable_lines(sentence)}", file=sys.stderr)
    sys.exit(2)


def _no_room(error: OSError) -> bool:
    """Whether a disk, a quota or a limit is full; numpy tells a write cut short in words only."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) or "requested and" in str(error)


def no_memory(error: Exception) -> bool:
    """Whether a device or the machine is full; torch, oneDNN, CUDA's libraries and OpenCV tell it in words."""
    signs = (
        "out of memory",
        "DefaultCPUAllocator",
        "bad_alloc",
        "could not create a primitive",  # oneDNN's words for it
        "could not create a memory",
        "ALLOC_FAILED",  # cuBLAS; cuDNN says ALLOCATION_FAILED
        "ALLOCATION_FAILED",
        "Insufficient memory",
        "Cannot allocate memory",
        "unable to find an engine",  # cuDNN's words where no convolution's workspace fits
    )
    return isinstance(error, MemoryError) or any(sign in str(error) for sign in signs)
