"""What the tree promises: one reader of params.yaml, one importer of mlflow, deps that cover what computes a result."""

from __future__ import annotations

import ast
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

SOURCES = sorted(Path("src/onecycle").rglob("*.py"))
STAGES = sorted(path for path in Path("stages").glob("*.py") if path.stem != "__init__")

EDGES = {
    "onecycle": "sets a limit to threads, of which each row tells the number",
    "onecycle.checkpoint": "keeps state, changes none",
    "onecycle.cpu_quota": "how many threads a container may use",
    "onecycle.errors": "what a user is told",
    "onecycle.exits": "how a process ends",
    "onecycle.params": "DVC tracks its values one by one",
    "onecycle.paths": "where things lie",
    "onecycle.resuming": "when state is saved; the same bits either way",
    "onecycle.stage": "how a stage runs",
    "onecycle.tracking": "what MLflow is told",
}
"""Modules that stages use and do not list as dependencies: editing them must not cost an hour's training."""


def graph() -> dict[str, Any]:
    tree = YAML(typ="safe", pure=True).load(Path("dvc.yaml").read_text(encoding="utf-8"))
    assert isinstance(tree, dict)
    return tree


def module_name(path: Path) -> str:
    parts = path.with_suffix("").parts
    return ".".join(parts[1:] if parts[0] == "src" else parts).removesuffix(".__init__")


MODULES = {module_name(path): path for path in (*SOURCES, *STAGES)}


@cache
def imports(name: str, top_level_only: bool = False) -> frozenset[str]:
    """Names of modules that module `name` imports, its own package's and others'."""
    path = MODULES[name]
    tree = ast.parse(path.read_text(encoding="utf-8"))
    nodes = tree.body if top_level_only else ast.walk(tree)
    found: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            module = node.module or ""
            found |= {
                f"{module}.{alias.name}" if f"{module}.{alias.name}" in MODULES else module for alias in node.names
            }
    return frozenset(found)


def is_edge(name: str) -> bool:
    return name in EDGES or name.startswith("onecycle.tracking.")


def test_every_edge_is_one() -> None:
    """What no stage gets to but by another edge needs no name here."""
    todo, seen = [module_name(path) for path in STAGES], set[str]()
    while todo:
        name = todo.pop()
        if name not in seen and name in MODULES:
            seen.add(name)
            todo += () if is_edge(name) else imports(name)
    assert seen | {"onecycle"} >= EDGES.keys(), "the package itself comes with each of its modules"


def computing(stage: str) -> set[str]:
    """Paths of the modules that compute what `stage` writes: its own and, transitively, what they import."""
    todo, seen = [f"stages.{stage}"], set()
    while todo:
        name = todo.pop()
        if name in seen or name not in MODULES or is_edge(name):
            continue
        seen.add(name)
        todo += imports(name)
    return {MODULES[name].as_posix() for name in seen}


@pytest.mark.parametrize("stage", [path.stem for path in STAGES])
def test_deps_cover_the_modules_that_compute_a_stage(stage: str) -> None:
    deps = graph()["stages"][stage]["deps"]
    code = {dep for dep in deps if dep.startswith(("src/", "stages/"))}
    folders = {dep for dep in code if Path(dep).is_dir()}
    needed = computing(stage)
    assert {path for path in needed if not any(Path(path).is_relative_to(folder) for folder in folders)} <= code
    stale = {dep for dep in code - folders if dep not in needed and Path(dep).suffix == ".py"}
    if stage == "params":  # its rules are its result
        stale -= {"src/onecycle/params.py"}
    assert stale == set(), "listed, but nothing of it is used"


def test_every_stage_has_one_name_everywhere() -> None:
    stages = graph()["stages"]
    assert {path.stem for path in STAGES} == set(stages)
    for name, stage in stages.items():
        assert stage["cmd"] == f"python -m stages.{name}"
        outs = [
            next(iter(out)) if isinstance(out, dict) else out
            for key in ("outs", "metrics", "plots")
            for out in stage.get(key, [])
        ]
        assert all(out.startswith((f"results/{name}/", "data/", "models/")) for out in outs), outs


def test_stages_are_thin() -> None:
    for path in STAGES:
        lines = path.read_text(encoding="utf-8").splitlines()
        assert sum(bool(line.strip()) for line in lines) <= 50, path


def test_modules_fit_on_a_few_screens() -> None:
    for path in SOURCES:
        assert len(path.read_text(encoding="utf-8").splitlines()) <= 340, path


def test_imports_point_one_way() -> None:
    for name in MODULES:
        if name.startswith("onecycle"):
            assert not any(other.startswith("stages") for other in imports(name)), name
        else:
            assert not any(other.startswith("stages") for other in imports(name)), f"{name}: stage → stage"
    assert not any(other.startswith("onecycle.tracking") for other in imports("onecycle.training"))
    for leaf in ("onecycle.paths", "onecycle.errors"):
        assert not any(other.startswith("onecycle") for other in imports(leaf)), leaf


def test_one_importer_of_mlflow_and_one_reader_of_params() -> None:
    importers = {name for name in MODULES if any(other.split(".")[0] == "mlflow" for other in imports(name))}
    assert importers
    assert all(name.startswith("onecycle.tracking") for name in importers), importers
    readers = {name for name, path in MODULES.items() if "load(paths.PARAMS)" in path.read_text(encoding="utf-8")}
    assert readers == {
        "onecycle.actions",
        "onecycle.reproduction.rerun",
        "onecycle.reproduction.surroundings",
        "onecycle.stage",
        "stages.params",
    }


@pytest.mark.parametrize("stage", ["params", "download", "stats", "report"])
def test_stages_without_torch(stage: str) -> None:
    code = f"import sys, stages.{stage}, onecycle.tracking; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert not {"torch", "torchvision", "mlflow", "albumentations", "matplotlib.pyplot"} & loaded
    assert not {"sklearn", "scipy", "statsmodels"} & loaded
    if stage != "report":
        assert "pandas" not in loaded
    if stage == "params":
        assert "numpy" not in loaded
