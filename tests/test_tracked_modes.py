"""What a row holds in the end, and ways to execute: a row for each that runs a stage, none for one that runs none."""

from __future__ import annotations

import hashlib
import json
import shlex
from pathlib import Path
from typing import Any

import pytest
from conftest import command, set_params
from mlflow import MlflowClient
from test_pipeline import ran

from onecycle import paths, yaml_values
from onecycle.params import flatten, load
from onecycle.tracking.collect import STAGES, collect


def client(workspace: Path) -> MlflowClient:
    """Of a workspace's own store."""
    return MlflowClient(f"sqlite:///{workspace / 'mlflow.db'}")


def rows(workspace: Path) -> list[Any]:
    """The rows of a workspace's store, oldest first."""
    return list(client(workspace).search_runs(["1"], order_by=["attributes.start_time ASC"]))


def test_a_repro_of_everything_in_a_fresh_clone_is_one_whole_row(pipeline: Path, tmp_path: Path) -> None:
    [row] = rows(pipeline)
    assert row.info.status == "FINISHED"
    assert row.data.params == {
        name: yaml_values.spelled(value) for name, value in flatten(load(pipeline / paths.PARAMS)).items()
    }
    found = {stage: collect(stage, pipeline) for stage in STAGES}
    for stage in found.values():
        assert {name: row.data.metrics[name] for name in stage.metrics} == stage.metrics
    for name, steps in (("train/loss", 3), ("validation/accuracy", 3), ("lr_range/loss", 20)):
        assert len(client(pipeline).get_metric_history(row.info.run_id, name)) == steps
    assert "system/cpu_utilization_percentage" in row.data.metrics
    got = Path(client(pipeline).download_artifacts(row.info.run_id, "", str(tmp_path)))
    files = {f"{folder}/{file.name}" for stage in found.values() for file, folder in stage.artifacts}
    assert {"stats/samples.png", "report/index.html", "report/figures/curves.png"} <= files
    files.add("source/dvc.lock")
    assert {file.relative_to(got).as_posix() for file in got.rglob("*") if file.is_file()} == files
    assert (got / "source/dvc.lock").read_bytes() == (pipeline / paths.DVC_LOCK).read_bytes()
    dataset = json.loads((pipeline / paths.DATASET / "dataset.json").read_text(encoding="utf-8"))
    assert row.inputs.dataset_inputs[0].dataset.digest == dataset["digest"][:32]

    tags, commit = row.data.tags, command(pipeline, "git", "rev-parse", "HEAD~1").stdout.strip()
    assert (tags["git.commit"], tags["git.branch"], tags["git.dirty"]) == (commit, "main", "false")
    assert (tags["mlflow.runName"], tags["mlflow.source.name"]) == (f"main {commit[:7]}", "dvc repro")
    assert tags["dvc.stages"] == ", ".join(f"{stage} ran" for stage in STAGES)
    assert tags["dvc.lock"] == hashlib.sha256((pipeline / paths.DVC_LOCK).read_bytes()).hexdigest()
    assert tags["device"].startswith("cpu")
    assert all(tags[f"version.{name}"] for name in ("python", "torch", "dvc", "mlflow"))
    note = tags["mlflow.note.content"]
    assert f"| test accuracy | {row.data.metrics['test/accuracy']:.2%} |" in note
    assert note.endswith(f"    git checkout {commit}\n    dvc repro")


def test_back_at_earlier_params_nothing_is_trained_again(workspace: Path) -> None:
    """DVC's run-cache has it, and the row says so; evaluate alone, which is no work, does not get into that."""
    lock = (workspace / "dvc.lock").read_bytes()
    set_params(workspace, {"batch_size": 64, "epochs": 1, "one_cycle.max_at_epoch": 0.5})
    assert ran(command(workspace, "dvc", "repro").stdout) == ["params", "lr_range", "train", "evaluate", "report"]
    command(workspace, "git", "checkout", "params.yaml")
    assert ran(command(workspace, "dvc", "repro").stdout) == ["params", "evaluate"]
    assert (workspace / "dvc.lock").read_bytes() == lock
    assert command(workspace, "git", "status", "--porcelain").stdout == ""
    assert "up to date" in command(workspace, "dvc", "status").stdout
    command(workspace, "onecycle", "sync")
    away, back = rows(workspace)
    kept = "download cached, stats cached, lr_range cached, train cached"
    assert back.data.tags["dvc.stages"] == f"{kept}, evaluate ran, report cached"
    assert back.data.tags["dvc.lock"] == hashlib.sha256(lock).hexdigest()
    for stage in STAGES:
        found = collect(stage, workspace)
        assert {name: back.data.metrics[name] for name in found.metrics} == found.metrics
    assert len(client(workspace).get_metric_history(back.info.run_id, "train/loss")) == 3
    assert len(client(workspace).get_metric_history(away.info.run_id, "train/loss")) == 1


