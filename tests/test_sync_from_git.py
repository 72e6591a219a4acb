"""`onecycle sync --from-git`: what comes back of the rows when mlflow.db is gone."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Run, command, set_params
from mlflow import MlflowClient

from onecycle import paths
from onecycle.dvc_lock import outputs, read_lock

Sync = Callable[[Path], list[str]]


@pytest.fixture
def bare(workspace: Path) -> Path:
    """A workspace whose models and galleries are nowhere, so that no model is exported, which takes ten seconds."""
    for file in (paths.MODEL, paths.GALLERY_IMAGES):
        forget(workspace, file)
    return workspace


def forget(workspace: Path, path: Path) -> None:
    """Remove a DVC out from the workspace and from the cache."""
    outs = [out for stage in read_lock(workspace).values() for out in stage["outs"] if out["path"] == path.as_posix()]
    for out in outs:
        (workspace / ".dvc/cache/files/md5" / out["md5"][:2] / out["md5"][2:]).unlink(missing_ok=True)
    (workspace / path).unlink(missing_ok=True)


@pytest.fixture
def sync(onecycle: Run) -> Sync:
    """`sync(workspace)`: what `onecycle sync --from-git` says."""

    def said(workspace: Path) -> list[str]:
        code, output, error = onecycle(workspace, "sync", "--from-git")
        assert code == 0, error
        return output.splitlines()

    return said


def rows(workspace: Path) -> list[Any]:
    """The rows of a workspace's store."""
    return list(MlflowClient(f"sqlite:///{workspace / 'mlflow.db'}").search_runs(["1"]))


def artifacts(workspace: Path, row: Any) -> set[str]:
    """A row's files."""
    folder = workspace / "mlartifacts" / row.info.run_id / "artifacts"
    return {file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()}


def experiment(workspace: Path, name: str, accuracy: float) -> str:
    """An experiment as DVC leaves it, with changed params and results, but made in no time; returns its commit."""
    set_params(workspace, {"epochs": 2})
    metrics = json.loads((workspace / paths.EVALUATE_METRICS).read_text(encoding="utf-8"))
    text = json.dumps({**metrics, "accuracy": accuracy}, indent=2) + "\n"
    lock = (workspace / paths.DVC_LOCK).read_text(encoding="utf-8")
    old = next(
        out for out in read_lock(workspace)["evaluate"]["outs"] if out["path"] == paths.EVALUATE_METRICS.as_posix()
    )
    new = hashlib.md5(text.encode()).hexdigest()
    lock = lock.replace(old["md5"], new).replace("epochs: 3", "epochs: 2")
    (workspace / paths.DVC_LOCK).write_text(lock, encoding="utf-8")
    (workspace / paths.EVALUATE_METRICS).write_text(text, encoding="utf-8")
    baseline = command(workspace, "git", "rev-parse", "HEAD").stdout.strip()
    command(workspace, "git", "commit", "-qam", f"dvc: experiment {name}")
    commit = command(workspace, "git", "rev-parse", "HEAD").stdout.strip()
    command(workspace, "git", "update-ref", f"refs/exps/{baseline[:2]}/{baseline[2:]}/{name}", commit)
    command(workspace, "git", "reset", "-q", "--hard", baseline)
    return baseline


