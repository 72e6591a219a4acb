"""Kill -9 in each stage, while it writes; the next `dvc repro` goes on there, and ends with the same hashes."""

from __future__ import annotations

import re
from pathlib import Path
from signal import SIGKILL

import pytest
from conftest import clone, command
from ending import before_writing

from onecycle import paths

WRITES = {
    "params": paths.PARAMS_VALID,
    "download": Path("test_images.npy"),
    "stats": paths.SAMPLES_PNG,
    "lr_range": paths.LR_RANGE_SUGGESTION,
    "train": paths.SCHEDULE,
    "evaluate": paths.GALLERIES,
    "report": paths.REPORT_HTML,
}
"""A file of each stage that is not the first it writes, where there is more than one."""


@pytest.mark.timeout(1800)
@pytest.mark.slow
def test_the_next_repro_completes(pipeline: Path, tmp_path: Path) -> None:
    workspace = clone(tmp_path / "repo")
    environment = {"ONECYCLE_TRACKING": "journal"}
    for stage, path in WRITES.items():
        hook = before_writing(tmp_path / "hook", stage, path.name, SIGKILL)
        killed = command(workspace, "dvc", "repro", check=False, **environment, **hook)
        assert killed.returncode == 255, killed.stdout + killed.stderr
        assert re.findall(r"Running stage '(\w+)'", killed.stdout)[-1] == stage
        assert not (workspace / path).exists()
    done = command(workspace, "dvc", "repro", **environment)
    assert re.findall(r"Running stage '(\w+)'", done.stdout) == ["report"]
    assert (workspace / "dvc.lock").read_bytes() == (pipeline / "dvc.lock").read_bytes()
    assert "up to date" in command(workspace, "dvc", "status").stdout
