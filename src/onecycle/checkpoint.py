"""Training state on disk: written whole or not at all, checked when read, resumed only by the run it belongs to.

State lies in the original workspace, in `<digest>/` of `paths.training_state()`, outside DVC's outputs (DVC deletes
those before a stage runs, and a temporary experiment's whole folder after it). The digest stands for everything that
decides the result, so state of other params, code, data or libraries is never mixed in. A run that was interrupted and
never taken up again is forgotten when another one ends well a month later.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

import torch
from filelock import FileLock, Timeout

from onecycle import paths, signals
from onecycle.dvc_lock import parse_graph
from onecycle.errors import UserError
from onecycle.yaml_values import within

KEPT = 2
ABANDONED_DAYS = 30
PATIENCE_SECONDS = 10  # for a run that was just asked to end, and finishes its step first
_MAGIC = b"onecycle checkpoint 1\n"
_DIGEST_SIZE = hashlib.sha256().digest_size
LIBRARIES = ("torch", "numpy", "albumentations", "opencv-python-headless")
"""Whose version may change what training computes."""


class Checkpoints:
    """The states of one training run, two at most. A context manager that holds the run's lock."""

    def __init__(self, folder: Path, identity: Mapping[str, str]) -> None:
        """Take the folder that holds all runs' states, and what decides this run's result."""
        text = json.dumps(identity, sort_keys=True, indent=1)
        self._all, self._identity_text = folder, text
        self._folder = folder / hashlib.sha256(text.encode()).hexdigest()[:16]
        self._lock = _lock(self._folder)

    def __enter__(self) -> Checkpoints:
        """Where another process trains the very same run, an experiment that DVC started waits for what it leaves.

        Raises:
            UserError: as that, in the workspace itself.
        """
        self._all.mkdir(parents=True, exist_ok=True)
        lock = Path(self._lock.lock_file)
        try:
            self._lock.acquire(timeout=PATIENCE_SECONDS)
        except Timeout:
            same = f"process {lock.read_text(encoding='utf-8')} runs the same training already (lock {lock})"
            if paths.original_root() == Path.cwd().resolve():
                raise UserError(f"{same}; let it end first") from None
            print(f"train: {same}; waiting for it", flush=True)
            self._lock.acquire()
        lock.write_text(str(os.getpid()), encoding="utf-8")
        for leftover in self._folder.glob(".*.tmp"):  # of a process that was killed while it wrote
            leftover.unlink()
        return self

    def __exit__(self, *_error: object) -> None:
        self._lock.release()

    def load(self) -> tuple[dict[str, Any] | None, list[str]]:
        """(newest good state or None, notices for the user)."""
        notices = []
        for path in reversed(self._files()):
            payload = _checked(path.read_bytes())
            if payload is None:
                notices.append(f"{path.name} is damaged and not used")
                path.unlink()  # or it would count as one of the newest, for which `save` deletes the others
                continue
            state = torch.load(io.BytesIO(payload), map_location="cpu", weights_only=True)
            return cast(dict[str, Any], state), notices
        if not notices:
            notices = self._why_not()
        return None, notices

    def save(self, state: Mapping[str, Any]) -> Path:
        """Write `state` (tensors, numbers, strings, lists, dicts; its `step` names the file)."""
        self._folder.mkdir(parents=True, exist_ok=True)
        identity = self._folder / "identity.json"
        if not identity.exists():
            write_whole(identity, self._identity_text.encode())
        buffer = io.BytesIO()
        torch.save(dict(state), buffer)
        payload = buffer.getvalue()
        path = self._folder / f"step-{state['step']:08d}.ckpt"
        write_whole(path, _MAGIC + hashlib.sha256(payload).digest() + payload)
        for old in self._files()[:-KEPT]:
            old.unlink()
        return path

    def clear(self) -> None:
        """Forget this run: it is done. Forget, too, what was interrupted `ABANDONED_DAYS` ago and never taken up.

        A signal to end comes too late: without its state an interrupted run would begin anew. What another process has
        taken up meanwhile stays.
        """
        with signals.deferred():
            with suppress(Timeout), self._lock.acquire(timeout=0):
                shutil.rmtree(self._folder, ignore_errors=True)
            for path in self._all.glob("*/identity.json"):
                with suppress(Timeout, FileNotFoundError), _lock(path.parent).acquire(timeout=0):  # none that goes on
                    if time.time() - path.parent.stat().st_mtime > ABANDONED_DAYS * 86_400:
                        shutil.rmtree(path.parent, ignore_errors=True)

    def _files(self) -> list[Path]:
        return sorted(self._folder.glob("step-*.ckpt"))

    def _why_not(self) -> list[str]:
        """Why the state of an earlier, interrupted run is not taken, if there is one."""
        others = [kept for path in self._all.glob("*/identity.json") if (kept := _interrupted(path)) is not None]
        if not others:
            return []
        _, theirs = max(others, key=lambda other: other[0])
        ours = json.loads(self._identity_text)
        differing = sorted(key for key in {*theirs, *ours} if theirs.get(key) != ours.get(key))
        return [f"an interrupted run is kept but differs in {', '.join(differing)}; starting afresh"]


