"""Batches are a function of (seed, epoch, index), whoever loads them; loader processes live as long as their loader."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from conftest import PARAMS_FILE, REPO, command, set_params
from ending import HANG_SECONDS

from onecycle import cpu_quota, loader
from onecycle.data import Dataset
from onecycle.loader import Batch, Loader
from onecycle.params import Params

MakeParams = Callable[..., Params]

CPU = torch.device("cpu")


def make_loader(params: Params, digits: Dataset, workers: int) -> Loader:
    return Loader(
        digits.train_images,
        digits.train_labels,
        params.augment,
        np.full(3, 0.5),
        batch_size=params.batch_size,
        seed=params.seed,
        device=CPU,
        workers=workers,
    )


def assert_same(some: list[Batch], others: list[Batch]) -> None:
    for (images, labels), (other_images, other_labels) in zip(some, others, strict=True):
        assert torch.equal(images, other_images)
        assert torch.equal(labels, other_labels)


@pytest.mark.parametrize("method", [None, "forkserver", "spawn"], ids=["default", "forkserver", "spawn"])
def test_loader_processes_change_nothing_however_they_start(
    small_params: MakeParams, digits: Dataset, monkeypatch: pytest.MonkeyPatch, method: str | None
) -> None:
    params = small_params(**{"augment.backend": "albumentations"})
    alone = make_loader(params, digits, 0)
    first, second = list(alone.epoch(0)), list(alone.epoch(1))
    assert not torch.equal(first[0][0], second[0][0])

    monkeypatch.setattr(loader, "start_method", lambda _device: method)
    shared = make_loader(params, digits, 2)
    assert_same(list(shared.epoch(0)), first)
    processes = multiprocessing.active_children()
    assert len(processes) == 2
    assert_same(list(islice(shared.epoch(1), 2)), second[:2])  # the rest is on its way, and nobody takes it
    assert_same(list(shared.epoch(1, first_step=3)), second[3:])
    assert set(multiprocessing.active_children()) == set(processes), "started once"
    del shared
    for process in processes:
        process.join(HANG_SECONDS)
        assert process.exitcode == 0


def test_loader_processes_from_a_server_run_the_code_of_their_stage(tmp_path: Path) -> None:
    """As an experiment's folder has it, also where another one is installed."""
    shutil.copytree(REPO / "src/onecycle", tmp_path / "src/onecycle", ignore=shutil.ignore_patterns("__pycache__"))
    with (tmp_path / "src/onecycle/augment.py").open("a", encoding="utf-8") as file:
        file.write("Albumentations.__call__ = lambda self, images, index, epoch: np.zeros_like(images[index])\n")
    (tmp_path / "experiment.py").write_text(
        """
import sys
sys.path.insert(0, "src")
import numpy as np, torch
from pathlib import Path
from onecycle import loader, params, stage

if __name__ == "__main__":
    stage.preload_loader_server()
    loader.start_method = lambda device: "forkserver"
    images, labels = np.full((8, 32, 32, 3), 255, np.uint8), np.zeros(8, np.int64)
    augment = params.load(Path("params.yaml")).augment.model_copy(update={"backend": "albumentations"})
    device = torch.device("cpu")
    batches = loader.Loader(images, labels, augment, np.ones(3), batch_size=8, seed=0, device=device, workers=1)
    print([int(images.max()) for images, _ in batches.epoch(0)])
"""
    )
    shutil.copy(PARAMS_FILE, tmp_path)
    assert command(tmp_path, sys.executable, "experiment.py").stdout == "[0]\n"


def test_under_cuda_nothing_is_forked_off_the_process_that_uses_it() -> None:
    assert loader.start_method(torch.device("cuda")) == "forkserver"
    assert loader.start_method(CPU) is None


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
def test_a_signal_to_all_of_its_processes_stops_a_stage_that_loads_with_several(
    workspace: Path, number: signal.Signals
) -> None:
    """As Ctrl-C in a terminal, or the end of a batch system's time. SIGTERM ends those that load before the step."""
    loading_apart = {"augment.backend": "albumentations", "runtime.workers": 2}
    set_params(workspace, {"epochs": 100_000, "runtime.checkpoint_seconds": 0.05, **loading_apart})
    stage = subprocess.Popen(
        [sys.executable, "-m", "stages.train"],
        cwd=workspace,
        env={**os.environ, "ONECYCLE_TRACKING": "journal"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    deadline = time.monotonic() + HANG_SECONDS
    while not list((workspace / ".state" / "train").glob("*/step-*.ckpt")):
        assert stage.poll() is None, stage.communicate()[0]
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)
    loading = psutil.Process(stage.pid).children(recursive=True)
    assert len(loading) >= 2
    os.killpg(stage.pid, number)
    said, _ = stage.communicate(timeout=HANG_SECONDS)
    assert stage.returncode == 128 + number, said
    assert said.splitlines()[-1] == f"stopped by {number.name}"
    assert "Traceback" not in said
    _, alive = psutil.wait_procs(loading, timeout=HANG_SECONDS)
    assert not alive


def test_loader_processes_take_half_of_the_cores_that_are_left_to_the_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = torch.device("cuda")
    monkeypatch.setattr(cpu_quota, "usable", lambda: 6)
    assert (loader.worker_count("auto", cuda), loader.worker_count(5, cuda), loader.worker_count("auto", CPU)) == (
        3,
        5,
        0,
    )


def test_albumentations_is_for_what_batches_cannot(small_params: MakeParams) -> None:
    assert loader.backend(small_params().augment) == "batched"
    assert loader.backend(small_params(**{"augment.shift_scale_rotate_probability": 0.5}).augment) == "albumentations"
    assert loader.backend(small_params(**{"augment.backend": "albumentations"}).augment) == "albumentations"
