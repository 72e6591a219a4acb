"""How a stage runs: params in, one row joined, advice where memory or a compiler lacks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, NoReturn

from onecycle import paths
from onecycle.errors import UserError
from onecycle.exits import exit_with, no_memory
from onecycle.params import Params, flatten, load

if TYPE_CHECKING:
    from onecycle.tracking import Row


BATCHES = {"lr_range": "batch_size", "train": "batch_size", "evaluate": "evaluate.batch_size"}
"""The param that decides how much memory a stage takes."""
LOADING = ("lr_range", "train")
"""Stages that may start loader processes."""


def run(name: str, body: Callable[[Params, Row], Callable[[], None] | None]) -> NoReturn:
    """Run one stage's body inside its execution's row, then end the process.

    What the body returns is called last, when DVC will take what it wrote: where an input was edited or a signal came
    before, DVC takes none of it, and what an interrupted stage goes on from is all that is left.
    """

    def joined() -> None:
        params = load(paths.PARAMS)
        from onecycle import tracking
        from onecycle.inputs import Inputs

        began = Inputs.of(name)
        if name in LOADING:
            preload_loader_server()
        with tracking.join(name, params) as row, _explained(name, params):
            forget = body(params, row)
            began.check_unchanged()
        if forget is not None:
            forget()

    exit_with(joined)


def preload_loader_server() -> None:
    """Have loader processes that come from a server, as under CUDA, find there what each would import for seconds."""
    import multiprocessing

    # Not onecycle: by the server's own sys.path that is the installed one, also in the folder of a DVC experiment.
    multiprocessing.set_forkserver_preload(["torch", "albumentations"])


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
    if key == "batch_size" and not on_gpu and params.train.convolution not in ("direct", "strips"):
        less += " or, in fp32, train.convolution to direct"
    return f"{name} ran out of memory with {key} {size}; {again}, or {less}"


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
