"""The whole pipeline through the real dvc, on digits: what runs, what is skipped, what is left behind."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pandas as pd
from conftest import command, set_params
from ruamel.yaml import YAML

from onecycle import paths

STAGES = ["params", "download", "stats", "lr_range", "train", "evaluate", "report"]


def ran(text: str) -> list[str]:
    return re.findall(r"Running stage '(\w+)'", text)


def test_a_fresh_clone_runs_every_stage(pipeline: Path) -> None:
    assert ran((pipeline / ".git" / "repro.log").read_text(encoding="utf-8")) == STAGES
    results = {name: value for name, value in vars(paths).items() if isinstance(value, Path) and name.isupper()}
    missing = [name for name, path in results.items() if not (pipeline / path).exists()]
    assert missing == []
    history = pd.read_csv(pipeline / paths.HISTORY)
    assert list(history["epoch"]) == [1, 2, 3]
    assert json.loads((pipeline / paths.EVALUATE_METRICS).read_text(encoding="utf-8"))["n"] == 320


def test_git_stays_clean_and_dvc_has_nothing_to_do(workspace: Path) -> None:
    assert command(workspace, "git", "status", "--porcelain").stdout == ""
    assert ran(command(workspace, "dvc", "repro").stdout) == []
    assert "up to date" in command(workspace, "dvc", "status").stdout
    assert not (workspace / ".state").exists() and not list(workspace.glob("mlflow.db*"))  # no stage, no row
    assert command(workspace, "git", "status", "--porcelain").stdout == ""


WITHOUT_MLFLOW = """
import sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name == "mlflow": raise RuntimeError("mlflow is not wanted here")

sys.meta_path.insert(0, Refuse())
"""


NOTE_WHAT_IS_READ = """
import atexit, json, os, sys
from onecycle import params

load, plain = params.load, params.Section.__getattribute__
prefixes, read = {}, set()

def loaded(path):
    tree = load(path)
    prefixes.update({id(value): f"{name}." for name, value in tree if isinstance(value, params.Section)})
    prefixes[id(tree)] = ""
    read.clear()  # its own checks do not count
    return tree

def noted(section, name):
    value = plain(section, name)
    if id(section) in prefixes and name in type(section).model_fields and not isinstance(value, params.Section):
        read.add(prefixes[id(section)] + name)  # a model file has a section, too, which is not that of params.yaml
    return value

params.load, params.Section.__getattribute__ = loaded, noted
atexit.register(lambda: open(os.path.join(os.environ["READ"], sys.orig_argv[-1]), "w").write(json.dumps(sorted(read))))
"""


def test_forced_again_the_lock_is_the_same_and_dvc_tracks_every_knob_that_was_read(
    workspace: Path, tmp_path: Path
) -> None:
    """To the byte: no timing, host, run id or path in anything that DVC hashes; and training repeats to the bit.

    With rows kept in the journal, all of it goes without MLflow. Knobs of `runtime` change no result.
    """
    read = tmp_path / "read"
    read.mkdir()
    (tmp_path / "sitecustomize.py").write_text(WITHOUT_MLFLOW + NOTE_WHAT_IS_READ, encoding="utf-8")
    hooks = {"ONECYCLE_TRACKING": "journal", "PYTHONPATH": str(tmp_path), "READ": str(read)}
    before = (workspace / "dvc.lock").read_bytes()
    model = (workspace / paths.MODEL).read_bytes()
    assert ran(command(workspace, "dvc", "repro", "--force", **hooks).stdout) == STAGES
    assert (workspace / "dvc.lock").read_bytes() == before
    assert (workspace / paths.MODEL).read_bytes() == model
    assert command(workspace, "git", "status", "--porcelain").stdout == ""

    tracked = YAML(typ="safe").load(workspace / "dvc.yaml")["stages"]
    knobs = {stage: set(json.loads((read / f"stages.{stage}").read_text(encoding="utf-8"))) for stage in STAGES}
    for stage in STAGES:
        covered = set(tracked[stage].get("params", [])) | {"runtime"}
        assert {key for key in knobs[stage] if not {key, key.partition(".")[0]} & covered} == set()
    assert {"seed", "epochs", "one_cycle.max_lr", "augment.pad", "runtime.workers"} <= knobs["train"]
    assert {"evaluate.tta", "train.device"} <= knobs["evaluate"]


def test_a_knob_reruns_exactly_what_reads_it(pipeline: Path, tmp_path: Path) -> None:
    """What comes after those reruns only if their outputs change; the report tells of every knob but runtime's."""
    knobs: dict[str, tuple[object, set[str]]] = {
        "data.limit": (300, {"download"}),
        "seed": (3, {"train"}),
        "epochs": (4, {"train"}),
        "batch_size": (16, {"lr_range", "train"}),
        "lr_range.method": ("valley", {"lr_range"}),
        "one_cycle.max_lr": (0.02, {"train"}),
        "one_cycle.base_momentum": (0.8, {"lr_range", "train"}),
        "optimizer.name": ("sgd", {"lr_range", "train"}),
        "evaluate.tta": ("mirror", {"evaluate"}),
        "runtime.checkpoint_seconds": (5, set()),
    }
    changed = tmp_path / "repo"
    changed.mkdir()
    for entry in pipeline.iterdir():  # everything is only read, but for params.yaml
        if entry.name not in ("params.yaml", ".dvc"):
            (changed / entry.name).symlink_to(entry)
    (changed / ".dvc").mkdir()
    for name in ("config", ".gitignore"):
        (changed / ".dvc" / name).write_bytes((pipeline / ".dvc" / name).read_bytes())
    (changed / "params.yaml").write_bytes((pipeline / "params.yaml").read_bytes())
    set_params(changed, {key: value for key, (value, _) in knobs.items()})
    status = json.loads(command(changed, "dvc", "status", "--json").stdout)
    found: dict[str, set[str]] = {key: set() for key in knobs}
    for stage, changes in status.items():
        for change in changes:
            told = change.get("changed deps", {}).get("params.yaml") if isinstance(change, dict) else None
            for name in told if isinstance(told, dict) else ():  # a param, or a section that the stage lists whole
                for key in knobs:
                    if key == name or key.startswith(f"{name}."):
                        found[key].add(stage)
    assert found == {
        key: stages | ({"report"} if not key.startswith("runtime.") else set()) for key, (_, stages) in knobs.items()
    }


