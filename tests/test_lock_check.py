"""`onecycle check-lock` on a small pipeline of DVC's, changed in one place at a time."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import Run, command
from crafted_run import repository

from onecycle.lock_check import mismatches

PIPELINE = {
    "stages": {
        "make": {
            "cmd": "cp make.txt data.txt",
            "deps": ["make.txt", "code"],
            "params": ["seed", "optimizer"],
            "outs": ["data.txt"],
        },
        "use": {
            "cmd": "cp data.txt result.json",
            "deps": ["data.txt"],
            "params": ["epochs"],
            "outs": [{"result.json": {"cache": False}}],
        },
    }
}
PARAMS = {"seed": 0, "epochs": 24, "optimizer": {"name": "adam", "epsilon": 0.00000001}, "gate": {"floor": 0.9}}
REPRO = "run `dvc repro` and commit dvc.lock with the results"


@pytest.fixture(scope="module")
def reproduced(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with two stages, as a clone of it has them: dvc.lock and small results, no data, no cache."""
    folder = repository(tmp_path_factory.mktemp("lock") / "repo")
    command(folder, "dvc", "init", "-q", DVC_NO_ANALYTICS="1")
    (folder / ".dvc/config").write_text("[core]\n    analytics = false\n", encoding="utf-8")
    write(folder, "dvc.yaml", PIPELINE)
    write(folder, "params.yaml", PARAMS)
    (folder / "code/__pycache__").mkdir(parents=True)
    for name in ("make.txt", "code/a.py", ".dvcignore"):
        (folder / name).write_text("__pycache__/\n", encoding="utf-8")
    command(folder, "dvc", "repro", "-q")
    (folder / "code/__pycache__/a.pyc").write_bytes(b"of no account")
    (folder / "data.txt").unlink()
    shutil.rmtree(folder / ".dvc/cache")
    return folder


