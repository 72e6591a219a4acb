"""The model in MLflow: what somebody gets who loads it without this project."""

from __future__ import annotations

import hashlib
import json
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Run, command, set_params
from mlflow import MlflowClient
from mlflow.models import get_model_info

from onecycle import paths
from onecycle.tracking import registry
from onecycle.tracking.journal import Journal
from onecycle.tracking.row_state import Model as Recorded
from onecycle.tracking.row_state import RowState
from onecycle.tracking.store import connect

MODEL = "onecycle-digits"

LOAD = """
import json, sys
import mlflow, numpy as np, torch

mlflow.set_tracking_uri(sys.argv[1])
images = np.load(sys.argv[2])
uri = f"models:/{sys.argv[3]}@candidate"
torch.cuda.is_available = lambda: True  # on a machine with a GPU it must not be looked for there
np.save("pyfunc.npy", mlflow.pyfunc.load_model(uri).predict(images))
torch.cuda.is_available = lambda: False
module = mlflow.pytorch.load_model(uri)
with torch.no_grad():
    np.save("pytorch.npy", module(torch.from_numpy(images)).numpy())
    np.save("one.npy", module(torch.from_numpy(images[:1])).numpy())
print(json.dumps([name for name in sys.modules if name.split(".")[0] in ("onecycle", "stages")]))
"""


def client(workspace: Path) -> MlflowClient:
    """Of a workspace's own store."""
    return MlflowClient(f"sqlite:///{workspace / 'mlflow.db'}")


def rows(workspace: Path) -> list[Any]:
    """The rows of a workspace, oldest first."""
    found = client(workspace).search_runs(["1"], order_by=["attributes.start_time ASC"])
    return list(found)


def test_who_loads_the_candidate_without_this_project_gets_the_evaluated_probabilities(
    pipeline: Path, tmp_path: Path
) -> None:
    (tmp_path / "load.py").write_text(LOAD, encoding="utf-8")
    test_images = pipeline / paths.DATASET / "test_images.npy"
    uri = f"sqlite:///{pipeline / 'mlflow.db'}"
    done = command(tmp_path, "python", "-P", "load.py", uri, str(test_images), MODEL)
    assert json.loads(done.stdout.splitlines()[-1]) == []
    expected = np.load(pipeline / paths.PROBABILITIES)
    for flavour in ("pyfunc", "pytorch"):
        got = np.load(tmp_path / f"{flavour}.npy")
        assert got.shape == expected.shape == (320, 10)
        assert np.abs(got - expected).max() <= 1e-5
    assert np.abs(np.load(tmp_path / "one.npy") - expected[:1]).max() <= 1e-5  # a batch of one


def test_the_version_says_what_goes_in_what_comes_out_and_what_it_needs(pipeline: Path) -> None:
    store = client(pipeline)
    version = store.get_model_version_by_alias(MODEL, "candidate")
    [row] = rows(pipeline)
    assert version.run_id == row.info.run_id
    assert version.tags["model.md5"] == hashlib.md5((pipeline / paths.MODEL).read_bytes()).hexdigest()
    assert version.tags["model.md5"] in (pipeline / "dvc.lock").read_text(encoding="utf-8")
    assert row.data.tags["model.version"] == f"{MODEL}/{version.version}" == f"{MODEL}/1"
    assert [f"models:/{output.model_id}" for output in row.outputs.model_outputs] == [version.source]
    assert row.data.tags["dvc.stages"].endswith("evaluate ran, report ran")

    [artifacts] = (pipeline / "mlartifacts").glob("models/*/artifacts")
    info = get_model_info(str(artifacts))
    assert info.signature and info.signature.outputs
    [takes], [gives] = info.signature.inputs.inputs, info.signature.outputs.inputs
    assert (takes.type, takes.shape) == (np.dtype(np.uint8), (-1, 32, 32, 3))
    assert (gives.type, gives.shape) == (np.dtype(np.float32), (-1, 10))
    assert info.metadata == {"classes": [str(digit) for digit in range(10)]}
    example = json.loads((artifacts / "input_example.json").read_text(encoding="utf-8"))
    assert np.shape(example) == (2, 32, 32, 3)
    assert np.std(example) > 0  # real pictures
    requirements = (artifacts / "requirements.txt").read_text(encoding="utf-8").splitlines()
    assert {line.partition("==")[0] for line in requirements} == {"mlflow", "torch", "numpy"}


def test_the_gate_makes_the_evaluated_model_the_champion(pipeline: Path, tmp_path: Path, onecycle: Run) -> None:
    """The workspace's dvc.lock, the row and the registry speak of one model."""
    workspace = tmp_path / "repo"
    shutil.copytree(pipeline, workspace, symlinks=True)
    assert onecycle(workspace, "sync", "--relocate")[0] == 0
    set_params(workspace, {"gate.floor": 0.0, "gate.margin": 0.05})
    gate = ("gate", "--baseline", f"models:/{MODEL}@champion", "--promote")
    code, first, _ = onecycle(workspace, *gate, "--allow-no-baseline")
    assert code == 0 and first.endswith(f"models:/{MODEL}@champion is version 1 now.\n")
    code, again, _ = onecycle(workspace, *gate)
    assert code == 0 and again.startswith("Gate: pass") and again.endswith("is version 1 already.\n")
    version = client(workspace).get_model_version_by_alias(MODEL, "champion")
    assert version.tags["gate.verdict"] == "pass"
    [row] = rows(workspace)
    [compared] = json.loads(onecycle(workspace, "compare", row.info.run_id, "workspace", "--json")[1])
    assert (compared["verdict"], compared["p"]) == ("no evidence", 1.0)
    assert set(compared["params"]) == {"gate.margin", "gate.floor"}


