"""State of other params or code is left alone, with a word on what differs, until its own run comes back."""

from __future__ import annotations

import json
from pathlib import Path
from signal import SIGKILL

import pytest
from conftest import set_params
from ending import before_renaming, stage

from onecycle import paths


@pytest.mark.timeout(1800)
def test_never_mixed_in(workspace: Path, pipeline: Path, tmp_path: Path) -> None:
    set_params(workspace, {"runtime.checkpoint_seconds": 0.001})
    stage(workspace, "train", -SIGKILL, **before_renaming(tmp_path, "train", "step-00000008.ckpt", SIGKILL))

    [file] = (workspace / ".state/train").glob("*/identity.json")
    decides = json.loads(file.read_text(encoding="utf-8"))
    assert decides.keys() >= {"data", "learning rate", "device", "threads", "optimizer.name", "model.width", "seed"}
    assert not [key for key in decides if key.startswith(("gate.", "runtime.", "lr_range.", "evaluate."))]

    set_params(workspace, {"one_cycle.max_lr": 0.02})
    afresh = "an interrupted run is kept but differs in learning rate, one_cycle.max_lr; starting afresh"
    other = stage(workspace, "train").stdout
    assert afresh in other
    assert "resuming" not in other
    assert (workspace / paths.MODEL).read_bytes() != (pipeline / paths.MODEL).read_bytes()
    set_params(workspace, {"one_cycle.max_lr": 0.01})

    code = workspace / "src" / "onecycle" / "training.py"
    ours = code.read_bytes()
    code.write_bytes(ours + b"# changed\n")
    hook = before_renaming(tmp_path, "train", "step-00000001.ckpt", SIGKILL)
    changed = stage(workspace, "train", -SIGKILL, **hook).stdout
    assert "differs in src/onecycle/training.py; starting afresh" in changed
    code.write_bytes(ours)

    assert "resuming after step 7 of 27" in stage(workspace, "train").stdout
    for path in (paths.MODEL, paths.HISTORY, paths.SCHEDULE):
        assert (workspace / path).read_bytes() == (pipeline / path).read_bytes(), path
