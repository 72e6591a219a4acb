"""Recipes and their runs: what goes together, what is left out, the figures, the tables and the picture."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Run, command, set_params
from crafted_run import commit, errors, repository, write_run
from PIL import Image
from ruamel.yaml import YAML
from scipy import stats

from onecycle import paths, summary, tables
from onecycle.errors import UserError
from onecycle.executions import Found, executions
from onecycle.summary_figure import summary_figure, write_picture
from onecycle.tracking.journal import Journal, root

WRONG = {0: 600, 1: 612, 2: 630}
"""Of 10,000, by seed."""


def lock(folder: Path, seed: int, model: str, code: str = "c1") -> None:
    """A dvc.lock that says which params, code and model results are of."""
    train = {"deps": [{"path": "src/onecycle/training.py", "md5": code}], "params": {"params.yaml": {"seed": seed}}}
    evaluate = {"deps": [{"path": "models/model.pt", "md5": model}], "params": {"params.yaml": {"seed": seed}}}
    with (folder / paths.DVC_LOCK).open("w", encoding="utf-8") as file:
        YAML().dump({"schema": "2.0", "stages": {"train": train, "evaluate": evaluate}}, file)


def made(folder: Path, seed: int, wrong: int, code: str = "c1", **params: Any) -> None:
    """Results of a run in the workspace."""
    write_run(folder, errors(375, wrong - 375, 300 * seed))
    set_params(folder, {"seed": seed, **params})
    lock(folder, seed, f"model-{seed}", code)


def experiment(folder: Path, name: str, seed: int, wrong: int, **params: Any) -> None:
    """An experiment as DVC keeps it; the workspace stays."""
    head = command(folder, "git", "rev-parse", "HEAD").stdout.strip()
    made(folder, seed, wrong, **params)
    command(folder, "git", "update-ref", f"refs/exps/{head[:2]}/{head[2:]}/{name}", commit(folder, name))
    command(folder, "git", "reset", "-q", "--hard", head)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """HEAD and the workspace: seed 0. Experiments: seeds 1 and 2, another recipe twice, one that failed. Look only."""
    folder = repository(tmp_path_factory.mktemp("summary") / "repo")
    (folder / ".dvc").mkdir()
    (folder / ".gitignore").write_text(".state/\n", encoding="utf-8")
    made(folder, 0, WRONG[0])
    commit(folder, "results")
    for seed in (1, 2):
        experiment(folder, f"main-seed-{seed}", seed, WRONG[seed], code="c2" if seed == 2 else "c1")
    experiment(folder, "short-seed-1", 1, 900, epochs=12)
    experiment(folder, "short-seed-2", 2, 890, epochs=12, **{"gate.floor": 0.5})
    experiment(folder, "broken", 3, 700)
    head = command(folder, "git", "rev-parse", "HEAD").stdout.strip()
    command(folder, "git", "checkout", "-q", f"refs/exps/{head[:2]}/{head[2:]}/broken")
    (folder / paths.EVALUATE_METRICS).write_text("{}", encoding="utf-8")
    command(folder, "git", "update-ref", f"refs/exps/{head[:2]}/{head[2:]}/broken", commit(folder, "damaged"))
    command(folder, "git", "checkout", "-q", "main")
    write_run(folder / "results/reference/sgd/seed-5", errors(375, 300, 3000))
    set_params(folder / "results/reference/sgd/seed-5", {"seed": 5, "optimizer.name": "sgd"})
    return folder


@pytest.fixture
def found(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Found:
    monkeypatch.chdir(folder)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return executions()


def test_executions_are_found_once_each(found: Found) -> None:
    names = {run.names for run in found.runs}
    assert names == {
        ("workspace", "HEAD"),
        ("main-seed-1",),
        ("main-seed-2",),
        ("short-seed-1",),
        ("short-seed-2",),
        ("results/reference/sgd/seed-5",),
    }
    assert list(found.left_out) == ["broken"]
    assert found.left_out["broken"].startswith("results/evaluate/metrics.json of broken: accuracy is missing")


def test_groups_and_their_figures(found: Found) -> None:
    groups = summary.groups(found.runs)
    assert [group.label for group in groups] == ["as workspace", "sgd", "epochs=12"]
    group = groups[0]
    values = [1 - wrong / 10_000 for wrong in WRONG.values()]
    accuracy = group.metrics["accuracy"]
    assert sorted(group.values("accuracy")) == pytest.approx(sorted(values))
    assert (accuracy.value, accuracy.deviation, accuracy.n) == pytest.approx(
        (np.mean(values), np.std(values, ddof=1), 3)
    )
    expected = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert (accuracy.low, accuracy.high) == pytest.approx((expected.low, expected.high))
    assert group.best.names == ("workspace", "HEAD")
    alone = groups[1].metrics["accuracy"]
    assert (alone.n, alone.deviation, alone.low) == (1, None, None)
    assert not {"n", "accuracy_low", "accuracy_high"} & set(group.metrics)


def test_a_recipe_kept_as_a_reference_is_called_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = repository(tmp_path / "repo")
    made(folder, 0, 600)
    runs = {"mirror/seed-1": {}, "sgd/seed-0": {"optimizer.name": "sgd"}, "sgd/seed-1": {"optimizer.name": "sgd"}}
    runs |= {"twice/seed-0": {"epochs": 12}, "twice/seed-1": {"epochs": 13}}
    for number, (name, params) in enumerate(runs.items()):
        write_run(folder / "results/reference" / name, errors(375, 300 + number, 3000))
        set_params(folder / "results/reference" / name, {"seed": int(name[-1]), **params})
    commit(folder, "references")
    monkeypatch.chdir(folder)
    groups = summary.groups(executions().runs)
    assert {(group.label, group.differs, len(group.runs)) for group in groups} == {
        ("as workspace", "", 2),
        ("sgd", "optimizer.name=sgd", 2),
        ("epochs=12", "", 1),
        ("epochs=13", "", 1),
    }
    text = tables.markdown(summary.page(groups, {}))
    assert "| sgd | 2 |" in text
    assert "| sgd/seed-0 | sgd | 0 |" in text
    assert "sgd: optimizer.name=sgd" in text


def test_what_it_prints(found: Found) -> None:
    groups = summary.groups(found.runs)
    text = tables.markdown(summary.page(groups, found.left_out))
    assert "| as workspace | 3 | 93.86 ± 0.15 % | 93.48 to 94.24 % | 94.00 % | " in text
    assert "| main-seed-2 | as workspace | 2 | 93.70 % |" in text
    assert "| workspace = HEAD | as workspace | 0 | 94.00 % |" in text
    assert "as workspace: its runs come from 2 versions of the code" in text
    assert "epochs=12: its runs come" not in text
    assert "Left out: broken: " in text
    document = json.loads(json.dumps(summary.document(groups, found.left_out), allow_nan=False))
    assert [recipe["n"] for recipe in document["recipes"]] == [3, 1, 2]
    assert document["recipes"][0]["metrics"]["accuracy"]["deviation"] == pytest.approx(0.0015, abs=1e-4)
    assert document["recipes"][0]["best"] == "workspace"
    assert {run["seed"] for run in document["recipes"][0]["executions"]} == {0, 1, 2}
    assert document["recipes"][0]["training_seconds"] is None


def test_a_model_that_was_evaluated_again_is_one_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, onecycle: Run
) -> None:
    """On another processor, where it differs in last bits, and an image or two fall on the other side."""
    folder = repository(tmp_path / "repo")
    made(folder, 1, 612)
    commit(folder, "results")
    write_run(folder, errors(375, 238, 300), keep_params=True)
    monkeypatch.chdir(folder)
    assert [run.names for run in executions().runs] == [("workspace", "HEAD")]
    code, _, said = onecycle(folder, "compare", "HEAD,workspace,HEAD", "HEAD")
    assert code == 2 and "HEAD and workspace are the same run; give runs with different seeds" in said


def test_an_interval_ends_where_its_metric_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for seed, wrong in enumerate((110, 30)):
        write_run(tmp_path / f"results/reference/easy/seed-{seed}", np.arange(wrong))
        set_params(tmp_path / f"results/reference/easy/seed-{seed}", {"seed": seed})
    monkeypatch.chdir(tmp_path)
    [group] = summary.groups(executions().runs)
    means = group.metrics
    assert (means["accuracy"].value, means["accuracy"].high) == (pytest.approx(0.993), 1)
    assert (means["loss"].low, means["wrong"].low) == (0, 0)
    assert summary.interval(means["accuracy"]).endswith(" to 100.00 %")


def test_show_tells_what_an_experiment_changed(folder: Path, onecycle: Run) -> None:
    """Without a row, as in a fresh clone."""
    for name, changed in (("short-seed-1", "-S seed=1 -S epochs=12"), ("HEAD", ""), ("workspace", "")):
        code, said, _ = onecycle(folder, "show", name, "--json")
        assert (code, json.loads(said)["changed"]) == (0, changed)


@pytest.mark.parametrize(
    ("path", "content", "words"),
    [
        (paths.STATS_JSON, '{"mean": [1, 2]}', "what stats wrote is not as it writes it: "),
        (paths.STATS_JSON, "[" * 100_000, "what stats wrote is not as it writes it: "),
        (paths.HISTORY, "train_loss,epoch\n1.5\n", "what train wrote is not as it writes it: "),
        (paths.EVALUATE_METRICS, f'{{"accuracy": 1{"0" * 400}}}', "what evaluate wrote is not as it writes it: "),
        (paths.HISTORY, f"epoch,train_loss\n1,{'5' * 200_000}\n", "what train wrote is not as it writes it: "),
    ],
    ids=["a list too short", "too deep", "no epochs", "too large", "too long"],
)
def test_show_refuses_what_no_stage_writes(tmp_path: Path, onecycle: Run, path: Path, content: str, words: str) -> None:
    (tmp_path / "run" / path).parent.mkdir(parents=True)
    (tmp_path / "run" / path).write_text(content, encoding="utf-8")
    code, output, said = onecycle(tmp_path, "show", "run")
    assert (code, output) == (2, "") and said.startswith(f"error: run: its results cannot be read: {words}")


@pytest.mark.parametrize("content", ["{a: " * 50_000 + "1" + "}" * 50_000, "- " * 101 + "1"], ids=["keys", "lists"])
def test_show_refuses_params_nested_too_deep(tmp_path: Path, onecycle: Run, content: str) -> None:
    """PyYAML's C loader, left to itself, ends the process at the first."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / paths.PARAMS).write_text(content, encoding="utf-8")
    code, output, said = onecycle(tmp_path, "show", "run")
    assert (code, output) == (2, "")
    assert said == "error: params.yaml of run: cannot be read as YAML: is nested more than 100 deep\n"


