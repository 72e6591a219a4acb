"""CIFAR-10's archive → arrays, trusting nothing in it.

    from onecycle import archive
    dataset = archive.read(Path("cifar-10-python.tar.gz"))

The layout is the one torchvision.datasets.CIFAR10 reads (https://www.cs.toronto.edu/~kriz/cifar.html): pickles in
cifar-10-batches-py/. Members are read by name and never extracted, sizes are bounded, each member's MD5 is checked
against the published one before it is unpickled, and the unpickler knows nothing but numpy's arrays.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import pickle
import tarfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, Self

import numpy as np

from onecycle.data import Dataset, Images, Labels, describe

FOLDER = "cifar-10-batches-py"
MD5 = {
    "data_batch_1": "c99cafc152244af753f735de768cd75f",
    "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
    "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
    "data_batch_4": "634d18415352ddfa80567beed471001a",
    "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
    "test_batch": "40351d587109b95175f43aff81a1287e",
    "batches.meta": "5ff9c542aee3614f3951f8cda6e48888",
}
"""The published members and their MD5, as in torchvision."""

LARGEST_MEMBER = 64 * 2**20
LARGEST_CONTENT = 512 * 2**20
"""Bytes, unpacked; the published members have 31 MB each, 186 MB together."""


class ArchiveError(ValueError):
    """This is not the published archive; says in a few words what is wrong with it."""


def read(path: Path, md5: Mapping[str, str] = MD5) -> Dataset:
    """Read the .tar.gz at `path`, or the folder that holds its unpacked members.

    Args:
        path: the archive, or a folder that holds either the members or cifar-10-batches-py/.
        md5: the members to expect, as `MD5`; every batch but test_batch is training data, in this order.

    Raises:
        ArchiveError: anything is missing, damaged, oversized, or not what was published.
    """
    contents = _from_folder(path, md5) if path.is_dir() else _from_archive(path, md5)
    members = {name: _checked(name, content, md5[name]) for name, content in contents}
    if missing := [name for name in md5 if name not in members]:
        raise ArchiveError(f"lacks {', '.join(missing)}")
    names = _unpickle("batches.meta", members.pop("batches.meta"))[b"label_names"]
    batches = {name: _images_and_labels(name, members.pop(name)) for name in md5 if name in members}
    test_images, test_labels = batches.pop("test_batch")
    arrays = {
        "train_images": np.concatenate([images for images, _ in batches.values()]),
        "train_labels": np.concatenate([labels for _, labels in batches.values()]),
        "test_images": test_images,
        "test_labels": test_labels,
    }
    return describe("cifar10", tuple(name.decode() for name in names), arrays)


def _from_folder(folder: Path, names: Mapping[str, str]) -> Iterator[tuple[str, bytes]]:
    home = folder / FOLDER if (folder / FOLDER).is_dir() else folder
    for name in names:
        try:
            if not (home / name).is_file():  # it is lacking; opening a pipe would wait for ever
                continue
            with (home / name).open("rb") as file:
                content = file.read(LARGEST_MEMBER + 1)
        except OSError as error:
            raise ArchiveError(f"{name}: {error.strerror}") from None
        if len(content) > LARGEST_MEMBER:
            raise ArchiveError(f"{name} is larger than {LARGEST_MEMBER:,} bytes")
        yield name, content


def _from_archive(path: Path, names: Mapping[str, str]) -> Iterator[tuple[str, bytes]]:
    wanted = {PurePosixPath(FOLDER, name): name for name in names}
    try:
        # A stream: no seeking back, and no more is ever unpacked than has been counted.
        with gzip.open(path) as stream, tarfile.open(fileobj=_Bounded(stream), mode="r|", tarinfo=_Header) as tar:
            for member in tar:
                where = PurePosixPath(member.name)
                if where.is_absolute() or ".." in where.parts or not (member.isreg() or member.isdir()):
                    raise ArchiveError(f"holds {member.name!r}, a link or a path that leads outside")
                if where not in wanted or member.isdir():
                    continue
                if not 0 <= member.size <= LARGEST_MEMBER:
                    raise ArchiveError(f"{member.name} is larger than {LARGEST_MEMBER:,} bytes")
                content = tar.extractfile(member)
                assert content is not None  # it is a regular file
                yield wanted[where], content.read()
    except ArchiveError:
        raise
    except (tarfile.TarError, EOFError, zlib.error, OSError, ValueError) as error:
        raise ArchiveError(f"is no whole .tar.gz ({error})") from None


class _Header(tarfile.TarInfo):
    """A member's header, complete in its 512 bytes, as all of the published archive's are.

    Those that go on in the member's content (pax, GNU's long names and sparse files) are refused before tarfile reads
    that: it takes hours for some, gigabytes for others, and trips over what is cut short.
    """

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        header = super().frombuf(buf, encoding, errors)
        if header.type not in _TYPES:
            raise ArchiveError(f"holds {header.name!r} of tar's type {header.type!r}, not just plain files and folders")
        return header


_TYPES = {
    tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.DIRTYPE, tarfile.LNKTYPE, tarfile.SYMTYPE, tarfile.CHRTYPE,
    tarfile.BLKTYPE, tarfile.FIFOTYPE,
}  # fmt: skip


class _Bounded(io.RawIOBase):
    """The first `LARGEST_CONTENT` bytes of a stream; an error behind them, since headers may announce any size.

    So there is when the stream has ended and is read on: to pass over a member, tarfile reads on for as long as the
    header says, which can be years.
    """

    def __init__(self, stream: BinaryIO | gzip.GzipFile) -> None:
        self._stream = stream
        self._left = LARGEST_CONTENT
        self._ended = False

    def read(self, size: int = -1) -> bytes:
        content = self._stream.read(size)
        if self._ended:
            raise EOFError("it ends before its headers say")
        self._ended = not content
        self._left -= len(content)
        if self._left < 0:
            raise ArchiveError(f"unpacks to more than {LARGEST_CONTENT:,} bytes")
        return content


def _checked(name: str, content: bytes, md5: str) -> bytes:
    found = hashlib.md5(content, usedforsecurity=False).hexdigest()
    if found != md5:
        raise ArchiveError(f"{name} has MD5 {found}, not the published {md5}")
    return content


class _Unpickler(pickle.Unpickler):
    """Builds dicts, lists, strings, integers and numpy arrays; whatever else a pickle names is refused."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("numpy.core.multiarray", "_reconstruct"):
            return super().find_class("numpy._core.multiarray", name)  # where it is since numpy 2
        if (module, name) in {("numpy", "ndarray"), ("numpy", "dtype")}:
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"it names {module}.{name}")


def _unpickle(name: str, content: bytes) -> dict[bytes, Any]:
    try:
        found: dict[bytes, Any] = _Unpickler(io.BytesIO(content), encoding="bytes").load()
    except pickle.UnpicklingError as error:
        raise ArchiveError(f"{name} is no pickle of arrays, lists, strings and integers: {error}") from None
    return found


def _images_and_labels(name: str, content: bytes) -> tuple[Images, Labels]:
    """One batch: (n, 32, 32, 3) uint8 and (n,) int64, from rows of 1,024 red, 1,024 green and 1,024 blue bytes."""
    batch = _unpickle(name, content)
    images = batch[b"data"].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    return np.ascontiguousarray(images), np.array(batch[b"labels"], np.int64)
