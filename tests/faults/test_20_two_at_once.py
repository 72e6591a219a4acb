"""Two at once: in one workspace the second leaves, and names the first; two clones share a cache and a store."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from urllib.parse import unquote, urlsplit

import psutil
import pytest
from conftest import command, set_params
from ending import HANG_SECONDS, stage, start_long_training

from onecycle import paths


@pytest.mark.slow
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


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_two_clones_share_a_cache_and_a_store(pipeline: Path, tmp_path: Path) -> None:
    """They train the very same thing at once, so that they write the same objects, into a store that neither has."""
    clones = [tmp_path / name for name in ("one", "two")]
    environment = {"MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path / 'shared.db'}"}
    for clone in clones:
        own = shutil.ignore_patterns("mlflow.db*", "mlartifacts", ".state", "cache")
        shutil.copytree(pipeline, clone, symlinks=True, ignore=own)
        command(clone, "dvc", "cache", "dir", "--local", str(tmp_path / "cache"))
        set_params(clone, {"seed": 1})
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    running = [
        subprocess.Popen(
            ["dvc", "repro"],
            cwd=clone,
            env={**os.environ, "PATH": path, **environment},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for clone in clones
    ]
    outputs = [process.communicate(timeout=3 * HANG_SECONDS)[0] for process in running]
    for process, said in zip(running, outputs, strict=True):
        assert process.returncode == 0, said
        assert "Running stage 'train'" in said

    for clone in clones:
        command(clone, "onecycle", "sync", **environment)
        assert "up to date" in command(clone, "dvc", "status").stdout
        for name in (paths.MODEL, paths.PROBABILITIES, paths.REPORT_HTML):
            (clone / name).unlink()
            command(clone, "dvc", "checkout", name.as_posix())
            assert (clone / name).read_bytes() == (clones[0] / name).read_bytes()
        assert (clone / "dvc.lock").read_bytes() == (clones[0] / "dvc.lock").read_bytes()
        assert not (clone / "mlflow.db").exists()
    with closing(sqlite3.connect(tmp_path / "shared.db")) as store:
        assert store.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        rows = store.execute("SELECT status, artifact_uri FROM runs").fetchall()
    assert [status for status, _ in rows] == ["FINISHED", "FINISHED"]
    for _, uri in rows:
        assert (Path(unquote(urlsplit(uri).path)) / "report" / "index.html").is_file()
