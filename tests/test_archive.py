"""The archive reader: what it reads, and all that it refuses."""

from __future__ import annotations

import gzip
import hashlib
import importlib.util
import os
import pickle
import tarfile
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from crafted_archive import CLASSES, FOLDER, batch, md5_of, members, packed, pickled, unpacked

from onecycle import archive
from onecycle.archive import ArchiveError, read
from onecycle.data import Dataset

CONTENTS = members()
MD5 = md5_of(CONTENTS)


def read_bytes(folder: Path, content: bytes, md5: dict[str, str] = MD5) -> Dataset:
    path = folder / "cifar-10-python.tar.gz"
    path.write_bytes(content)
    return read(path, md5)


def read_changed(folder: Path, **changed: bytes) -> Dataset:
    """Read an archive with other members, their MD5 being as expected."""
    contents = CONTENTS | {name.replace("batches_meta", "batches.meta"): content for name, content in changed.items()}
    return read(unpacked(contents, folder), md5_of(contents))


def test_published_members_are_the_ones_torchvision_lists() -> None:
    torchvision = importlib.util.find_spec("torchvision")  # found, not imported: that takes seconds
    assert torchvision is not None and torchvision.origin is not None
    source = Path(torchvision.origin).parent / "datasets" / "cifar.py"
    text = source.read_text(encoding="utf-8").partition("class CIFAR100")[0]
    for name, md5 in archive.MD5.items():
        assert f'"{name}"' in text and f'"{md5}"' in text


@pytest.mark.parametrize("order", [1, -1])
def test_pixels_labels_and_classes_arrive_in_the_order_of_the_batches(tmp_path: Path, order: int) -> None:
    dataset = read_bytes(tmp_path, packed(dict(list(CONTENTS.items())[::order])))

    first, second, test = batch(1), batch(2), batch(3, rows=6)
    assert dataset.classes == CLASSES
    assert dataset.name == "cifar10"
    assert dataset.train_labels.tolist() == first[b"labels"] + second[b"labels"]
    assert dataset.test_labels.tolist() == test[b"labels"]
    assert dataset.train_images.shape == (24, 32, 32, 3)
    row, y, x, channel = 14, 5, 7, 2
    assert dataset.train_images[row, y, x, channel] == second[b"data"][row - 12, channel * 1024 + y * 32 + x]
    assert np.array_equal(dataset.test_images.transpose(0, 3, 1, 2).reshape(6, 3072), test[b"data"])


def test_folder_of_unpacked_members_is_the_same_data_set(tmp_path: Path) -> None:
    inner = unpacked(CONTENTS, tmp_path / FOLDER)

    digests = {read(inner, MD5).digest, read(tmp_path, MD5).digest, read_bytes(tmp_path, packed(CONTENTS)).digest}

    assert len(digests) == 1


@pytest.mark.parametrize("kept", [0, 5, 30, 0.3, 0.9])
def test_truncated_gzip_is_refused(tmp_path: Path, kept: float) -> None:
    whole = packed(CONTENTS)
    with pytest.raises(ArchiveError):
        read_bytes(tmp_path, whole[: kept if isinstance(kept, int) else int(len(whole) * kept)])


@pytest.mark.parametrize("place", [0, 2, 10, 11, 12, 13, 50, 500, 30_000, 60_000])
def test_flipped_byte_is_refused(tmp_path: Path, place: int) -> None:
    damaged = bytearray(packed(CONTENTS))
    damaged[place] ^= 0xFF
    with pytest.raises(ArchiveError):
        read_bytes(tmp_path, bytes(damaged))


def test_overwritten_gzip_is_refused_wherever_it_is_damaged(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 7, (12, 3072), np.uint8)  # random enough, and yet compressed
    contents = CONTENTS | {"data_batch_1": pickled(batch(1) | {b"data": pixels})}
    content = packed(contents)
    for place in range(0, len(content) // 3, 397):
        with pytest.raises(ArchiveError):
            read_bytes(tmp_path, content[:place] + b"\xff\xff\xff" + content[place + 3 :], md5_of(contents))


def test_html_page_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArchiveError, match=r"no whole \.tar\.gz"):
        read_bytes(tmp_path, b"<!doctype html><title>503</title>")


