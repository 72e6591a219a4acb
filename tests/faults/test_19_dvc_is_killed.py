"""SIGTERM or SIGKILL to `dvc repro`, which leaves its stage behind: that saves its state and ends."""

from __future__ import annotations

from pathlib import Path
from signal import SIGKILL, SIGTERM

import psutil
import pytest
from conftest import command
from ending import HANG_SECONDS, start_long_training

from onecycle import paths


@pytest.mark.parametrize("number", [SIGTERM, SIGKILL], ids=["sigterm", "sigkill"])
def test_no_stage_goes_on(workspace: Path, pipeline: Path, number: int) -> None:
    dvc = start_long_training(workspace)
    orphans = psutil.Process(dvc.pid).children(recursive=True)
    assert any("stages.train" in process.cmdline() for process in orphans)
    try:
        dvc.send_signal(number)
        assert dvc.wait(HANG_SECONDS) != 0
        _, alive = psutil.wait_procs(orphans, timeout=HANG_SECONDS)
        assert alive == []
    finally:
        for process in orphans:
            if process.is_running():
                process.kill()
    [close] = [
        line
        for journal in (workspace / ".state" / "journal").glob("*/entries.jsonl")
        for line in journal.read_text(encoding="utf-8").splitlines()
        if '"event": "close"' in line
    ]
    assert '"status": "KILLED"' in close
    assert list((workspace / ".state" / "train").glob("*/.*")) == []

    command(workspace, "git", "checkout", "params.yaml")  # dvc itself is not left locked
    command(workspace, "dvc", "repro", "--single-item", "train", ONECYCLE_TRACKING="journal")
    assert (workspace / paths.MODEL).read_bytes() == (pipeline / paths.MODEL).read_bytes()
