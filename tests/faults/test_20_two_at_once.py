"""A second pipeline, or a second training by hand, in one workspace: it leaves and names who is at work."""

from __future__ import annotations

from pathlib import Path

import psutil
from conftest import command
from ending import stage, start_long_training


def test_the_second_leaves_and_names_the_holder(workspace: Path) -> None:
    first = start_long_training(workspace)
    processes = [psutil.Process(first.pid), *psutil.Process(first.pid).children(recursive=True)]
    try:
        second = command(workspace, "dvc", "repro", "--single-item", "train", check=False)
        assert second.returncode == 255
        assert f"(PID {first.pid})" in second.stderr
        by_hand = stage(workspace, "train", 2)
        [trainer] = [process for process in processes if "stages.train" in process.cmdline()[1:4]]
        assert f"error: process {trainer.pid} runs the same training already" in by_hand.stderr
        assert first.poll() is None
    finally:
        for process in processes:
            if process.is_running():
                process.kill()
        first.wait()
