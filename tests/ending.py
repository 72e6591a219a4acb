"""Stages ended exactly where a test wants it: from outside, by an audit hook, with no code for it in a stage."""

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
import os, sys, threading

def end():
    os.kill(os.getpid(), {signal})

def at(event, arguments):
    global at_event
    if event != at_event or "stages.{stage}" not in sys.orig_argv or not str(arguments[{position}]).endswith({path!r}):
        return
    if event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR) == 0:
        return
    at_event = None  # once
    threading.Timer({seconds}, end).start() if {seconds} else end()

at_event = {event!r}
sys.addaudithook(at)
"""


def before_writing(folder: Path, stage: str, path: str, number: Signals) -> dict[str, str]:
    """The environment in which `stage` gets a signal before it opens a file to write."""
    return _hook(folder, stage, "open", 0, path, number, 0.0)


def before_renaming(folder: Path, stage: str, path: str, number: Signals, later: float = 0.0) -> dict[str, str]:
    """The environment in which `stage` gets a signal before it renames what it wrote to `path`, or seconds later."""
    return _hook(folder, stage, "os.rename", 1, path, number, later)


def _hook(
    folder: Path, stage: str, event: str, position: int, path: str, number: Signals, seconds: float
) -> dict[str, str]:
    code = HOOK.format(stage=stage, event=event, position=position, path=path, signal=int(number), seconds=seconds)
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
