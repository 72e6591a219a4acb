"""In a container with a quota, no more threads than processors."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from onecycle import cpu_quota


@pytest.mark.parametrize(
    ("content", "cores", "given", "threads"),
    [
        ("200000 100000\n", 64, None, "2"),
        ("50000 100000\n", 64, None, "1"),
        ("250000 100000\n", 64, None, "2"),
        ("200000 100000\n", 64, "8", "8"),
        ("6400000 100000\n", 64, None, None),
        ("max 100000\n", 64, None, None),
        ("", 64, None, None),
        (None, 64, None, None),
    ],
    ids=["two", "half of one", "two and a half", "told", "all", "no quota", "empty", "no cgroup v2"],
)
def test_threads_in_a_container(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    content: str | None,
    cores: int,
    given: str | None,
    threads: str | None,
) -> None:
    file = tmp_path / "cpu.max"
    if content is not None:
        file.write_text(content, encoding="ascii")
    monkeypatch.setattr(cpu_quota, "CPU_MAX", file)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)), raising=False)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if given:
        monkeypatch.setenv("OMP_NUM_THREADS", given)
    else:
        monkeypatch.setenv("OMP_NUM_THREADS", "")  # so that what is set goes with the test
        monkeypatch.delenv("OMP_NUM_THREADS")
    cpu_quota.limit_threads()
    assert os.environ.get("OMP_NUM_THREADS") == threads
    assert cpu_quota.usable() == (2 if given else int(threads or cores))
