"""In a container with a quota, no more threads than processors."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from onecycle import cpu_quota


@pytest.mark.parametrize(
    ("files", "cores", "given", "threads"),
    [
        ({"cpu.max": "200000 100000\n"}, 64, None, "2"),
        ({"cpu.max": "50000 100000\n"}, 64, None, "1"),
        ({"cpu.max": "250000 100000\n"}, 64, None, "2"),
        ({"cpu.max": "200000 100000\n"}, 64, "8", "8"),
        ({"cpu.max": "6400000 100000\n"}, 64, None, None),
        ({"cpu.max": "max 100000\n"}, 64, None, None),
        ({"cpu.max": ""}, 64, None, None),
        ({}, 64, None, None),
        ({"cpu/cpu.cfs_quota_us": "200000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 64, None, "2"),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, 64, None, None),
    ],
    ids=["two", "half of one", "two and a half", "told", "all", "no quota", "empty", "no cgroup", "v1", "v1, no quota"],
)
def test_threads_in_a_container(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    files: dict[str, str],
    cores: int,
    given: str | None,
    threads: str | None,
) -> None:
    (tmp_path / "cpu").mkdir()
    for name, content in files.items():
        (tmp_path / name).write_text(content, encoding="ascii")
    monkeypatch.setattr(cpu_quota, "CGROUP", tmp_path)
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