@pytest.mark.parametrize("words", [("stash",), ("commit", "-qam", "mirrored")], ids=["stashed", "another branch"])
def test_a_row_is_whole_though_its_results_are_put_away_at_once(workspace: Path, words: tuple[str, ...]) -> None:
    set_params(workspace, {"evaluate.tta": "mirror"})
    command(workspace, "git", "switch", "-qc", "idea")
    repro = "dvc repro > repro.log && sha256sum dvc.lock > ../left.txt && rm repro.log && git " + shlex.join(words)
    command(workspace, "sh", "-c", f"{repro} && git switch -q main")
    left = (workspace.parent / "left.txt").read_text(encoding="utf-8").split()[0]
    assert hashlib.sha256((workspace / "dvc.lock").read_bytes()).hexdigest() != left
    command(workspace, "onecycle", "sync")
    [row] = rows(workspace)
    assert (row.info.status, row.data.tags["dvc.lock"]) == ("FINISHED", left)
    kept = "download cached, stats cached, lr_range cached, train cached"
    assert row.data.tags["dvc.stages"] == f"{kept}, evaluate ran, report ran"


@pytest.mark.slow
def test_an_experiment_that_fails_after_training_has_not_trained_for_nothing(workspace: Path) -> None:
    """Its folder is gone, and its checkpoints with its success; DVC's run-cache is what is left of it."""
    evaluate = workspace / "stages/evaluate.py"
    whole = evaluate.read_text(encoding="utf-8")
    evaluate.write_text(whole.replace("def main(", "raise MemoryError('full')\n\n\ndef main("), encoding="utf-8")
    experiment = ("dvc", "exp", "run", "--temp", "-S", "epochs=2")
    failed = command(workspace, *experiment, check=False)
    assert failed.returncode != 0 and "Running stage 'train'" in failed.stdout, failed.stdout + failed.stderr
    evaluate.write_text(whole, encoding="utf-8")
    again = command(workspace, *experiment).stdout
    assert "Stage 'train' is cached" in again and ran(again)[-2:] == ["evaluate", "report"]


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_commands_in_a_description_make_the_row_again(workspace: Path, tmp_path: Path) -> None:
    """In another clone, with a cache of its own; on a CPU the figures are the same to the last digit."""
    command(workspace, "dvc", "exp", "run", "--temp", "-S", "epochs=2", "-S", "seed=5", "train")
    command(workspace, "onecycle", "sync")
    [row] = rows(workspace)
    lines = [line.strip() for line in row.data.tags["mlflow.note.content"].splitlines() if line.startswith("    ")]
    assert len(lines) == 3
    assert lines[0] == f"onecycle reproduce {row.info.run_id}"  # test_reproduce has that
    command(tmp_path, "git", "clone", "-q", str(workspace), "clone")
    for line in lines[1:]:
        command(tmp_path / "clone", *line.split(), ONECYCLE_TRACKING="off")
    for stage in ("stats", "lr_range", "train"):
        found = collect(stage, tmp_path / "clone")
        again = found.metrics | (found.series[-1][1] if found.series else {})
        assert again and {name: row.data.metrics[name] for name in again} == again
    history = Path(client(workspace).download_artifacts(row.info.run_id, "train/history.csv", str(tmp_path)))
    assert (tmp_path / "clone" / paths.HISTORY).read_bytes() == history.read_bytes()


@pytest.mark.slow
def test_an_experiment_a_repro_with_nothing_to_do_and_a_stage_by_hand(workspace: Path) -> None:
    change = "one_cycle.max_lr=0.02"
    command(workspace, "dvc", "exp", "run", "--name", "odd-name", "-S", change, "train")
    lock = (workspace / "dvc.lock").read_bytes()
    assert "Running stage" not in command(workspace, "dvc", "repro", "train").stdout
    set_params(workspace, {"gate.floor": 0.5})  # which only the stage that checks params.yaml looks at
    assert "Running stage 'params'" in command(workspace, "dvc", "repro", "train").stdout
    command(workspace, "python", "-m", "stages.stats")
    command(workspace, "onecycle", "sync")
    experiment, by_hand = rows(workspace)
    assert [row.info.status for row in (experiment, by_hand)] == ["FINISHED"] * 2

    assert experiment.info.run_name == experiment.data.tags["dvc.exp_name"] == "odd-name"
    assert experiment.data.tags["dvc.stages"] == "download cached, stats cached, lr_range cached, train ran"
    assert experiment.data.tags["params.changed"] == f"-S {change}"
    head = command(workspace, "git", "rev-parse", "HEAD").stdout.strip()
    assert experiment.data.tags["dvc.baseline"] == experiment.data.tags["git.commit"] == head
    assert experiment.data.tags["dvc.lock"] == hashlib.sha256(lock).hexdigest()
    assert f"dvc exp run -S {change}" in experiment.data.tags["mlflow.note.content"]
    assert experiment.data.params["one_cycle.max_lr"] == "0.02"
    assert {"stats/mean_red", "lr_range/loss", "train/loss"} <= set(experiment.data.metrics)

    assert by_hand.data.tags["dvc.stages"] == "download cached, stats ran"
    assert "dvc.exp_name" not in by_hand.data.tags
