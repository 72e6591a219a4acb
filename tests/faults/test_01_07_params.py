"""Values that cannot be right: the first stage refuses them in one line, exit code 2, before DVC deletes anything."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from conftest import PARAMS_FILE, REPO, command, set_params


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The shipped params.yaml in a folder of its own."""
    shutil.copy(PARAMS_FILE, tmp_path)
    return tmp_path


def refused(folder: Path, sentence: str, **changes: Any) -> None:
    """Set keys (dots written as __), start the stage, and compare all that it says."""
    if changes:
        set_params(folder, {key.replace("__", "."): value for key, value in changes.items()})
    done = command(folder, "python", "-m", "stages.params", check=False, PYTHONPATH=str(REPO))
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"error: params.yaml{sentence}")
    assert done.stderr.count("\n") == 1
    assert not (folder / "results").exists()


@pytest.mark.parametrize(
    ("value", "rule"),
    [
        (0, "≥ 1, got 0"),
        (-1, "≥ 1, got -1"),
        ("5", 'an integer, got "5"'),
        (2.5, "an integer, got 2.5"),
    ],
)
def test_01_epochs(folder: Path, value: object, rule: str) -> None:
    refused(folder, f": epochs must be {rule}\n", epochs=value)


def test_02_peak_behind_the_end(folder: Path) -> None:
    refused(folder, ": one_cycle.max_at_epoch must be < epochs (24), got 24.0\n", one_cycle__max_at_epoch=24)


@pytest.mark.parametrize(
    ("key", "choices"),
    [
        ("optimizer.name", '"adam", "adamw", "sgd"'),
        ("model.name", '"custom_resnet", "resnet18"'),
        ("data.dataset", '"cifar10", "digits"'),
        ("train.precision", '"auto", "bf16", "fp16", "fp32"'),
    ],
)
def test_03_unknown_choice(folder: Path, key: str, choices: str) -> None:
    refused(folder, f': {key} must be one of {choices}, got "other"\n', **{key: "other"})


def test_04_batch_larger_than_the_training_split(folder: Path) -> None:
    refused(folder, ": batch_size must be ≤ the training split (45000 images), got 45001\n", batch_size=45_001)


@pytest.mark.parametrize("value", [-0.1, float("nan"), float("inf")])
def test_05_rate_that_is_none(folder: Path, value: float) -> None:
    refused(folder, ": one_cycle.max_lr must be 'auto' or a number > 0, got ", one_cycle__max_lr=value)


@pytest.mark.parametrize(("key", "meant"), [("epoch", "epochs"), ("optimizer.nme", "optimizer.name")])
def test_06_misspelt_key(folder: Path, key: str, meant: str) -> None:
    refused(folder, f": unknown key {key}; did you mean {meant}?\n", **{key: 1})


def test_07_broken_file(folder: Path) -> None:
    text = (folder / "params.yaml").read_text(encoding="utf-8")
    (folder / "params.yaml").write_text(text.replace("  pad: 4", "  pad: [4"), encoding="utf-8")
    refused(folder, ", line ")
    (folder / "params.yaml").write_text(re.sub(r"^  div_factor:", "  #", text, flags=re.MULTILINE), encoding="utf-8")
    refused(folder, ": key one_cycle.div_factor is missing\n")
