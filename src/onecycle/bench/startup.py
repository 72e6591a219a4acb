"""What each stage's start costs: interpreter and imports, before it reads its first file."""

from __future__ import annotations

import resource
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

from onecycle.errors import UserError
from onecycle.tables import Page, Table

STAGES = Path("stages")
REPEATS = 3


def measure() -> list[dict[str, Any]]:
    """For Python alone and each stage, CPU seconds (user and system) and seconds on the clock, medians of three.

    Processor time is what a stage costs and hardly depends on what else the machine does; the clock does.
    """
    stages = sorted(path.stem for path in STAGES.glob("*.py") if path.stem != "__init__")
    if not stages:
        raise UserError(f"{STAGES}/ is not here; run from the folder that holds dvc.yaml")
    codes = {"python": "", **{stage: f"import stages.{stage}, onecycle.tracking" for stage in stages}}
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in codes}
    for _ in range(REPEATS):
        for name, code in codes.items():
            taken[name].append(_start(code))
    return [
        {
            "stage": name,
            "cpu_seconds": median(cpu for cpu, _ in times),
            "seconds": median(clock for _, clock in times),
        }
        for name, times in taken.items()
    ]


def _start(code: str) -> tuple[float, float]:
    """(CPU seconds, seconds) of a process that runs `code`."""
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True)
    clock, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime, clock


def page(starts: list[dict[str, Any]]) -> Page:
    """The same for a terminal."""
    rows = [[each["stage"], f"{each['cpu_seconds']:.2f} s", f"{each['seconds']:.2f} s"] for each in starts]
    return [Table("Start of each stage", ("", "CPU", "clock"), rows)]