def odd_member(name: str, kind: bytes = tarfile.REGTYPE, target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


@pytest.mark.parametrize(
    "odd",
    [
        odd_member("../outside"),
        odd_member(f"{FOLDER}/../../outside"),
        odd_member("/tmp/outside"),
        odd_member(f"{FOLDER}/data_batch_1", tarfile.SYMTYPE, "/etc/passwd"),
        odd_member(f"{FOLDER}/link", tarfile.SYMTYPE, "../.."),
        odd_member(f"{FOLDER}/data_batch_1", tarfile.LNKTYPE, "/etc/passwd"),
        odd_member(f"{FOLDER}/fifo", tarfile.FIFOTYPE),
        odd_member(f"{FOLDER}/device", tarfile.CHRTYPE),
    ],
    ids=lambda odd: f"{odd.name} {odd.type!r}",
)
def test_paths_that_lead_outside_and_links_are_refused(
    tmp_path: Path, odd: tarfile.TarInfo, monkeypatch: pytest.MonkeyPatch
) -> None:
    inside = tmp_path / "a" / "b"
    inside.mkdir(parents=True)
    monkeypatch.chdir(inside)

    with pytest.raises(ArchiveError, match="leads outside"):
        read_bytes(inside, packed(CONTENTS, odd))

    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["cifar-10-python.tar.gz"]


def test_other_members_are_passed_over(tmp_path: Path) -> None:
    odd = (
        odd_member(f"{FOLDER}/readme.html"),
        odd_member("elsewhere/data_batch_1"),
        odd_member(FOLDER, tarfile.DIRTYPE),
    )
    assert read_bytes(tmp_path, packed(CONTENTS, *odd)).digest == read_bytes(tmp_path, packed(CONTENTS)).digest


def test_folder_with_a_members_name_is_no_member(tmp_path: Path) -> None:
    folder = tarfile.TarInfo(f"{FOLDER}/data_batch_1")
    folder.type = tarfile.DIRTYPE
    with pytest.raises(ArchiveError, match="lacks data_batch_1"):
        others = {name: content for name, content in CONTENTS.items() if name != "data_batch_1"}
        read_bytes(tmp_path, packed(others, folder))


def test_oversized_member_is_refused_before_it_is_unpacked(tmp_path: Path) -> None:
    info = tarfile.TarInfo(f"{FOLDER}/data_batch_1")
    info.size = 10**12
    tracemalloc.start()
    try:
        with pytest.raises(ArchiveError, match="larger than"):
            read_bytes(tmp_path, gzip.compress(info.tobuf(tarfile.GNU_FORMAT) + bytes(2**20)))
        assert tracemalloc.get_traced_memory()[1] < 20e6
    finally:
        tracemalloc.stop()


def test_oversized_file_in_a_folder_is_refused(tmp_path: Path) -> None:
    unpacked(CONTENTS, tmp_path)
    os.truncate(tmp_path / "data_batch_2", archive.LARGEST_MEMBER + 1)
    with pytest.raises(ArchiveError, match="data_batch_2 is larger than"):
        read(tmp_path, MD5)


def test_file_of_a_folder_that_never_ends_or_is_none_is_not_opened(tmp_path: Path) -> None:
    unpacked(CONTENTS, tmp_path)
    file = tmp_path / "data_batch_2"
    for make in (lambda: os.mkfifo(file), lambda: file.symlink_to("/dev/zero")):
        file.unlink()
        make()
        with pytest.raises(ArchiveError, match="lacks data_batch_2"):
            read(tmp_path, MD5)


def test_bomb_of_zeros_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive, "LARGEST_CONTENT", 2**20)
    bomb = odd_member("zeros")
    bomb.size = 2**23
    with pytest.raises(ArchiveError, match="unpacks to more than"):
        read_bytes(tmp_path, packed(CONTENTS, bomb))