def test_rows_come_back_for_the_workspace_experiments_and_references_and_only_once(bare: Path, sync: Sync) -> None:
    workspace = bare
    reference = workspace / "results/reference/tiny/seed-0"
    for path in (paths.HISTORY, paths.EVALUATE_METRICS):  # as a reference run keeps them, without `results/`
        (reference / path.relative_to("results")).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(workspace / path, reference / path.relative_to("results"))
    shutil.copy(workspace / paths.PARAMS, reference)
    set_params(reference, {"epochs": 4})
    trained_from = command(workspace, "git", "rev-parse", "HEAD").stdout.strip()
    environment = {"commit": trained_from, "device": "NVIDIA H200, bfloat16", "versions": {"torch": "2.11.0"}}
    (reference / "environment.json").write_text(json.dumps(environment), encoding="utf-8")
    command(workspace, "git", "add", "-A")
    command(workspace, "git", "commit", "-qm", "reference")
    baseline = experiment(workspace, "odd-name", 0.125)

    assert sync(workspace)[-3:] == ["odd-name: added", "workspace: added", "tiny/seed-0: added"]
    found = {row.info.run_name: row for row in rows(workspace)}
    assert len(found) == 3
    exp, tiny = found.pop("odd-name"), found.pop("tiny/seed-0")
    [here] = found.values()
    assert {row.info.status for row in (exp, tiny, here)} == {"FINISHED"}

    kept = json.loads((workspace / paths.EVALUATE_METRICS).read_text(encoding="utf-8"))["accuracy"]
    accuracies = [row.data.metrics["test/accuracy"] for row in (exp, tiny, here)]
    assert accuracies == pytest.approx([0.125, kept, kept])
    assert all(row.data.metrics["train/loss"] > 0 for row in (exp, tiny, here))
    assert [row.data.params["epochs"] for row in (exp, tiny, here)] == ["2", "4", "3"]
    assert {len(row.data.params) for row in (exp, tiny, here)} == {len(here.data.params)}
    assert exp.data.tags["dvc.baseline"] == exp.data.tags["git.commit"] == baseline
    assert exp.data.tags["params.changed"] == "-S epochs=2"
    assert exp.data.tags["rebuilt"] == "from git"
    told = {"git.commit": trained_from, "params.changed": "-S epochs=4", "device": "NVIDIA H200, bfloat16"}
    assert told.items() <= tiny.data.tags.items() and tiny.data.tags["version.torch"] == "2.11.0"
    lock = (workspace / paths.DVC_LOCK).read_bytes()
    assert here.data.tags["dvc.lock"] == hashlib.sha256(lock).hexdigest()
    stages = "download cached, stats cached, lr_range cached, train cached, evaluate cached, report cached"
    assert here.data.tags["dvc.stages"] == stages
    assert here.inputs.dataset_inputs[0].dataset.name == "digits"
    assert {"stats/samples.png", "report/index.html", "evaluate/predictions.parquet"} <= artifacts(workspace, here)
    assert {"train/history.csv", "evaluate/metrics.json"} == artifacts(workspace, tiny)
    assert here.info.start_time == int((workspace / paths.DVC_LOCK).stat().st_mtime * 1000)

    assert [line.endswith("is there") for line in sync(workspace)[-3:]] == [True] * 3
    assert len(rows(workspace)) == 3


def test_a_journal_that_cannot_be_sent_keeps_no_row_from_coming_back(bare: Path, onecycle: Run) -> None:
    (bare / ".state/journal/damaged").mkdir(parents=True)
    (bare / ".state/journal/damaged/entries.jsonl").write_text("no JSON\n{}\n", encoding="utf-8")
    code, output, error = onecycle(bare, "sync", "--from-git")
    assert (code, output.splitlines()[-1]) == (2, "workspace: added")
    said = error.splitlines()[-1]
    assert said.startswith("error: ") and "damaged" in said
    assert len(rows(bare)) == 1


def test_a_reference_run_that_is_the_workspaces_too_is_one_row(bare: Path, sync: Sync) -> None:
    kept = bare / "results/reference/exercise/seed-0"
    kept.mkdir(parents=True)
    shutil.copy(bare / paths.PARAMS, kept)
    model = outputs(read_lock(bare))[paths.MODEL.as_posix()]
    hashes = {"outputs": {paths.MODEL.as_posix(): model}, "code": {}}
    (kept / "hashes.json").write_text(json.dumps(hashes), encoding="utf-8")
    shutil.copytree(bare / "results/train", kept / "train")
    command(bare, "git", "add", "-A")
    command(bare, "git", "commit", "-qm", "recorded")
    assert sync(bare)[-2:] == ["workspace: added", "exercise/seed-0: is there"]
    assert len(rows(bare)) == 1


def test_only_what_dvc_lock_records_comes_back(bare: Path, sync: Sync) -> None:
    """A result that was changed since, or is in neither git nor the cache, is left out; its numbers are not made up."""
    metrics = bare / paths.EVALUATE_METRICS
    metrics.write_text(metrics.read_text(encoding="utf-8").replace("accuracy", "accurasy"), encoding="utf-8")
    forget(bare, paths.EVALUATE_METRICS)
    metrics.write_text("{}", encoding="utf-8")
    forget(bare, paths.SAMPLES_PNG)
    set_params(bare, {"epochs": 77})  # edited since; dvc.lock knows what was used
    sync(bare)
    [row] = rows(bare)
    assert row.data.params["epochs"] == "3"
    assert "test/accuracy" not in row.data.metrics and "train/loss" in row.data.metrics
    files = artifacts(bare, row)
    assert "stats/samples.png" not in files and "stats/stats.json" in files
    assert "evaluate/metrics.json" not in files and "evaluate/confusion.csv" in files


