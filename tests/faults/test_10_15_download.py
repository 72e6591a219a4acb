"""Servers and archives that are not what they should be: the stage says so in one line, and the data it had stays."""

from __future__ import annotations

import os
import pickle
import re
import shutil
import subprocess
import tarfile
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from conftest import PARAMS_FILE, REPO, command
from crafted_archive import FOLDER, members, packed
from test_download import Answer, Server, cut_off, html_page, unavailable, whole

from onecycle import paths

ARCHIVE = packed(members(rows=60))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A workspace in a folder of its own, with data from before."""
    folder = tmp_path / "outer" / "workspace"
    (folder / ".dvc").mkdir(parents=True)
    (folder / paths.DATASET).mkdir(parents=True)
    (folder / paths.DATASET / "dataset.json").write_text("from before", encoding="utf-8")
    shutil.copy(PARAMS_FILE, folder)
    return folder


def refused(folder: Path, mirror: str) -> subprocess.CompletedProcess[str]:
    """Run the stage, which is to refuse what it gets; nothing but its own cache may have changed."""
    environment = {"PYTHONPATH": str(REPO), "ONECYCLE_TRACKING": "off", "CIFAR10_MIRROR": mirror}
    done = command(folder, "python", "-m", "stages.download", check=False, **environment)
    assert done.returncode == 2, done.stderr
    assert done.stderr.splitlines()[-1].startswith("error: ")
    assert "CIFAR10_MIRROR" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
    allowed = {"params.yaml", "data/arrays/dataset.json", "archive.tar.gz"}
    there = {path.relative_to(folder.parent) for path in folder.parent.rglob("*") if path.is_file()}
    assert {path for path in there if ".state" not in path.parts} <= {Path("workspace", name) for name in allowed}
    assert (folder / paths.DATASET / "dataset.json").read_text(encoding="utf-8") == "from before"
    return done


def refused_by(folder: Path, *answers: Callable[[Answer], None]) -> tuple[subprocess.CompletedProcess[str], Server]:
    with closing(Server(*answers, content=ARCHIVE)) as server:
        return refused(folder, server.url), server


def refused_file(folder: Path, content: bytes) -> str:
    (folder / "archive.tar.gz").write_bytes(content)
    return refused(folder, "archive.tar.gz").stderr


def test_10_cut_off_it_goes_on_with_a_range_request(folder: Path) -> None:
    done, server = refused_by(folder, cut_off, whole)
    [received] = re.findall(r"broke off after ([\d,]+) bytes; trying again in 1 s", done.stderr)
    assert [asked.get("Range") for asked in server.asked] == [None, f"bytes={received.replace(',', '')}-"]
    assert "not the published" in done.stderr  # so it was put together whole, and is no CIFAR-10


def test_11_a_page_or_another_archive(folder: Path) -> None:
    assert "answered with text/html, not with a .tar.gz" in refused_by(folder, html_page)[0].stderr
    assert "has MD5" in refused_by(folder, whole)[0].stderr
    assert list((folder / ".state" / "download").glob("*.tar.gz")) == []


@pytest.mark.parametrize("damage", [lambda content: content[:5000], lambda content: content[:5000] + b"\0" * 5000])
def test_12_corrupt_gzip(folder: Path, damage: Callable[[bytes], bytes]) -> None:
    assert "is no whole .tar.gz" in refused_file(folder, damage(ARCHIVE))


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("../outside", tarfile.REGTYPE),
        (f"{FOLDER}/../../outside", tarfile.REGTYPE),
        ("/tmp/outside", tarfile.REGTYPE),
        (f"{FOLDER}/data_batch_1", tarfile.SYMTYPE),
        (f"{FOLDER}/data_batch_1", tarfile.LNKTYPE),
    ],
)
def test_13_members_that_lead_outside(folder: Path, name: str, kind: bytes) -> None:
    odd = tarfile.TarInfo(name)
    odd.type, odd.linkname = kind, "../../outside" if kind != tarfile.REGTYPE else ""
    assert "a link or a path that leads outside" in refused_file(folder, packed(members(), odd))


class Touching:
    """Its unpickling would make a folder."""

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, ("touched",)


def test_14_a_malicious_pickle_is_not_executed(folder: Path) -> None:
    evil = members() | {"data_batch_1": pickle.dumps({b"data": Touching()}, protocol=2)}
    assert "data_batch_1 has MD5" in refused_file(folder, packed(evil))
    assert not (folder / "touched").exists()


def test_15_a_mirror_that_is_busy_for_good(folder: Path) -> None:
    done, server = refused_by(folder, unavailable)
    assert len(server.asked) == 4
    assert [line for line in done.stderr.splitlines() if "trying again in" in line][-1].endswith("in 4 s")
    sentence = done.stderr.splitlines()[-1]
    assert "503" in sentence and "set CIFAR10_MIRROR" in sentence and "`make demo`" in sentence
