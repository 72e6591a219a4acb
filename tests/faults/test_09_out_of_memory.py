"""Memory that runs out: one sentence with the knob and half of it, the checkpoint kept, nothing made smaller."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from signal import SIGKILL

import pytest
import torch
from conftest import REPO, set_params
from ending import before_renaming, less_memory_before_writing, stage

from onecycle import signals
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
            "lr_range ran out of memory with batch_size 512; free some and run again, or set batch_size to 256",
        ),
        (
            "evaluate",
            RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
            "evaluate ran out of memory with evaluate.batch_size 1000; free some and run again, "
            "or set evaluate.batch_size to 500",
        ),
        ("stats", MemoryError(), "stats ran out of memory; free some and run again"),
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
    shutil.copy(REPO / "params.yaml", tmp_path)
    (tmp_path / ".dvc").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ONECYCLE_TRACKING", "off")

    def body(params: Params, row: Row) -> None:
        raise error

    with pytest.raises(SystemExit) as end:
        run(name, body)
    assert end.value.code == 2
    assert capsys.readouterr().err == f"error: {sentence}\n"


def test_09_training_that_gets_too_little_keeps_its_checkpoint(workspace: Path, tmp_path: Path) -> None:
    """Really: from where it takes up its state, the process gets 100 MiB more, and a batch takes several times that."""
    set_params(workspace, {"batch_size": 256, "model.width": 16, "runtime.checkpoint_seconds": 0.001})
    stage(workspace, "train", -SIGKILL, **before_renaming(tmp_path, "train", "step-00000002.ckpt", SIGKILL))
    params = (workspace / "params.yaml").read_bytes()
    [state] = (workspace / ".state" / "train").glob("*/step-*.ckpt")
    content = state.read_bytes()

    starved = stage(workspace, "train", 2, **less_memory_before_writing(tmp_path, "train", ".lock", 100 * 2**20))
    [sentence] = [line for line in starved.stderr.splitlines() if line.startswith("error: ")]
    assert "train ran out of memory with batch_size 256; " in sentence
    assert sentence.endswith("set batch_size to 128")
    assert "Traceback" not in starved.stderr
    assert (workspace / "params.yaml").read_bytes() == params
    assert state.read_bytes() == content

    assert "resuming after step 1 of" in stage(workspace, "train").stdout
