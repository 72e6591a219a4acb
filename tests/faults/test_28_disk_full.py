"""No room left, as a limit on the size of a file: one sentence, exit 2, and what was there before stays."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from pathlib import Path

import pytest
from conftest import command, set_params
from mlflow import MlflowClient

from onecycle import paths


def digest(path: Path) -> dict[str, str]:
    files = sorted(path.rglob("*")) if path.is_dir() else [path]
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files if file.is_file()}


@pytest.mark.parametrize(("stage", "output"), [("download", paths.DATASET), ("train", paths.MODEL)])
def test_one_sentence_and_the_old_file_stays(workspace: Path, stage: str, output: Path) -> None:
    before = digest(workspace / output)
    limited = f"ulimit -f 100; exec python -m stages.{stage}"  # 50 or 100 kB, as the shell counts
    done = command(workspace, "sh", "-c", limited, check=False, ONECYCLE_TRACKING="journal")
    assert done.returncode == 2, done.stderr
    assert re.fullmatch(r"error: no room left to write .+; free some and run again", done.stderr.splitlines()[-1])
    assert "Traceback" not in done.stderr
    assert digest(workspace / output) == before
    assert list((workspace / ".state").rglob(".*")) == []


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("setpriv"), reason="needs util-linux")
def test_a_cache_that_takes_nothing_leaves_a_row_that_says_so(workspace: Path) -> None:
    """DVC then ends after the stage and before it writes dvc.lock, which still has the model before and its test."""
    for folder in (workspace / ".dvc/cache/files/md5").rglob("*/"):
        folder.chmod(0o555)
    (workspace / ".dvc/cache/files/md5").chmod(0o555)
    set_params(workspace, {"one_cycle.anneal": "cosine"})
    powerless = ["setpriv", "--inh-caps=-dac_override", "--bounding-set=-dac_override"] * (os.geteuid() == 0)
    done = command(workspace, *powerless, "dvc", "repro", check=False)
    assert done.returncode == 255 and "failed to reproduce 'train'" in done.stderr
    command(workspace, "onecycle", "sync")
    [row] = MlflowClient(f"sqlite:///{workspace / 'mlflow.db'}").search_runs(["1"])
    assert row.info.status == "FAILED"
    assert row.data.tags["error"] == "dvc ended before it recorded train"
    assert row.data.tags["dvc.stages"].endswith("lr_range cached, train not recorded")
    assert "train/accuracy" in row.data.metrics and "test/accuracy" not in row.data.metrics
    assert "dvc.lock" not in row.data.tags