@pytest.fixture
def clone(reproduced: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "repo"
    shutil.copytree(reproduced, folder)
    monkeypatch.chdir(folder)
    return folder


def write(folder: Path, name: str, tree: dict[str, Any]) -> None:
    (folder / name).write_text(yaml.safe_dump(tree, sort_keys=False), encoding="utf-8")


def found(wrong: bool) -> list[str]:
    """The sentences of one kind; there must be none of the other."""
    every = list(mismatches())
    assert all(one.wrong is wrong for one in every), every
    return [one.sentence.removesuffix(f"; {REPRO}") for one in every]


def test_what_dvc_left_agrees_without_data(clone: Path, onecycle: Run) -> None:
    for more in ((), ("--strict",)):
        code, output, said = onecycle(clone, "check-lock", *more)
        assert (code, said) == (0, "")
        assert output == "dvc.lock agrees with dvc.yaml, params.yaml and the committed results\n"


@pytest.mark.parametrize(
    ("change", "sentences"),
    [
        ({"epochs": 30}, ["use: epochs is 24 in dvc.lock and 30 in params.yaml"]),
        ({"epochs": 24.5, "seed": "0"}, [
            'make: seed is 0 in dvc.lock and "0" in params.yaml',
            "use: epochs is 24 in dvc.lock and 24.5 in params.yaml",
        ]),
        ({"optimizer": {"name": "sgd", "epsilon": 0.00000001, "momentum": 0.9}}, [
            'make: optimizer.name is "adam" in dvc.lock and "sgd" in params.yaml',
            "make: optimizer.momentum is absent in dvc.lock and 0.9 in params.yaml",
        ]),
        ({"optimizer": {}}, [
            'make: optimizer.name is "adam" in dvc.lock and absent in params.yaml',
            "make: optimizer.epsilon is 1e-08 in dvc.lock and absent in params.yaml",
        ]),
        ({"gate": {"floor": 0.5}}, []),
    ],
)  # fmt: skip
def test_params_that_are_not_those_of_the_run(clone: Path, change: dict[str, Any], sentences: list[str]) -> None:
    write(clone, "params.yaml", {**PARAMS, **change})
    assert found(wrong=True) == sentences


def test_a_param_that_went(clone: Path) -> None:
    write(clone, "params.yaml", {key: value for key, value in PARAMS.items() if key != "epochs"})
    assert found(wrong=True) == ["use: epochs is 24 in dvc.lock and absent in params.yaml"]
    (clone / "params.yaml").unlink()
    assert found(wrong=True) == ["make: params.yaml is missing", "use: params.yaml is missing"]


@pytest.mark.parametrize(
    ("stage", "change", "sentences"),
    [
        ("use", {"cmd": "true"}, ['use: cmd is "cp data.txt result.json" in dvc.lock and "true" in dvc.yaml']),
        ("use", {"deps": ["make.txt"]}, [
            "use: data.txt is among its deps in dvc.lock and not in dvc.yaml",
            "use: make.txt is among its deps in dvc.yaml and not in dvc.lock",
        ]),
        ("use", {"params": ["epochs", "gate.floor"]}, [
            "use: gate.floor is among its params in dvc.yaml and not in dvc.lock"
        ]),
        ("use", {"params": []}, ["use: epochs is among its params in dvc.lock and not in dvc.yaml"]),
        ("make", {"outs": ["data.txt", "more.txt"]}, [
            "make: more.txt is among its outs in dvc.yaml and not in dvc.lock"
        ]),
        ("third", {"cmd": "true"}, ["third is a stage of dvc.yaml and not of dvc.lock"]),
    ],
)  # fmt: skip
def test_a_pipeline_that_is_not_the_one_that_ran(
    clone: Path, stage: str, change: dict[str, Any], sentences: list[str]
) -> None:
    stages: dict[str, Any] = PIPELINE["stages"]
    write(clone, "dvc.yaml", {"stages": {**stages, stage: {**stages.get(stage, {}), **change}}})
    assert found(wrong=True) == sentences


def test_a_stage_that_went(clone: Path) -> None:
    write(clone, "dvc.yaml", {"stages": {"make": PIPELINE["stages"]["make"]}})
    assert found(wrong=True) == ["use is a stage of dvc.lock and not of dvc.yaml"]


def test_a_template_is_read_as_dvc_reads_it(clone: Path) -> None:
    text = (clone / "dvc.yaml").read_text(encoding="utf-8").replace("cp make.txt", "cp ${from}.txt")
    (clone / "dvc.yaml").write_text(f"vars: [from: make]\n{text}", encoding="utf-8")
    assert found(wrong=True) == []


@pytest.mark.parametrize("path", ["make.txt", "code/a.py", "code/new.py"])
def test_newer_code_is_a_warning_and_an_error_if_strict(clone: Path, onecycle: Run, path: str) -> None:
    (clone / path).write_text("newer\n", encoding="utf-8")
    dep = path.partition("/")[0]
    line = f"make: {dep} is not what it ran with, so its results may be out of date; {REPRO}\n"
    assert onecycle(clone, "check-lock") == (0, f"warning: {line}", "")
    assert onecycle(clone, "check-lock", "--strict") == (1, f"error: {line}", "")


def test_a_comment_in_params_is_no_news_to_a_stage_that_reads_the_file(clone: Path) -> None:
    deps = [*PIPELINE["stages"]["make"]["deps"], "params.yaml"]
    write(clone, "dvc.yaml", {"stages": {**PIPELINE["stages"], "make": {**PIPELINE["stages"]["make"], "deps": deps}}})
    command(clone, "dvc", "repro", "-q", "make")
    with (clone / "params.yaml").open("a", encoding="utf-8") as file:
        file.write("# a remark\n")
    assert command(clone, "dvc", "status", "--json").stdout.count("params.yaml") == 1
    assert found(wrong=False) == []
    write(clone, "params.yaml", {**PARAMS, "seed": 1})
    assert found(wrong=True) == ["make: seed is 0 in dvc.lock and 1 in params.yaml"]


def test_a_result_that_is_not_the_recorded_one(clone: Path, onecycle: Run) -> None:
    (clone / "result.json").write_text("better\n", encoding="utf-8")
    code, output, _ = onecycle(clone, "check-lock")
    assert (code, output) == (1, f"error: use: result.json is not what dvc.lock records; {REPRO}\n")
    (clone / "result.json").unlink()
    assert found(wrong=True) == ["use: result.json is missing"]


def test_a_lock_that_was_merged_from_two_runs(clone: Path) -> None:
    """Each half is some run's, and together they are none's."""
    lock = yaml.safe_load((clone / "dvc.lock").read_text(encoding="utf-8"))
    lock["stages"]["use"]["deps"][0]["md5"] = "0" * 32
    write(clone, "dvc.lock", lock)
    assert found(wrong=True) == ["use: dvc.lock has another data.txt here than where make wrote it"]


def test_a_name_in_a_lock_steers_neither_terminal_nor_workflow(clone: Path, onecycle: Run) -> None:
    lock = yaml.safe_load((clone / "dvc.lock").read_text(encoding="utf-8"))
    lock["stages"]["use"]["outs"].append({"path": "a\n::error::b\x1b[31m", "md5": "0" * 32})
    write(clone, "dvc.lock", lock)
    code, output, _ = onecycle(clone, "check-lock")
    assert (code, output.count("\n")) == (1, 1) and "a?::error::b?[31m is among its outs in dvc.lock" in output


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("dvc.lock", None, "dvc.lock is missing; run `dvc repro` and commit it with the results"),
        ("dvc.lock", "<<<<<<< HEAD\nstages:\n=======\n", "DVC cannot read this workspace: "),
        ("dvc.yaml", "stages: 3\n", "DVC cannot read this workspace: "),
        (".dvc/config", None, "DVC cannot read this workspace: you are not inside of a DVC repository"),
    ],
)
def test_what_cannot_be_checked(clone: Path, onecycle: Run, name: str, content: str | None, sentence: str) -> None:
    if content is None:
        (clone / name).unlink()
        if name == ".dvc/config":
            shutil.rmtree(clone / ".dvc")
    else:
        (clone / name).write_text(content, encoding="utf-8")
    code, output, said = onecycle(clone, "check-lock")
    assert (code, output) == (2, "")
    assert said.startswith(f"error: {sentence}") and said.count("\n") == 1


def test_it_loads_neither_torch_nor_mlflow(clone: Path) -> None:
    code = "import sys; from onecycle.lock_check import mismatches as d; list(d()); print(*sys.modules)"
    loaded = set(command(clone, "python", "-c", code).stdout.split())
    assert "dvc.repo" in loaded and not {"torch", "mlflow", "pandas"} & loaded