def test_refused_params_leave_every_output_in_place(workspace: Path) -> None:
    set_params(workspace, {"one_cycle.max_at_epoch": 30})
    done = command(workspace, "dvc", "repro", check=False)
    assert done.returncode == 255
    assert "error: params.yaml: one_cycle.max_at_epoch must be < epochs (3), got 30.0" in done.stderr
    assert command(workspace, "git", "status", "--porcelain").stdout.split() == ["M", "params.yaml"]
    assert all((workspace / path).exists() for path in (paths.MODEL, paths.REPORT_HTML, paths.DATASET))


def test_evaluation_alone(workspace: Path) -> None:
    set_params(workspace, {"evaluate.tta": "mirror"})
    assert ran(command(workspace, "dvc", "repro", "--single-item", "evaluate", ONECYCLE_TRACKING="off").stdout) == [
        "evaluate"
    ]
    metrics = json.loads((workspace / paths.EVALUATE_METRICS).read_text(encoding="utf-8"))
    assert 0 <= metrics["tta_accuracy"] <= 1


def test_dvc_speaks_of_metrics_params_and_plots(workspace: Path) -> None:
    shown = json.loads(command(workspace, "dvc", "metrics", "show", "--json").stdout)[""]["data"]
    measured = (paths.STATS_JSON, paths.LR_RANGE_SUGGESTION, paths.TRAIN_METRICS, paths.EVALUATE_METRICS)
    assert set(shown) == {path.as_posix() for path in measured}
    set_params(workspace, {"epochs": 9})
    changed = json.loads(command(workspace, "dvc", "params", "diff", "--json").stdout)
    assert changed == {"params.yaml": {"epochs": {"old": 3, "new": 9, "diff": 6}}}
    table = command(workspace, "dvc", "exp", "show", "--csv").stdout
    assert {"accuracy", "accuracy_low", "validation_accuracy"} <= set(table.splitlines()[0].split(","))
    page = command(workspace, "dvc", "plots", "show", "--json").stdout
    plots = json.loads(page)
    assert not plots.get("errors"), plots["errors"]
    drawn = {"loss", "confusion", *(path.as_posix() for path in (paths.LR_RANGE_CURVE, paths.HISTORY, paths.SCHEDULE))}
    assert {name.rpartition("::")[2] for name in plots["data"]} == drawn


def test_an_experiment_is_one_row_and_leaves_the_workspace_alone(workspace: Path) -> None:
    from mlflow import MlflowClient

    changes = ("-S", "epochs=2", "-S", "evaluate.tta=mirror")
    command(workspace, "dvc", "exp", "run", "--temp", "--name", "quick", *changes)
    command(workspace, "onecycle", "sync")
    assert command(workspace, "git", "status", "--porcelain").stdout == ""
    assert "quick" in command(workspace, "dvc", "exp", "show", "--csv").stdout
    client = MlflowClient(f"sqlite:///{workspace / 'mlflow.db'}")
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    rows = {run.info.run_name: run for run in client.search_runs(experiments)}
    row = rows["quick"]
    assert len(rows) == 1
    assert row.info.status == "FINISHED"
    assert (row.data.params["epochs"], row.data.params["evaluate.tta"]) == ("2", "mirror")
    assert {"stats/mean_red", "train/loss", "validation/accuracy", "test/accuracy"} <= set(row.data.metrics)
    found = {entry.path for entry in client.list_artifacts(row.info.run_id)}
    assert {"stats", "lr_range", "train", "evaluate", "report"} <= found


def test_a_queued_copy_runs_its_own_code(workspace: Path) -> None:
    """An editable install points at the original's src; a stage must take the source tree it was started in."""
    code = "import stages, onecycle; print(onecycle.__file__)"
    shown = command(workspace, "python", "-c", code).stdout
    assert Path(shown.strip()).is_relative_to(workspace)
    assert os.environ.get("PYTHONPATH") is None
