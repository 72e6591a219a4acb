"""Archives in CIFAR-10's layout, made by hand: Python 2's pickles, of a few images each, and their MD5."""

from __future__ import annotations

import hashlib
import io
import struct
import tarfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

CLASSES = ("cat", "dog", "ship")
FOLDER = "cifar-10-batches-py"


def pickled(value: object) -> bytes:
    """`value` as Python 2 pickled it (protocol 2): what today's pickle module can read but no longer write."""
    return b"\x80\x02" + _opcodes(value) + b"."


def _opcodes(value: object) -> bytes:
    match value:
        case None:
            return b"N"
        case False:
            return b"\x89"
        case int():
            return b"J" + struct.pack("<i", value)
        case bytes():
            return b"T" + struct.pack("<i", len(value)) + value
        case list():
            return b"](" + b"".join(map(_opcodes, value)) + b"e"
        case tuple():
            return b"(" + b"".join(map(_opcodes, value)) + b"t"
        case dict():
            return b"}(" + b"".join(_opcodes(part) for item in value.items() for part in item) + b"u"
        case np.ndarray():
            kind = b"cnumpy\ndtype\n" + _opcodes((value.dtype.str[1:].encode(), 0, 1)) + b"R"
            kind += _opcodes((3, b"|", None, None, None, -1, -1, 0)) + b"b"
            empty = (
                b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n" + _opcodes((0,)) + _opcodes(b"b") + b"tR"
            )
            state = (
                b"(" + _opcodes(1) + _opcodes(value.shape) + kind + _opcodes(False) + _opcodes(value.tobytes()) + b"t"
            )
            return empty + state + b"b"
    raise TypeError(type(value))


def batch(seed: int, rows: int = 12) -> dict[bytes, object]:
    """Random pixels, and labels of which each class has as many."""
    pixels = np.random.default_rng(seed).integers(0, 256, (rows, 3072), np.uint8)
    return {b"data": pixels, b"labels": [row % len(CLASSES) for row in range(rows)], b"batch_label": b"crafted"}


def members(rows: int = 12) -> dict[str, bytes]:
    """Two training batches of so many images, a test batch and the class names: member → content."""
    return {
        "data_batch_1": pickled(batch(1, rows)),
        "data_batch_2": pickled(batch(2, rows)),
        "test_batch": pickled(batch(3, rows=6)),
        "batches.meta": pickled({b"label_names": [name.encode() for name in CLASSES], b"num_vis": 3072}),
    }


def md5_of(contents: Mapping[str, bytes]) -> dict[str, str]:
    """The table `onecycle.archive.read` is to expect."""
    return {name: hashlib.md5(content).hexdigest() for name, content in contents.items()}


def packed(contents: Mapping[str, bytes], *odd: tarfile.TarInfo) -> bytes:
    """A .tar.gz of `contents` in CIFAR-10's folder, with `odd` members before them."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz") as tar:
        for info in odd:
            tar.addfile(info, io.BytesIO(bytes(info.size)))
        for name, content in contents.items():
            info = tarfile.TarInfo(f"{FOLDER}/{name}")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return file.getvalue()


def unpacked(contents: Mapping[str, bytes], folder: Path) -> Path:
    """`contents` as files in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    return folder
