"""Memory that runs out: one sentence with the knob and half of it, the checkpoint kept, nothing made smaller."""

from __future__ import annotations

import shutil
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from subprocess import CalledProcessError

import pytest
import torch
from conftest import PARAMS_FILE, set_params
from ending import no_more_memory_before_renaming, stage

from onecycle import paths, signals
from onecycle.params import Params
from onecycle.stage import run
from onecycle.tracking import Row

CUDA = "CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has a total capacity of 79.11 GiB"
CPU = "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate"


@pytest.fixture
def handlers() -> Iterator[None]:
    """Signal handlers as they were, since a stage's start sets its own."""
    before = {number: signal.getsignal(number) for number in signals.ENDING}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("handlers")
@pytest.mark.parametrize(
    ("name", "error", "sentence"),
    [
        (
            "train",
            torch.OutOfMemoryError(CUDA),
            "train ran out of memory with batch_size 512; free some and run again to go on from the last checkpoint, "
            "or set batch_size to 256",
        ),
        (
            "lr_range",
            RuntimeError(CPU),
            "lr_range ran out of memory with batch_size 512; free some and run again, or set batch_size to 256 or, "
            "in fp32, train.convolution to direct",
        ),
        (
            "train",
            RuntimeError("could not create a primitive"),
            "train ran out of memory with batch_size 512; free some and run again to go on from the last checkpoint, "
            "or set batch_size to 256 or, in fp32, train.convolution to direct",
        ),
        (
            "evaluate",
            RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
            "evaluate ran out of memory with evaluate.batch_size 1000; free some and run again, "
            "or set evaluate.batch_size to 500",
        ),
        (
            "train",
            RuntimeError("FIND was unable to find an engine to execute this computation"),
            "train ran out of memory with batch_size 512; free some and run again to go on from the last checkpoint, "
            "or set batch_size to 256",
        ),
        ("stats", MemoryError(), "stats ran out of memory; free some and run again"),
        ("stats", OSError(12, "Cannot allocate memory"), "stats ran out of memory; free some and run again"),
        (
            "lr_range",
            RuntimeError("DataLoader worker (pid 7) is killed by signal: Bus error. It is possible that dataloader's "),
            "lr_range: a loader process ended, most likely for want of memory: DataLoader worker (pid 7) is killed by "
            "signal: Bus error. It is possible that dataloader's ; set runtime.workers lower (0: none), or give the "
            "container more shared memory",
        ),
        (
            "train",
            RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"),
            "train ran out of memory with batch_size 512; free some and run again to go on from the last checkpoint, "
            "or set batch_size to 256",
        ),
        (
            "train",
            RuntimeError("CUDA error: no kernel image is available for execution on the device\nSearch for"),
            "train: this torch has no code for this GPU, too old or too new for it; set train.device to cpu",
        ),
        (
            "train",
            CalledProcessError(1, ["gcc", "driver.c", "-o", "cuda_utils.so"]),
            "train cannot compile the network: Command '['gcc', 'driver.c', '-o', 'cuda_utils.so']' returned non-zero "
            "exit status 1.; torch.compile needs a C++ compiler and Python's headers (g++ and python3-dev): install "
            "them, or set train.compile to false",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) and value.isidentifier() else "",
)
def test_09_each_stage_names_its_knob(
    name: str,
    error: Exception,
    sentence: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    shutil.copy(PARAMS_FILE, tmp_path)
    (tmp_path / ".dvc").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ONECYCLE_TRACKING", "off")

    def body(params: Params, row: Row) -> None:
        raise error

    with pytest.raises(SystemExit) as end:
        run(name, body)
    assert end.value.code == 2
    assert capsys.readouterr().err == f"error: {sentence}\n"


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc, and needs a limit on memory that holds")
def test_09_training_that_gets_no_more_keeps_its_checkpoint(workspace: Path, tmp_path: Path) -> None:
    """Really, from the first step on. Without runtime.allocator, blocks over 32 MiB go back to the system each time."""
    knobs = {"batch_size": 256, "model.width": 16, "runtime.allocator": False, "runtime.checkpoint_seconds": 0.001}
    set_params(workspace, knobs)
    params = (workspace / "params.yaml").read_bytes()
    hook = no_more_memory_before_renaming(tmp_path, "train", "step-00000001.ckpt")
    starved = stage(workspace, "train", 2, **hook)
    [sentence] = [line for line in starved.stderr.splitlines() if line.startswith("error: ")]
    assert "train ran out of memory with batch_size 256; " in sentence
    assert sentence.endswith("set batch_size to 128 or, in fp32, train.convolution to direct")
    assert "Traceback" not in starved.stderr
    assert (workspace / "params.yaml").read_bytes() == params
    [state] = (workspace / ".state" / "train").glob("*/*.ckpt")
    assert state.name == "step-00000001.ckpt"
    assert (workspace / paths.MODEL).exists()
