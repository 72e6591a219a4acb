"""Training killed under the real dvc: the next `dvc repro` goes on by itself, and says so."""

from __future__ import annotations

from pathlib import Path
from signal import SIGKILL

from conftest import command, set_params
from ending import before_renaming

from onecycle import paths

REPRO = ("dvc", "repro", "--single-item", "--force", "train")  # forced, it takes nothing from dvc's cache


def test_the_next_repro_resumes(workspace: Path, pipeline: Path, tmp_path: Path) -> None:
    set_params(workspace, {"runtime.checkpoint_seconds": 0.001})
    hook = before_renaming(tmp_path / "hook", "train", "step-00000012.ckpt", SIGKILL)
    killed = command(workspace, *REPRO, check=False, ONECYCLE_TRACKING="journal", **hook)
    assert killed.returncode == 255, killed.stdout + killed.stderr
    assert not (workspace / paths.MODEL).exists(), "dvc removed it, so nothing below is left over"
    done = command(workspace, *REPRO, ONECYCLE_TRACKING="journal")
    assert "Running stage 'train'" in done.stdout
    assert "train: resuming after step 11 of 27" in done.stdout
    for path in (paths.MODEL, paths.HISTORY, paths.SCHEDULE):
        assert (workspace / path).read_bytes() == (pipeline / path).read_bytes(), path