def test_header_that_announces_more_than_there_is_does_not_keep_the_reader(tmp_path: Path) -> None:
    """tarfile passes over a member block by block, whether there is one or not: 9e18 bytes take it years."""
    info = tarfile.TarInfo("notes.txt")
    info.size = 2**63
    with pytest.raises(ArchiveError, match="no whole"):
        read_bytes(tmp_path, gzip.compress(info.tobuf(tarfile.GNU_FORMAT) + bytes(2**12)))


def cut_short() -> bytes:
    """A sparse file's header that says its map goes on, which it does not."""
    header = bytearray(odd_member("sparse", tarfile.GNUTYPE_SPARSE).tobuf())
    header[482] = 1
    header[148:156] = b"%06o\0 " % tarfile.calc_chksums(header)[0]
    return bytes(header)


def extended(kind: bytes, content: bytes) -> bytes:
    info = odd_member("extended", kind)
    info.size = len(content)
    return info.tobuf() + content + odd_member("next").tobuf()


@pytest.mark.parametrize(
    "tar",
    [
        extended(tarfile.XHDTYPE, b"1" * 2**20),  # an hour, for the regular expression tarfile looks at it with
        extended(tarfile.XGLTYPE, b"1" * 2**20),
        extended(tarfile.GNUTYPE_LONGNAME, b"../" * 2**20),  # in the message, once
        extended(tarfile.CONTTYPE, b""),
        cut_short(),
    ],
    ids=["pax", "global pax", "long name", "contiguous", "sparse"],
)
def test_header_that_goes_on_is_refused_unread(tmp_path: Path, tar: bytes) -> None:
    with pytest.raises(ArchiveError, match="not just plain files and folders") as refusal:
        read_bytes(tmp_path, gzip.compress(tar, 1))
    assert len(str(refusal.value)) < 200


def test_member_with_another_md5_is_refused_before_it_is_unpickled(tmp_path: Path) -> None:
    unpacked(CONTENTS | {"data_batch_2": b"not even a pickle"}, tmp_path)
    found = hashlib.md5(b"not even a pickle").hexdigest()
    with pytest.raises(ArchiveError, match=f"data_batch_2 has MD5 {found}, not the published {MD5['data_batch_2']}"):
        read(tmp_path, MD5)


def test_missing_member_is_named(tmp_path: Path) -> None:
    contents = {name: content for name, content in CONTENTS.items() if name != "data_batch_2"}
    with pytest.raises(ArchiveError, match="lacks data_batch_2"):
        read_bytes(tmp_path, packed(contents))
    with pytest.raises(ArchiveError, match="data_batch_2"):
        read(unpacked(contents, tmp_path / "folder"), MD5)


class Touching:
    """Its unpickling would make a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_malicious_pickle_is_refused_and_never_executed(tmp_path: Path, protocol: int) -> None:
    touched = tmp_path / "touched"
    evil = pickle.dumps({b"data": Touching(touched)}, protocol)
    with pytest.raises(ArchiveError, match="data_batch_1"):
        read_changed(tmp_path / "data", data_batch_1=evil)
    assert not touched.exists()


@pytest.mark.parametrize(
    "evil", [b"cos\nmkdir\n(U\x07touchedtR.", b"cbuiltins\neval\n(U\x013tR.", b"cnumpy\nload\n(U\x07touchedtR."]
)
def test_pickle_that_names_anything_but_arrays_is_refused(
    tmp_path: Path, evil: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ArchiveError, match=r"data_batch_1 is no pickle of arrays, .* it names"):
        read_changed(tmp_path / "data", data_batch_1=b"\x80\x02" + evil)
    assert not (tmp_path / "touched").exists()
