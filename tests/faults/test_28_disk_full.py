"""No room left, as a limit on the size of a file: one sentence, exit 2, and what was there before stays."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import pytest
from conftest import command

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