@pytest.mark.slow
def test_a_cached_evaluation_names_the_version_it_shares_and_a_new_store_gets_one(
    pipeline: Path, tmp_path: Path
) -> None:
    """`python -m stages.report` finds evaluate's results as DVC recorded them; a row of evaluate has the same model."""
    workspace = tmp_path / "repo"
    shutil.copytree(pipeline, workspace, symlinks=True, ignore=shutil.ignore_patterns("mlflow.db*", "mlartifacts"))
    for stage in ("report", "evaluate", "report"):
        command(workspace, "python", "-m", f"stages.{stage}", ONECYCLE_TRACKING="journal")
    command(workspace, "onecycle", "sync")
    store = client(workspace)
    first, second, third = rows(workspace)
    assert "evaluate cached" in first.data.tags["dvc.stages"]
    assert "evaluate ran" in second.data.tags["dvc.stages"]
    assert [row.data.tags["model.version"] for row in (first, second, third)] == [f"{MODEL}/1"] * 3
    [version] = store.search_model_versions(f"name = '{MODEL}'")
    assert version.run_id == first.info.run_id
    [logged] = store.search_logged_models(["1"])
    assert all([output.model_id for output in row.outputs.model_outputs] == [logged.model_id] for row in (first, third))
    assert store.get_model_version_by_alias(MODEL, "candidate").version == version.version
    assert not list((workspace / ".state/journal").glob("*/entries.jsonl"))


def test_a_model_by_another_hand_is_not_taken_for_the_one_that_was_evaluated(workspace: Path) -> None:
    """A train by hand has replaced models/model.pt since; only its name, from dvc.lock, tells which it was."""
    model = workspace / paths.MODEL
    recorded = hashlib.md5(model.read_bytes()).hexdigest()
    other = bytearray(model.read_bytes())
    other[-1] ^= 1
    model.unlink()
    model.write_bytes(other)
    command(workspace, "python", "-m", "stages.report", ONECYCLE_TRACKING="journal")
    [file] = (workspace / ".state/journal").glob("*/entries.jsonl")
    state = RowState.of(Journal(file.parent))
    assert state.stages["evaluate"] == "cached"
    assert state.model and (state.model.md5, state.model.file) == (recorded, None)
    command(workspace, "onecycle", "sync")
    with closing(sqlite3.connect(workspace / "mlflow.db")) as store:
        assert store.execute("SELECT count(*) FROM model_versions").fetchone() == (0,)


@pytest.mark.slow
def test_a_model_that_cannot_be_exported_costs_the_model_and_not_the_row(workspace: Path) -> None:
    command(workspace, "python", "-m", "stages.evaluate", ONECYCLE_TRACKING="journal")
    [kept] = (workspace / ".state/journal").glob("*/files/*/model.pt")
    kept.write_bytes(b"of a version that had another network")
    command(workspace, "onecycle", "sync")
    [row] = rows(workspace)
    assert row.info.status == "FINISHED"
    assert "is no model of this project" in row.data.tags["model.error"]
    assert "model.version" not in row.data.tags
    assert not list((workspace / ".state/journal").glob("*/entries.jsonl"))


@pytest.mark.slow
def test_a_sender_that_is_killed_over_the_model_leaves_it_to_the_next(workspace: Path) -> None:
    """Killed after the model was logged and before it became a version: no second one is logged."""
    command(workspace, "python", "-m", "stages.evaluate", ONECYCLE_TRACKING="journal")
    [journal] = (workspace / ".state/journal").iterdir()
    shutil.copytree(journal, workspace / "copy")
    command(workspace, "onecycle", "sync")
    with closing(sqlite3.connect(workspace / "mlflow.db")) as store, store:
        for table in ("registered_model_aliases", "model_version_tags", "model_versions"):
            store.execute(f"DELETE FROM {table}")
    shutil.copytree(workspace / "copy", journal)
    command(workspace, "onecycle", "sync")
    store_client = client(workspace)
    assert len(rows(workspace)) == 1
    assert len(store_client.search_logged_models(["1"])) == 1
    assert len(store_client.search_model_versions(f"name = '{MODEL}'")) == 1
    assert store_client.get_model_version_by_alias(MODEL, "candidate").run_id == rows(workspace)[0].info.run_id


def test_two_workspaces_that_register_one_model_at_once_share_the_first_version(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the one exports it, another does all of it; the export itself is not what this is about."""
    for name in ("one", "other"):
        (tmp_path / name / ".dvc").mkdir(parents=True)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'shared.db'}")
    monkeypatch.chdir(tmp_path / "one")
    store, model = connect(MODEL), Recorded("ab" * 16, "model.pt", "galleries.npz")
    runs = {name: store.create(name, 0) for name in ("one", "other")}

    def record(name: str) -> None:
        monkeypatch.chdir(tmp_path / name)  # whose lock it is
        registry.attach_model(store, runs[name], model, tmp_path, evaluated=1)
        monkeypatch.chdir(tmp_path / "one")

    def export(file: Path, pictures: Path, target: Path) -> None:
        target.mkdir()
        (target / "MLmodel").write_text(f"of: {Path.cwd().name}", encoding="utf-8")
        if Path.cwd().name == "one":
            record("other")

    monkeypatch.setattr(registry, "export", export)
    record("one")
    found = store.client.search_model_versions(f"name = '{MODEL}'")
    assert [(str(version.version), version.run_id) for version in found] == [("1", runs["other"])]
    tags = [store.client.get_run(run).data.tags["model.version"] for run in runs.values()]
    assert tags == [f"{MODEL}/1"] * 2
    [logged] = store.client.search_logged_models([store.experiment_id])
    assert found[0].source == f"models:/{logged.model_id}"
    assert str(store.client.get_model_version_by_alias(MODEL, "candidate").version) == "1"
