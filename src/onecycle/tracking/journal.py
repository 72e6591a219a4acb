"""The journal: everything a stage says about its row, appended to a file before anything is sent to a store.

One folder an execution, in the original workspace (a temporary experiment's own folder disappears); of a row that is
made from git, git-<row>:

    .state/journal/<host>-<pid>-<start>/entries.jsonl     one entry a line
    .state/journal/<host>-<pid>-<start>/files/…           copies of artifacts, taken at once
    .state/journal/<host>-<pid>-<start>/sent.json         how much of it reached which store
    .state/journal/<host>-<pid>-<start>/code/…            the package that its sender runs

It is an outbox, not an archive: once the execution has ended and everything is sent, the folder goes. An entry is
appended by one write, so that stages, and the sender that notes a killed one, need no lock. A line that a crash cut
short ends where the next entry begins and is left out.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from onecycle import paths
from onecycle.tracking.execution import Process

QUIET_SECONDS = 86_400.0
"""Without a word a process on another machine counts as ended after so long."""

Entry = dict[str, Any]


@dataclass(frozen=True)
class Sent:
    """How much of a journal reached which store."""

    sender: Process | None = None
    """That follows the journal, or did; not one that sent it along."""
    address: str = ""
    """Of the store that its command was to send to, hashed; empty where it had no sender."""
    store: str = ""
    run_id: str = ""
    offset: int = 0
    """Bytes of the journal that reached the store."""
    trouble: str | None = None
    """Why the store does not take the rest, in one sentence."""


class Journal:
    """One execution's journal."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.file = folder / "entries.jsonl"
        self.files = folder / "files"

    def append(self, event: str, *, durable: bool = False, **fields: Any) -> None:
        """Add an entry, stamped with the time in milliseconds; `durable` ones survive a power cut.

        Raises:
            OSError: the journal cannot be written.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        line = json.dumps({"event": event, "at": time.time_ns() // 1_000_000, **fields}) + "\n"
        handle = os.open(self.file, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            size = os.fstat(handle).st_size
            cut_short = size > 0 and os.pread(handle, 1, size - 1) != b"\n"
            content = (b"\n" if cut_short else b"") + line.encode()
            if os.write(handle, content) < len(content):  # the disk had room for a part
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.file))
            if durable:
                os.fsync(handle)
        finally:
            os.close(handle)

    def keep(self, path: Path) -> str:
        """Copy a file into the journal and return its path there, relative to `files`.

        A copy, not a link: a stage run by hand writes into the same file again.

        Raises:
            OSError: the file cannot be read or the journal cannot be written.
        """
        target = self._new_file(path.name)
        shutil.copyfile(path, target)
        return target.relative_to(self.files).as_posix()

    def keep_content(self, name: str, content: bytes) -> str:
        """As `keep`, of a file that is nowhere else."""
        target = self._new_file(name)
        target.write_bytes(content)
        return target.relative_to(self.files).as_posix()

    def _new_file(self, name: str) -> Path:
        folder = self.files / f"{time.time_ns()}"
        folder.mkdir(parents=True)
        return folder / name

    def entries(self, start: int = 0) -> Iterator[tuple[Entry, int]]:
        """Entries from byte `start` on, each with the byte at which it ends; a line still being written is left out."""
        try:
            stream = self.file.open("rb")
        except FileNotFoundError:
            return
        with stream:
            stream.seek(start)
            for line in stream:
                if not line.endswith(b"\n"):
                    return
                start += len(line)
                entry = _parsed(line)
                if entry is not None:
                    yield entry, start

    def size(self) -> int:
        """Bytes written so far."""
        return self.file.stat().st_size

    def written(self) -> float:
        """When the last entry was appended, in seconds since 1970."""
        return self.file.stat().st_mtime

    def runs(self, process: Process, quiet: float = QUIET_SECONDS) -> bool:
        """Whether a process still runs; of one on another machine tells what it wrote in `quiet` seconds."""
        return process.alive() if process.here else time.time() - self.written() < quiet

    def sent(self) -> Sent:
        """How far the sender got."""
        try:
            fields = json.loads((self.folder / "sent.json").read_bytes())
            sender = fields["sender"]
            return Sent(**{**fields, "sender": None if sender is None else Process(**sender)})
        except (FileNotFoundError, KeyError, TypeError, ValueError):
            return Sent()  # a power cut may leave it empty; then all is sent again

    def unsent(self) -> int:
        """Bytes of entries that did not reach the store; 0 also when all is sent and the journal gone."""
        reached = self.sent().offset  # first, since the entries are what is removed first
        return max((end - reached for _, end in self.entries(reached)), default=0)

    def acknowledge(self, sent: Sent) -> None:
        """Note how far the sender got."""
        new = self.folder / "sent.json.tmp"
        new.write_text(json.dumps(asdict(sent)), encoding="utf-8")
        new.replace(self.folder / "sent.json")

    def remove(self) -> None:
        """Forget it: everything in it is in a store.

        The entries go first, so that what a kill leaves is no journal; `sweep` removes that.
        """
        self.file.unlink()
        shutil.rmtree(self.folder, ignore_errors=True)


def root() -> Path:
    """The folder of all journals of this workspace."""
    return paths.state() / "journal"


def all_journals() -> list[Journal]:
    """The journals that still hold something to send, oldest first."""
    written: list[tuple[float, Path]] = []
    for file in root().glob("*/entries.jsonl"):
        with suppress(FileNotFoundError):  # sent and removed just now
            written.append((file.stat().st_mtime, file.parent))
    return [Journal(folder) for _, folder in sorted(written)]


def sweep() -> None:
    """Remove what kills have left of journals that were being removed."""
    for folder in root().glob("*/"):
        with suppress(FileNotFoundError):
            just_begun = time.time() - folder.stat().st_mtime < 60
            if not (just_begun or (folder / "entries.jsonl").exists()):
                shutil.rmtree(folder, ignore_errors=True)


def _parsed(line: bytes) -> Entry | None:
    """An entry, or None for what a crash cut short."""
    try:
        entry = json.loads(line)
    except ValueError:
        return None
    return entry if isinstance(entry, dict) else None
