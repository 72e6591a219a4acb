"""What strangers wrote, damaged at random: nothing but our own error comes out, and no file is left outside.

    FUZZ_SECONDS=300 pytest tests/test_fuzz.py      # five minutes a reader, instead of some hundred examples

Without FUZZ_SECONDS the examples are the same each time.
"""

from __future__ import annotations

import gzip
import io
import itertools
import json
import os
import tarfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import PARAMS_FILE
from crafted_archive import FOLDER, md5_of, members, packed
from crafted_run import write_run
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st
from test_params import BOMBS

from onecycle import paths
from onecycle.data import Dataset
from onecycle.download import cifar10
from onecycle.errors import UserError
from onecycle.params import Params, load
from onecycle.results import Results, read
from onecycle.revisions import Place

T = TypeVar("T")

SECONDS = float(os.environ.get("FUZZ_SECONDS") or 0)


def fuzz(examples: st.SearchStrategy[T], check: Callable[[T], None], count: int) -> None:
    """Call `check` with so many examples; then with others, until `SECONDS` have passed."""
    end = time.monotonic() + SECONDS
    quiet = settings(max_examples=count, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    for number in itertools.count():
        seed(number)(quiet(given(examples)(check)))()
        if time.monotonic() >= end:
            return


def damaged(content: bytes) -> st.SearchStrategy[bytes]:
    """`content` with a few bytes changed, and perhaps cut short, or with something in the midst of it."""
    place = st.integers(0, len(content))
    changes = st.lists(st.tuples(place, st.integers(0, 255)), max_size=4)

    def apply(drawn: tuple[list[tuple[int, int]], int | None, tuple[int, bytes]]) -> bytes:
        changed, cut, (where, more) = drawn
        new = bytearray(content)
        for position, value in changed:
            if position < len(new):
                new[position] = value
        new[where:where] = more
        return bytes(new if cut is None else new[:cut])

    return st.tuples(changes, st.none() | place, st.tuples(place, st.binary(max_size=8))).map(apply)


def files(folder: Path) -> dict[Path, bytes]:
    """Every file below a folder."""
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# ------------------------------------------------------------------------------------------------ the archive

CONTENTS = members(rows=3)
MD5 = md5_of(CONTENTS)
MEMBERS = [f"{FOLDER}/{name}" for name in CONTENTS]
LEADING_OUT = ["../x", "/x", "..", ".", "", "a/../../x", f"./{MEMBERS[0]}", f"{FOLDER}/../../x", "\\..\\x", "C:\\x"]
KINDS = [bytes([kind]) for kind in b"0\x001234567SLKxgXZ"]


def entry(name: str, kind: bytes, size: int, link: str, content: bytes) -> bytes:
    """A member of a tar, whose header may say anything of what follows."""
    info = tarfile.TarInfo(name)
    info.type, info.size, info.linkname = kind, size, link
    try:
        header = info.tobuf(tarfile.GNU_FORMAT, errors="surrogateescape")
    except (ValueError, UnicodeError):  # no header can say this
        header = bytes(512)
    return header + content + bytes(-len(content) % 512)


NAMES = st.sampled_from(MEMBERS) | st.sampled_from(LEADING_OUT) | st.text(max_size=120)
PAX = st.sampled_from([b"30 path=../../x\n", b"20 size=-1\n", b"999 path=x\n", b"x\n", b"20 GNU.sparse.map=0,9\n"])
LONG = st.sampled_from([b"1" * 2**16, b"../" * 2**14])
ENTRIES = st.builds(
    entry,
    name=NAMES,
    kind=st.sampled_from(KINDS),
    size=st.sampled_from([0, 1, 511, 512, 600, 2**20, 2**33, 2**63]),
    link=NAMES,
    content=st.binary(max_size=600) | PAX | LONG,
)
TARS = st.one_of(
    st.lists(ENTRIES, max_size=4).map(lambda entries: b"".join(entries) + bytes(1024)),
    damaged(gzip.decompress(packed(CONTENTS))),
)


def test_archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tars, and what is no .tar.gz at all. A member that was changed has another MD5 and is not even unpickled."""
    folder = tmp_path / "outer" / "inner"
    folder.mkdir(parents=True)
    monkeypatch.chdir(folder)
    archive = folder / "archive.tar.gz"

    def check(drawn: tuple[bytes, bool]) -> None:
        tar, zipped = drawn
        whole = gzip.compress(tar, 1) if zipped else tar
        archive.write_bytes(whole)
        try:
            assert isinstance(cifar10(str(archive), folder, md5=MD5), Dataset)
        except UserError as error:
            assert "\n" not in str(error) and len(str(error)) < 5000
        assert files(tmp_path) == {archive: whole}

    fuzz(st.tuples(TARS, st.sampled_from([True, True, True, False])), check, count=300)


# ------------------------------------------------------------------------------------------------ params.yaml

SHIPPED = PARAMS_FILE.read_text(encoding="utf-8")
ODD_VALUES = [
    *("!!int ''", "!!float ''", "!!float x", "!!bool x", "!!timestamp x", "!!binary '*'", "!!null x", "!!set {a}"),
    *("!!omap [a]", "!!pairs x", "!!str [a]", "!!python/object/apply:os.mkdir [touched]", "!!python/name:os.system"),
    *("2001-99-99", "2001-01-01", "1e999", "-.inf", ".nan", "0x", "0b2", "1:60:99", "9" * 400, "9" * 5000, "_", "-"),
    *(
        "0x" + "9" * 5000,
        "&a [*a]",
        "&a {b: *a}",
        "*x",
        "{<<: 1}",
        "{[a]: 1}",
        "[",
        "{",
        "[" * 50,
        "? x",
        "- x",
        "%YAML 9.9",
        "---",
        "...",
    ),
    *(
        "\0",
        "\x1b",
        "\u2028",
        "\ufeff",
        "\t",
        "'",
        '"',
        "|",
        ">",
        "@",
        "`",
        "1_000",
        "yes",
        "~",
        "null",
        "true",
        "auto",
    ),
]
VALUES = st.sampled_from(ODD_VALUES) | st.text(max_size=20) | st.integers().map(str) | st.floats().map(str)


def rewritten(changes: list[tuple[int, str]]) -> str:
    """The shipped file with other values in some lines."""
    lines = SHIPPED.splitlines()
    for number, value in changes:
        key, colon, _ = lines[number % len(lines)].partition(":")
        lines[number % len(lines)] = f"{key}{colon} {value}" if colon else value
    return "\n".join(lines) + "\n"


TEXTS = st.one_of(
    st.lists(st.tuples(st.integers(0, 200), VALUES), min_size=1, max_size=3).map(rewritten),
    st.dictionaries(st.text(max_size=8), VALUES, max_size=4).map(
        lambda tree: "".join(f"{key}: {value}\n" for key, value in tree.items())
    ),
    st.text(),
    st.sampled_from(BOMBS),
).map(lambda text: text.encode("utf-8", "surrogatepass"))


def test_params(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "inner"
    folder.mkdir()
    monkeypatch.chdir(folder)

    def check(content: bytes) -> None:
        paths.PARAMS.write_bytes(content)
        try:
            assert isinstance(load(paths.PARAMS), Params)
        except UserError as error:
            assert str(error).startswith("params.yaml") and "\n" not in str(error) and len(str(error)) < 5000
        assert files(tmp_path) == {folder / "params.yaml": content}

    fuzz(TEXTS | damaged(SHIPPED.encode()), check, count=150)


# ------------------------------------------------------------------------------------------------ results

NUMBERS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(-3, 40),
    st.floats(),
    st.sampled_from([10**400, -(10**400), 2**63, 2**64, "1", [], {}]),
)


def parquet(columns: dict[str, list[object]], compression: str) -> bytes:
    """A Parquet file with columns of whatever type their values have."""
    arrays = {}
    for name, values in columns.items():
        try:
            arrays[name] = pa.array(values)
        except (pa.ArrowException, OverflowError, TypeError, ValueError):  # no type holds all of these
            arrays[name] = pa.array([str(value) for value in values])
    buffer = io.BytesIO()
    pq.write_table(pa.table(arrays), buffer, compression=compression)
    return buffer.getvalue()


def test_results_of_another_revision(tmp_path: Path) -> None:
    """Metrics, predictions, classes and params of a run of 20 images, one of them made up or damaged."""
    write_run(tmp_path, np.arange(3), images=20)
    place = Place("other", None, tmp_path)
    sound = {path: (tmp_path / path).read_bytes() for path in (paths.PARAMS, paths.EVALUATE_METRICS)}
    sound |= {path: (tmp_path / path).read_bytes() for path in (paths.PREDICTIONS, paths.PER_CLASS)}
    metrics = json.loads(sound[paths.EVALUATE_METRICS])
    columns = pq.read_table(tmp_path / paths.PREDICTIONS).to_pydict()
    assert isinstance(read(place), Results)

    def check(drawn: tuple[Path, bytes]) -> None:
        path, content = drawn
        (tmp_path / path).write_bytes(content)
        try:
            assert isinstance(read(place), Results)
        except UserError as error:
            assert " of other" in str(error) and "\n" not in str(error)  # which file, and whose
        finally:
            assert files(tmp_path) == {tmp_path / name: text for name, text in (sound | {path: content}).items()}
            (tmp_path / path).write_bytes(sound[path])

    values = st.lists(NUMBERS, min_size=20, max_size=20)
    files_of = st.one_of(
        st.tuples(
            st.just(paths.EVALUATE_METRICS),
            st.dictionaries(st.sampled_from(sorted(metrics)), NUMBERS, min_size=1).map(
                lambda changes: json.dumps(metrics | changes).encode()
            ),
        ),
        st.tuples(
            st.just(paths.PREDICTIONS),
            st.builds(
                lambda name, new, kind: parquet(columns | {name: new}, kind),
                st.sampled_from([*sorted(columns), "other"]),
                values,
                st.sampled_from(["none", "snappy", "zstd"]),
            ),
        ),
        st.tuples(st.just(paths.PARAMS), TEXTS),
        *(st.tuples(st.just(path), damaged(content) | st.binary()) for path, content in sound.items()),
    )
    fuzz(files_of, check, count=300)
