"""Kill -9, SIGTERM and Ctrl-C in training: what resumes is the same to the byte as what was never interrupted."""

from __future__ import annotations

import os
import random
import shutil
from pathlib import Path
from signal import SIGINT, SIGKILL, SIGTERM, Signals

import pytest
from conftest import REPO, set_params
from ending import before_importing, before_renaming, stage

from onecycle import paths

RESULTS = (paths.MODEL, paths.HISTORY, paths.SCHEDULE, paths.TRAIN_METRICS, paths.MODEL_SUMMARY, paths.AUGMENTED_PNG)


def states(workspace: Path) -> list[int]:
    """The steps of which a state is kept."""
    found = (workspace / ".state" / "train").glob("*/step-*.ckpt")
    return sorted(int(path.stem.removeprefix("step-")) for path in found)


def without_results(workspace: Path) -> None:
    """As DVC leaves it when it starts the stage."""
    for path in RESULTS:
        (workspace / path).unlink(missing_ok=True)


@pytest.mark.timeout(1800)
def test_resumed_it_is_the_same_to_the_byte(workspace: Path, pipeline: Path, tmp_path: Path) -> None:
    """Three kills while a state is being written, at random steps, then SIGTERM and Ctrl-C amid a step."""
    without_results(workspace)
    set_params(workspace, {"runtime.checkpoint_seconds": 0.001})
    resumed = ""
    for step in sorted(random.Random(18).sample(range(2, 9), 3)):
        hook = before_renaming(tmp_path / "hook", "train", f"step-{step:08d}.ckpt", SIGKILL)
        assert resumed in stage(workspace, "train", -SIGKILL, **hook).stdout
        assert states(workspace)[-1] == step - 1
        resumed = f"resuming after step {step - 1} of 27"

    set_params(workspace, {"runtime.checkpoint_seconds": 3600})  # from now on a state amid an epoch is the signal's
    for number, code, epoch_end in ((SIGTERM, 143, 9), (SIGINT, 130, 18)):
        hook = before_renaming(tmp_path / "hook", "train", f"step-{epoch_end:08d}.ckpt", number, later=0.03)
        done = stage(workspace, "train", code, **hook)
        assert resumed in done.stdout
        assert done.stderr.splitlines()[-1] == f"stopped by {number.name}"
        assert states(workspace)[-1] > epoch_end
        resumed = f"resuming after step {states(workspace)[-1]} of 27"

    experiment = workspace / ".dvc" / "tmp" / "exps" / "tmp1"
    left_out = shutil.ignore_patterns(".git", "cache", "tmp", ".state")
    shutil.copytree(workspace, experiment, symlinks=True, ignore=left_out)
    assert resumed in stage(experiment, "train").stdout
    for path in RESULTS:
        assert (experiment / path).read_bytes() == (pipeline / path).read_bytes(), path
    assert states(workspace) == [], "done is done"


@pytest.mark.parametrize("number", [SIGINT, SIGTERM])
def test_18_while_the_stage_still_imports(tmp_path: Path, number: Signals) -> None:
    """Which takes seconds, and must not end in a traceback of whatever was being imported."""
    hook = before_importing(tmp_path / "hook", "train", "torch", number)
    path = f"{hook['PYTHONPATH']}{os.pathsep}{REPO}"
    done = stage(tmp_path, "train", 128 + number, **hook | {"PYTHONPATH": path})
    assert (done.stdout, done.stderr) == ("", f"stopped by {number.name}\n")