def test_results_of_another_model_do_not_come_back(bare: Path, sync: Sync, onecycle: Run) -> None:
    """As after `dvc exp run -S seed=5 train`: what is recorded of the evaluation is of the model before."""
    lock = read_lock(bare)
    [model] = [out["md5"] for out in lock["train"]["outs"] if out["path"] == paths.MODEL.as_posix()]
    text = (bare / paths.DVC_LOCK).read_text(encoding="utf-8")
    before, evaluate, after = text.partition("  evaluate:\n")
    (bare / paths.DVC_LOCK).write_text(before.replace(model, "0" * 32) + evaluate + after, encoding="utf-8")
    sync(bare)
    [row] = rows(bare)
    assert row.data.tags["dvc.stages"] == "download cached, stats cached, lr_range cached, train cached"
    assert "train/loss" in row.data.metrics and "test/accuracy" not in row.data.metrics
    (bare / "mlflow.db").unlink()
    metrics = json.loads(onecycle(bare, "show", "workspace", "--json")[1])["metrics"]
    assert "train/loss" in metrics and "test/accuracy" not in metrics


def test_files_that_are_partial_or_older_cost_at_most_their_own_row(bare: Path, sync: Sync) -> None:
    """A pull that was interrupted has brought one file of the data set; other runs are of a time with other files."""
    new = bare / "results/reference/new/seed-0"
    shutil.copytree(bare / "results/train", new / "train")
    (new / "environment.json").write_text('{"weather": "fair"}', encoding="utf-8")
    shutil.copy(bare / paths.PARAMS, new)
    old = bare / "results/reference/old/seed-0"
    (old / "train").mkdir(parents=True)
    (old / "train/history.csv").write_text("rate,loss\n0.1,2.3\n", encoding="utf-8")
    shutil.copy(bare / paths.PARAMS, old)
    command(bare, "git", "add", "-A")
    command(bare, "git", "commit", "-qm", "runs of other times")
    cache = bare / ".dvc/cache/files/md5"
    [arrays] = [out["md5"] for out in read_lock(bare)["download"]["outs"]]
    for file in json.loads((cache / arrays[:2] / arrays[2:]).read_bytes()):
        if file["relpath"] == "train_labels.npy":
            (cache / file["md5"][:2] / file["md5"][2:]).unlink()
            (bare / paths.DATASET / file["relpath"]).unlink()
    *_, of_workspace, of_new, of_old = sync(bare)
    assert of_new.startswith("new/seed-0: environment.json of new/seed-0 must hold nothing but device, ")
    assert of_old == "old/seed-0: what train wrote lacks 'epoch', so no row"
    assert of_workspace == "workspace: added"
    [row] = rows(bare)
    assert "test_images" in row.inputs.dataset_inputs[0].dataset.profile
    assert "train_images" not in row.inputs.dataset_inputs[0].dataset.profile


def test_a_row_that_the_pipeline_made_is_not_made_again(bare: Path, sync: Sync) -> None:
    """Not for the experiment that the workspace was taken from either, and not after a person deleted it."""
    experiment(bare, "odd-name", 0.25)
    sync(bare)
    assert len(rows(bare)) == 2
    command(bare, "git", "checkout", "-q", "refs/exps/" + _only_experiment(bare), "--", ".")
    assert [line.rpartition(": ")[2] for line in sync(bare)[-2:]] == ["is there", "is there"]
    client = MlflowClient(f"sqlite:///{bare / 'mlflow.db'}")
    for row in rows(bare):
        client.delete_run(row.info.run_id)
    assert [line.rpartition(": ")[2] for line in sync(bare)[-2:]] == ["was deleted", "is there"]
    assert rows(bare) == []


def _only_experiment(workspace: Path) -> str:
    listed = command(workspace, "git", "for-each-ref", "--format=%(refname)", "refs/exps").stdout.split()
    [name] = [name for name in listed if name.endswith("odd-name")]
    return name.removeprefix("refs/exps/")


@pytest.mark.slow
def test_the_model_comes_back_with_its_version(workspace: Path, sync: Sync) -> None:
    sync(workspace)
    [row] = rows(workspace)
    client = MlflowClient(f"sqlite:///{workspace / 'mlflow.db'}")
    [version] = client.search_model_versions("name = 'onecycle-digits'")
    assert row.data.tags["model.version"] == "onecycle-digits/1"
    assert version.tags["model.md5"] == hashlib.md5((workspace / paths.MODEL).read_bytes()).hexdigest()
    assert np.load(workspace / paths.GALLERY_IMAGES)["images"].dtype == np.uint8
