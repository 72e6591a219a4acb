"""How a stage starts and ends: params in, one row joined, errors as one line, the right exit code."""

from __future__ import annotations

import errno
import os
import select
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, NoReturn

from onecycle import paths, signals
from onecycle.errors import Stopped, UserError, printable_lines
from onecycle.params import Params, flatten, load

if TYPE_CHECKING:
    from onecycle.tracking import Row


CRASHED = 70
"""The exit code of a fault of ours, EX_SOFTWARE in sysexits.h: not 1, by which the gate says that a model is worse."""

BATCHES = {"lr_range": "batch_size", "train": "batch_size", "evaluate": "evaluate.batch_size"}
"""The param that decides how much memory a stage takes."""
LOADING = ("lr_range", "train")
"""Stages that may start loader processes."""


def run(name: str, body: Callable[[Params, Row], None]) -> NoReturn:
    """Run one stage's body inside its execution's row, then end the process."""

    def joined() -> None:
        params = load(paths.PARAMS)
        from onecycle import tracking
        from onecycle.inputs import Inputs

        began = Inputs.of(name)
        if name in LOADING:
            preload_loader_server()
        with tracking.join(name, params) as row, _explained(name, params):
            body(params, row)
            began.check_unchanged()

    exit_with(joined)


def preload_loader_server() -> None:
    """Have loader processes that come from a server, as under CUDA, find there what each would import for seconds."""
    import multiprocessing

    # Not onecycle: by the server's own sys.path that is the installed one, also in the folder of a DVC experiment.
    multiprocessing.set_forkserver_preload(["torch", "albumentations"])


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


@contextmanager
def _explained(name: str, params: Params) -> Iterator[None]:
    """Tell what to do when memory is full or nothing can be compiled; nothing is changed behind the user's back."""
    try:
        yield
    except Exception as error:
        if _no_loader(error):
            raise UserError(
                f"{name}: a loader process ended, most likely for want of memory: {str(error).splitlines()[0]}; set "
                "runtime.workers lower (0: none), or give the container more shared memory"
            ) from error
        if no_memory(error):
            raise UserError(_more_memory(name, params, error)) from error
        if "no kernel image" in str(error):
            raise UserError(
                f"{name}: this torch has no code for this GPU, too old or too new for it; set train.device to cpu"
            ) from error
        if _no_compiler(error):
            raise UserError(
                f"{name} cannot compile the network: {str(error).splitlines()[0]}; torch.compile needs a C++ compiler "
                "and Python's headers (g++ and python3-dev): install them, or set train.compile to false"
            ) from error
        raise


def _more_memory(name: str, params: Params, error: Exception) -> str:
    again = "free some and run again" + " to go on from the last checkpoint" * (name == "train")
    key = BATCHES.get(name)
    if key is None:
        return f"{name} ran out of memory; {again}"
    size = int(str(flatten(params)[key]))
    less = f"set {key} to {max(size // 2, 1)}"
    on_gpu = any(word in str(error).upper() for word in ("CUDA", "CUDNN", "CUBLAS", "ENGINE", "MPS"))
    if key == "batch_size" and not on_gpu and params.train.convolution != "direct":
        less += " or, in fp32, train.convolution to direct"
    return f"{name} ran out of memory with {key} {size}; {again}, or {less}"


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


def _no_loader(error: Exception) -> bool:
    """Whether a process that loads images was killed, or found /dev/shm full; torch tells it in words.

    Of one that was not forked off this process it knows no more than that it is gone.
    """
    whose = ("DataLoader worker", "Pin memory thread")
    signs = ("Bus error", "out of shared memory", "killed by signal: Killed", "exited unexpectedly")
    return any(one in str(error) for one in whose) and any(sign in str(error) for sign in signs)


def _no_compiler(error: Exception) -> bool:
    """Whether torch.compile found no compiler, or that one no `Python.h`; Triton and Inductor tell it in words.

    Of what its own driver needs compiled, cuda_utils, Triton tells no more than that the command failed.
    """
    signs = ("Failed to find C compiler", "No working C++ compiler", "Python.h", "cuda_utils")
    return any(sign in str(error) for sign in signs)


def _no_room(error: OSError) -> bool:
    """Whether a disk, a quota or a limit is full; numpy tells a write cut short in words only."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) or "requested and" in str(error)
