"""No DVC repository: a hint. A cache that is lost: `dvc repro` makes it anew."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
from conftest import REPO, command
from soak import cached

from onecycle import paths


def test_30_no_dvc_repository(tmp_path: Path) -> None:
    for name in ("params.yaml", "dvc.yaml"):
        shutil.copy(REPO / name, tmp_path)
    assert "not inside of a DVC repository" in command(tmp_path, "dvc", "repro", check=False).stderr
    done = command(tmp_path, "onecycle", "demo", check=False)
    assert done.returncode == 2
    assert done.stderr == "error: .dvc is missing; clone the repository whole, or run `git init` and `dvc init` here\n"


@pytest.mark.slow
def test_30_a_lost_cache_is_rebuilt(workspace: Path) -> None:
    """What is gone from the workspace, too, is computed again, and is the same to the byte."""
    lock = (workspace / "dvc.lock").read_bytes()
    shutil.rmtree(workspace / ".dvc" / "cache")
    shutil.rmtree(workspace / paths.DATASET)
    (workspace / paths.SAMPLES_PNG).unlink()
    (workspace / paths.REPORT_HTML).unlink()
    done = command(workspace, "dvc", "repro", ONECYCLE_TRACKING="journal")
    assert {"download", "stats", "report"} <= set(re.findall(r"Running stage '(\w+)'", done.stdout))
    assert (workspace / "dvc.lock").read_bytes() == lock
    assert all((workspace / path).exists() for path in (paths.DATASET, paths.SAMPLES_PNG, paths.REPORT_HTML))
    missing = {path for _, path, trouble in cached(workspace) if trouble}
    assert not {path.as_posix() for path in (paths.DATASET, paths.SAMPLES_PNG, paths.REPORT_HTML)} & missing
    command(workspace, "dvc", "commit", "--force")  # which puts there what was left in the workspace alone
    assert not [path for _, path, trouble in cached(workspace) if trouble]
    assert (workspace / "dvc.lock").read_bytes() == lock
