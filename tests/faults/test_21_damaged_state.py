"""A flipped byte in a state is seen; the state before it is resumed, to the same bytes."""

from __future__ import annotations

from pathlib import Path
from signal import SIGKILL

from conftest import set_params
from ending import before_renaming, stage

from onecycle import paths


def test_the_state_before_is_taken(workspace: Path, pipeline: Path, tmp_path: Path) -> None:
    set_params(workspace, {"runtime.checkpoint_seconds": 0.001})
    stage(workspace, "train", -SIGKILL, **before_renaming(tmp_path, "train", "step-00000013.ckpt", SIGKILL))
    [newest] = (workspace / ".state" / "train").glob("*/step-00000012.ckpt")
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 1
    newest.write_bytes(content)
    (workspace / paths.MODEL).unlink()
    said = stage(workspace, "train").stdout
    assert "train: step-00000012.ckpt is damaged and not used\ntrain: resuming after step 11 of 27\n" in said
    for path in (paths.MODEL, paths.HISTORY, paths.SCHEDULE):
        assert (workspace / path).read_bytes() == (pipeline / path).read_bytes(), path
