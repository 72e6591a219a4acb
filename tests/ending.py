"""Stages ended, held up or starved exactly where a test wants it: by an audit hook, with no code for it in a stage."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from signal import Signals

from conftest import command, set_params

HANG_SECONDS = 300  # only a guard; a loaded machine takes its time

HOOK = """
import glob, os, resource, sys, threading, time

def act():
    {action}

def at(event, arguments):
    global at_event
    if event != at_event or "stages.{stage}" not in sys.orig_argv or not str(arguments[{position}]).endswith({name!r}):
        return
    if event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR) == 0:
        return
    at_event = None  # once
    threading.Timer({seconds}, act).start() if {seconds} else act()

at_event = {event!r}
sys.addaudithook(at)
"""

IMPORT, WRITE, RENAME = ("import", 0), ("open", 0), ("os.rename", 1)
"""Audit events, and which of their arguments names the module or the file."""

NO_MORE_MEMORY = """
    used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used, resource.RLIM_INFINITY))
"""
TROUBLE_IS_KNOWN = """
    while not any('"trouble": "' in open(file).read() for file in glob.glob(".state/journal/*/sent.json")):
        time.sleep(0.05)
"""


def before_importing(folder: Path, stage: str, module: str, number: Signals) -> dict[str, str]:
    """The environment in which `stage` gets a signal before it imports a module."""
    return _hook(folder, stage, IMPORT, module, _kill(number))


def before_writing(folder: Path, stage: str, path: str, number: Signals) -> dict[str, str]:
    """The environment in which `stage` gets a signal before it opens a file to write."""
    return _hook(folder, stage, WRITE, path, _kill(number))


def before_renaming(folder: Path, stage: str, path: str, number: Signals, later: float = 0.0) -> dict[str, str]:
    """The environment in which `stage` gets a signal before it renames what it wrote to `path`, or seconds later."""
    return _hook(folder, stage, RENAME, path, _kill(number), later)


def no_more_memory_before_renaming(folder: Path, stage: str, path: str) -> dict[str, str]:
    """The environment in which `stage` gets no more memory from when it is to rename what it wrote to `path`."""
    return _hook(folder, stage, RENAME, path, NO_MORE_MEMORY)


def wait_for_trouble_before_writing(folder: Path, stage: str, path: str) -> dict[str, str]:
    """The environment in which `stage` waits, before it opens a file to write, until the store is known not to work."""
    return _hook(folder, stage, WRITE, path, TROUBLE_IS_KNOWN)


def wait_for_file_before_renaming(folder: Path, stage: str, path: str, awaited: Path) -> dict[str, str]:
    """The environment in which `stage` waits, before it renames what it wrote to `path`, until a file is there."""
    return _hook(folder, stage, RENAME, path, f"while not os.path.exists({str(awaited)!r}): time.sleep(0.05)")


def _kill(number: Signals) -> str:
    return f"os.kill(os.getpid(), {int(number)})"


def _hook(
    folder: Path, stage: str, event: tuple[str, int], name: str, action: str, seconds: float = 0.0
) -> dict[str, str]:
    code = HOOK.format(stage=stage, event=event[0], position=event[1], name=name, action=action, seconds=seconds)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "sitecustomize.py").write_text(code, encoding="utf-8")
    return {"PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"}


def stage(workspace: Path, name: str, code: int = 0, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a stage by hand, without a store, and check how it ended."""
    environment = {"ONECYCLE_TRACKING": "journal"} | environment
    done = command(workspace, "python", "-m", f"stages.{name}", check=False, **environment)
    assert done.returncode == code, f"stages.{name}: exit {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done


def start_long_training(workspace: Path) -> subprocess.Popen[bytes]:
    """`dvc repro` of a training run that does not end by itself, once it has saved its first state."""
    set_params(workspace, {"epochs": 100_000, "runtime.checkpoint_seconds": 0.05})
    dvc = subprocess.Popen(
        [str(Path(sys.executable).with_name("dvc")), "repro", "--single-item", "train"],
        cwd=workspace,
        env={
            **os.environ,
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "ONECYCLE_TRACKING": "journal",
        },
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + HANG_SECONDS
    while not list((workspace / ".state" / "train").glob("*/step-*.ckpt")):
        assert dvc.poll() is None, "dvc ended early"
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)
    return dvc