class InBackground:
    """Saves states in a thread of its own while training goes on: `with InBackground(checkpoints.save) as save`.

    A state that still waits when the next one comes is left out for it. Whoever saves must not change the state any
    more. An error in the thread is raised by the next call, or at the end of the block, which waits for all writing.
    """

    def __init__(self, save: Callable[[Mapping[str, Any]], object]) -> None:
        self._save = save
        self._newest: deque[Mapping[str, Any]] = deque(maxlen=1)
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._writing: deque[Future[None]] = deque()

    def __enter__(self) -> InBackground:
        return self

    def __exit__(self, *_error: object) -> None:
        self._thread.shutdown()
        self._raise_errors()

    def __call__(self, state: Mapping[str, Any]) -> None:
        self._newest.append(state)
        self._writing.append(self._thread.submit(self._write))
        self._raise_errors()

    def _write(self) -> None:
        if self._newest:  # else the call before wrote this one's state
            self._save(self._newest.pop())

    def _raise_errors(self) -> None:
        while self._writing and self._writing[0].done():
            self._writing.popleft().result()


def _lock(folder: Path) -> FileLock:
    return FileLock(folder.with_suffix(".lock"))


def _interrupted(path: Path) -> tuple[float, dict[str, str]] | None:
    """(when it began, identity) of an interrupted run; None for one that goes on, or just ended."""
    try:
        with _lock(path.parent).acquire(timeout=0):
            return path.stat().st_mtime, json.loads(path.read_text(encoding="utf-8"))
    except (Timeout, FileNotFoundError):
        return None


def write_whole(path: Path, content: bytes) -> None:
    """Write `content` to `path` so that a crash or a full disk leaves either the old file or the new one."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        error.filename = error.filename or str(path)  # a failed write does not know where
        raise
    finally:
        temporary.unlink(missing_ok=True)


def _checked(content: bytes) -> bytes | None:
    """The payload of a checkpoint file, or None if a byte of it is wrong."""
    head, payload = content[: len(_MAGIC) + _DIGEST_SIZE], content[len(_MAGIC) + _DIGEST_SIZE :]
    return payload if head == _MAGIC + hashlib.sha256(payload).digest() else None


def identity(params: Mapping[str, object], code: Iterable[Path], **inputs: object) -> dict[str, str]:
    """Everything that decides a training run's result, each under a name a person understands.

    Args:
        params: flat params; those that dvc.yaml does not list for training are left out.
        code: the files that compute the result (`code_of("train")`).
        inputs: what else flows in: data digest, peak rate, device, threads.
    """
    read = tuple(_stage("train")["params"])
    ours = {key: repr(value) for key, value in params.items() if within(key, read)}
    files = {path.as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in code}
    versions = {f"{name} version": version(name) for name in LIBRARIES}
    return ours | files | versions | {key: str(value) for key, value in inputs.items()}


def code_of(stage: str) -> list[Path]:
    """The Python files that dvc.yaml names as dependencies of `stage`."""
    return [Path(dep) for dep in _stage(stage)["deps"] if dep.endswith(".py")]


def _stage(name: str) -> Mapping[str, Any]:
    """What dvc.yaml says of a stage."""
    return parse_graph(paths.DVC_YAML.read_bytes())[name]
