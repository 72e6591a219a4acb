"""Root, a HOME that cannot be written, no terminal, stdin closed: plain lines, no prompt, the same result."""

from __future__ import annotations

import re
from pathlib import Path

from conftest import command

from onecycle import paths


def test_plain_lines_and_the_same_result(workspace: Path) -> None:
    lock = (workspace / "dvc.lock").read_bytes()
    bare = {"HOME": "/proc/1", "XDG_CACHE_HOME": "/proc/1", "XDG_CONFIG_HOME": "/proc/1", "TERM": "dumb"}
    line = "exec dvc repro --force --single-item train <&-"
    done = command(workspace, "sh", "-c", line, ONECYCLE_TRACKING="journal", **bare)
    said = done.stdout + done.stderr
    assert "epoch  3/3  train" in said
    assert re.search(r"^train: on \w+", said, re.MULTILINE)  # what `auto` took
    assert "\x1b" not in said
    assert "Traceback" not in said
    assert (workspace / "dvc.lock").read_bytes() == lock
    assert (workspace / paths.MODEL).exists()
