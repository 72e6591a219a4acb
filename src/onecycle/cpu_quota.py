"""How many processors a container leaves its processes: `docker run --cpus`, Kubernetes' limits."""

from __future__ import annotations

import os
from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")
"""Of a container, as it sees it itself."""
QUOTAS = (("cpu.max",), ("cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us"))
"""Of cgroup v2, and v1: microseconds of processor time in each period, and the period; "max" or -1: no quota."""


def processors() -> int | None:
    """The whole processors that the quota is worth, one at least; None where there is no quota."""
    for files in QUOTAS:
        try:
            quota, period = (int(word) for name in files for word in (CGROUP / name).read_text("ascii").split())
        except (OSError, ValueError):
            continue
        if quota > 0 and period > 0:
            return max(1, quota // period)
    return None


def usable() -> int:
    """How many processors this process may keep busy: those it may run on, within the quota."""
    return min(_cores(), processors() or _cores())


def limit_threads() -> None:
    """Have libraries start no more threads than that, unless OMP_NUM_THREADS says how many.

    They count the machine's cores, and with a thread for each of 64, on two processors, most only wait.
    """
    if usable() < _cores():
        os.environ.setdefault("OMP_NUM_THREADS", str(usable()))


def _cores() -> int:
    """A batch system, too, may leave a process few of a machine's cores."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