def test_the_table_of_the_readme_has_no_picture(folder: Path, onecycle: Run) -> None:
    code, output, said = onecycle(folder, "summary", "--readme", "--picture", "seeds.png")
    assert (code, output) == (2, "") and said.endswith("run it without --picture\n")
    assert not (folder / "seeds.png").exists()


def test_times_come_from_rows(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a row whose training is whole; one that was interrupted has not all epochs."""
    monkeypatch.chdir(folder)
    for seed, epochs in ((0, 3), (1, 2)):
        journal = Journal(root() / f"host-{seed}")
        process = {"host": "elsewhere", "pid": 1, "started": 0.0}
        journal.append(
            "open",
            stage="train",
            row=f"{seed}",
            params={},
            process=process,
            execution={"process": process},
            workspace="",
        )
        for epoch in range(1, epochs + 1):
            journal.append("metrics", stage="train", values={"train/epoch_seconds": 20.5}, step=epoch)
        journal.append("metrics", stage="train", values={"train/epochs": 3.0}, step=None)
        journal.append("model", stage="evaluate", model={"md5": f"model-{seed}", "file": None, "pictures": None})
    Journal(root() / "host-damaged").append("open", stage="train", what="another version wrote")
    try:
        found = executions()
    finally:
        command(folder, "rm", "-r", ".state")
    assert "times" not in found.left_out
    groups = summary.groups(found.runs)
    assert groups[0].seconds == pytest.approx(61.5)
    assert {run.names[0]: run.seconds for run in groups[0].runs if run.seconds} == {"workspace": pytest.approx(61.5)}
    assert "| 61.5 s |" in tables.markdown(summary.page(groups, {}))


def test_a_time_that_only_the_reference_run_knows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = repository(tmp_path / "repo")
    made(folder, 0, 600)
    write_run(folder / "results/reference/exercise/seed-0", errors(375, 225, 0))
    environment = folder / "results/reference/exercise/seed-0/environment.json"
    environment.write_text('{"training_seconds": 12.3}', encoding="utf-8")
    commit(folder, "results, kept as a reference")
    monkeypatch.chdir(folder)
    (run,) = executions().runs
    assert run.names == ("workspace", "HEAD", "results/reference/exercise/seed-0")
    assert run.seconds == 12.3


def test_the_time_of_a_real_training(pipeline: Path, onecycle: Run) -> None:
    document = json.loads(onecycle(pipeline, "summary", "--json")[1])
    assert document["left_out"] == {}
    [recipe] = document["recipes"]
    [run] = recipe["executions"]
    assert run["names"] == ["workspace", "HEAD"]
    log = (pipeline / ".git" / "repro.log").read_text(encoding="utf-8")
    told = [float(seconds) for seconds in re.findall(r"epoch .*  ([\d.]+) s, \d+ images/s", log)]
    assert len(told) == 3
    assert run["training_seconds"] == pytest.approx(sum(told), abs=0.2)
    assert recipe["training_seconds"] == run["training_seconds"]


def test_params_that_were_edited_since_are_told(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    set_params(folder, {"seed": 8})
    try:
        found = executions()
    finally:
        command(folder, "git", "checkout", "-q", "params.yaml")
    assert found.left_out["workspace"] == "params.yaml says seed: 8, its results are of 0; run `dvc repro`"
    assert ("HEAD",) in {run.names for run in found.runs}


def test_without_any_results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="no execution with results; run `dvc repro`"):
        summary.groups(executions().runs)


def test_runs_that_do_not_differ_have_no_interval() -> None:
    same = summary.mean_of_runs([0.9, 0.9, 0.9])
    assert (same.value, same.deviation, same.low) == (pytest.approx(0.9), pytest.approx(0), None)
    assert summary.interval(same) == "–"


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (None, "–"),
        (7.25, "7.25 s"),
        (15.0, "15.0 s"),
        (100, "100 s"),
        (61.24, "61.2 s"),
        (3500, "58 min"),
        (7200, "2.0 h"),
    ],
)
def test_times_in_words(seconds: float | None, words: str) -> None:
    assert summary.duration(seconds) == words


def test_the_picture(found: Found, tmp_path: Path) -> None:
    groups = summary.groups(found.runs)
    figure = summary_figure(groups)
    [axes] = figure.axes
    dots = [line for line in axes.lines if line.get_marker() == "o"]
    assert [len(line.get_xdata()) for line in dots] == [3, 1, 2]
    assert [label.get_text() for label in axes.get_yticklabels()] == [group.label for group in groups]
    write_picture(groups, tmp_path / "seeds.png")
    with Image.open(tmp_path / "seeds.png") as image:
        assert image.format == "PNG"
    for name, words in (("seeds.svg", "must end in .png"), ("absent/seeds.png", "there is no folder")):
        with pytest.raises(UserError, match=words):
            write_picture(groups, tmp_path / name)


def test_the_command(folder: Path, onecycle: Run) -> None:
    code, output, _ = onecycle(folder, "summary", "--json")
    assert code == 0 and json.loads(output)["recipes"][0]["recipe"] == "as workspace"
