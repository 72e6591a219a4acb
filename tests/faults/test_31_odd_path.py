"""A path with spaces, an umlaut, a `#` and a `%20`: stages, the cache, the store and its artifacts all work there."""

from __future__ import annotations

import shutil
import sqlite3
from contextlib import closing
from pathlib import Path
from urllib.parse import unquote, urlsplit

from conftest import command


def test_stages_and_store_work_there(pipeline: Path, tmp_path: Path) -> None:
    workspace = tmp_path / "my räume #1 %20"
    tracked = shutil.ignore_patterns("mlflow.db*", "mlartifacts", ".state")
    shutil.copytree(pipeline, workspace, symlinks=True, ignore=tracked)
    command(workspace, "dvc", "repro", "--force", "--single-item", "stats")
    command(workspace, "dvc", "repro", "--force", "--single-item", "train")
    assert (workspace / "dvc.lock").read_bytes() == (pipeline / "dvc.lock").read_bytes()
    command(workspace, "onecycle", "sync")
    assert list(tmp_path.iterdir()) == [workspace], "a folder of the quoted name beside it"
    assert command(workspace, "git", "status", "--porcelain").stdout == ""
    with closing(sqlite3.connect(workspace / "mlflow.db")) as store:
        rows = store.execute("SELECT status, artifact_uri FROM runs").fetchall()
    assert [status for status, _ in rows] == ["FINISHED", "FINISHED"]
    for _, address in rows:
        artifacts = Path(unquote(urlsplit(address).path))
        assert artifacts.is_relative_to(workspace / "mlartifacts")
        assert (artifacts / "stats" / "stats.json").is_file()
