"""No DVC repository: a hint. A cache that is lost: `dvc repro` makes it anew."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
from conftest import REPO, command
from soak import cached

from onecycle import paths
from onecycle.tracking.collect import STAGES


def test_30_no_dvc_repository(tmp_path: Path) -> None:
    for name in ("params.yaml", "dvc.yaml"):
        shutil.copy(REPO / name, tmp_path)
    assert "not inside of a DVC repository" in command(tmp_path, "dvc", "repro", check=False).stderr
    done = command(tmp_path, "onecycle", "demo", check=False)
    assert done.returncode == 2
    assert done.stderr == "error: .dvc is missing; clone the repository whole, or run `git init` and `dvc init` here\n"


def test_30_what_is_left_in_the_workspace_is_put_into_the_cache_again(workspace: Path) -> None:
    """With nothing run: an hour's training is not lost with the cache."""
    lock = (workspace / "dvc.lock").read_bytes()
    shutil.rmtree(workspace / ".dvc" / "cache")
    assert "not in cache" in command(workspace, "dvc", "status").stdout
    command(workspace, "dvc", "commit", "--force")
    assert {trouble for _, _, trouble in cached(workspace)} == {None}
    assert (workspace / "dvc.lock").read_bytes() == lock
    assert "up to date" in command(workspace, "dvc", "status").stdout


@pytest.mark.slow
def test_30_a_lost_cache_is_rebuilt(workspace: Path) -> None:
    """Whatever is left in the workspace, DVC runs each stage with an output that dvc.lock says is in the cache and is
    not; it comes out the same to the byte.
    """
    lock = (workspace / "dvc.lock").read_bytes()
    shutil.rmtree(workspace / ".dvc" / "cache")
    shutil.rmtree(workspace / paths.DATASET)
    (workspace / paths.SAMPLES_PNG).unlink()
    (workspace / paths.REPORT_HTML).unlink()
    done = command(workspace, "dvc", "repro", ONECYCLE_TRACKING="journal")
    assert re.findall(r"Running stage '(\w+)'", done.stdout) == list(STAGES)
    assert (workspace / "dvc.lock").read_bytes() == lock
    assert {trouble for _, _, trouble in cached(workspace)} == {None}
