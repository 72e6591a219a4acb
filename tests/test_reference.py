"""`onecycle record`: what is kept of a run, from wherever it is; what is refused; the README's table of it."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import signal
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from conftest import REPO, Run, command, set_params
from crafted_run import commit, edit_metrics, errors, repository, write_run
from mlflow import MlflowClient
from scipy.stats import t as student

from onecycle import differences, params, paths, provenance, readme, recipe
from onecycle.dvc_lock import read_lock
from onecycle.executions import executions
from onecycle.results import read_side
from onecycle.revisions import find
from onecycle.tracking.journal import Journal, root
from onecycle.tracking.rebuild import _references

KEPT = {
    "params.yaml",
    "evaluate/metrics.json",
    "evaluate/per_class.csv",
    "evaluate/predictions.parquet",
    "train/history.csv",
    "train/metrics.json",
    "lr_range/suggestion.json",
    "environment.json",
    "hashes.json",
}
MARKS = f"# A title\n\n{readme.BEGIN}\n{readme.END}\n\nThe rest.\n"
TAGS = {
    "device": "cpu, bfloat16",
    "hardware.cpu": "Some CPU",
    "hardware.cores": "2",
    "hardware.host": "somebody's",
    "git.commit": "c0ffee",
    "version.torch": "2.15.0",
}


def md5(content: bytes) -> str:
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


def made(folder: Path, seed: int = 0, wrong: int = 600, **values: Any) -> None:
    """A whole run's small results in a workspace, with the dvc.lock that records them."""
    write_run(folder, errors(375, wrong - 375, 300 * seed))
    set_params(folder, {"seed": seed, **values})
    for path, text in (
        (paths.TRAIN_METRICS, '{"epochs": 2}\n'),
        (paths.HISTORY, "epoch,train_loss\n1,1.5\n2,0.5\n"),
        (paths.LR_RANGE_SUGGESTION, '{"accepted": true}\n'),
    ):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text, encoding="utf-8")
    outs = [{"path": path.as_posix(), "md5": md5((folder / path).read_bytes())} for path in provenance.KEPT]
    deps = [
        {"path": "models/model.pt", "md5": "-".join(map(str, ("model", seed, *values.values())))},
        {"path": "src/onecycle/training.py", "md5": "code"},
    ]
    evaluate = {"deps": deps, "params": {"params.yaml": {"seed": seed}}, "outs": outs}
    (folder / paths.DVC_LOCK).write_text(json.dumps({"schema": "2.0", "stages": {"evaluate": evaluate}}))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository with a run of seed 0 in the workspace and in HEAD."""
    folder = repository(tmp_path / "repo")
    (folder / ".dvc").mkdir()
    (folder / ".gitignore").write_text(".state/\n", encoding="utf-8")
    (folder / "README.md").write_text(MARKS, encoding="utf-8")
    made(folder)
    commit(folder, "results")
    monkeypatch.chdir(folder)
    return folder


def row(seed: int, epochs: int = 2, evaluated: bool = True) -> None:
    """A row, still to be sent, whose training had two epochs, of which it saw `epochs`."""
    journal = Journal(root() / f"host-{seed}")
    process = {"host": "elsewhere", "pid": 1, "started": 0.0}
    opened = {"row": f"{seed}", "params": {}, "process": process, "execution": {"process": process}, "workspace": ""}
    journal.append("open", stage="train", **opened)
    journal.append("tags", stage="train", values=TAGS)
    for epoch in range(1, epochs + 1):
        journal.append("metrics", stage="train", values={"train/epoch_seconds": 90.25}, step=epoch)
    journal.append("metrics", stage="train", values={"train/epochs": 2.0}, step=None)
    if evaluated:
        journal.append("model", stage="evaluate", model={"md5": f"model-{seed}", "file": None, "pictures": None})
    else:
        journal.append("tags", stage="train", values={"train.model": f"model-{seed}"})


def kept(folder: Path, name: str) -> dict[str, Any]:
    """A JSON file of a reference run."""
    document = json.loads((folder / "results/reference" / name).read_text(encoding="utf-8"))
    assert isinstance(document, dict)
    return document


def test_the_gate_knows_how_far_the_seeds_of_a_recipe_are_apart(folder: Path, onecycle: Run) -> None:
    """Seeds 0.8 points apart: as much is no regression of a run like them, and not certainly one of another recipe."""
    for seed, wrong in ((0, 600), (1, 680), (2, 640), (3, 600)):
        made(folder, seed, wrong)
        assert onecycle(folder, "record", "workspace", "--recipe", "exercise")[0] == 0
    made(folder, 4, 680)
    gate = ("gate", "--baseline", "exercise/seed-0", "--json")
    code, said, _ = onecycle(folder, *gate)
    judged = json.loads(said)
    assert (code, judged["verdict"]) == (0, "inconclusive") and judged["seeds"] > 10
    source = "the seeds in results/reference, 3 of exercise"
    assert (judged["deviation"], judged["deviation_source"]) == (pytest.approx(0.004), source)
    accuracy, _, loss, _ = judged["checks"]
    reach = student.ppf(0.95, 2) * 2**0.5 * 0.004
    assert (accuracy["low"], accuracy["high"]) == pytest.approx((-0.008 - reach, -0.008 + reach))
    assert loss["low"] is not None, "its seeds tell how far losses are apart, too"
    code, said, _ = onecycle(folder, "compare", "exercise/seed-0", "workspace", "--json")
    assert (code, json.loads(said)[0]["deviation_source"]) == (0, source)

    made(folder, 0, 900, epochs=30)
    assert onecycle(folder, *gate)[0] == 1, "three points are one, of any recipe"
    shutil.rmtree(folder / "results/reference/exercise/seed-2")
    shutil.rmtree(folder / "results/reference/exercise/seed-1")
    made(folder, 1, 680)
    code, said, _ = onecycle(folder, *gate)
    assert (code, json.loads(said)["deviation_source"]) == (1, "from the images they disagree on")


def recorded(folder: Path, onecycle: Run, recipe: str, errors: tuple[int, ...], **values: Any) -> None:
    for seed, wrong in enumerate(errors):
        made(folder, seed, wrong, **values)
        assert onecycle(folder, "record", "workspace", "--recipe", recipe)[0] == 0


def test_which_seeds_tell_how_far_a_run_is_from_its_equals(folder: Path, onecycle: Run) -> None:
    recorded(folder, onecycle, "few", (605, 615, 625))
    recorded(folder, onecycle, "many", (600, 620, 640, 660, 680, 700), epochs=30)

    def told(first: str, second: str) -> str | None:
        known = differences.equal_runs(read_side(first), read_side(second))
        return str(known) if known else None

    unlike = "the seeds in results/reference, 2 of few and 5 of many"
    assert told("many/seed-0", "few/seed-0") == unlike, "one recipe's own tell nothing of the other"
    both = "the seeds in results/reference, 3 of few and 4 of many"
    assert told("many/seed-0", "many/seed-1") == told("many/seed-1", "many/seed-0") == both, "not what is compared"
    made(folder, 7, 608, epochs=31)
    assert told("workspace", "many") == "the seeds in results/reference, 3 of few", "those tell of themselves"
    made(folder, 7, 608, epochs=30)
    assert told("workspace", "many/seed-0") == "the seeds in results/reference, 5 of many", "enough of its own"
    made(folder, 7, 608, epochs=31)
    assert told("few", "many") is None, "no run is alone"
    assert told("few/seed-0", "few/seed-0") is None, "it is one run"
    command(folder, "git", "rm", "-qr", "--cached", "results", check=False)
    shutil.rmtree(folder / "results/reference/many")
    assert told("few/seed-0", "few/seed-1") is None, "one seed is left"
    assert told("workspace", "few") is None, "nor any recipe beside that which is compared"


def test_the_verdict_does_not_depend_on_which_side_comes_first(folder: Path, onecycle: Run) -> None:
    recorded(folder, onecycle, "one", (600, 640, 650))
    recorded(folder, onecycle, "other", (700, 705, 770), epochs=30)
    for first, second in (("one/seed-1", "other"), ("one/seed-1", "other/seed-1"), ("one/seed-0", "one/seed-1")):
        there, back = (
            json.loads(onecycle(folder, "compare", *sides, "--json")[1])[0]
            for sides in ((first, second), (second, first))
        )
        assert there["p"] == pytest.approx(back["p"])
        assert {there["verdict"], back["verdict"]} in ({"better", "worse"}, {"no evidence"})
        assert there["deviation"] == pytest.approx(back["deviation"])


def test_one_run_against_several_is_advised_by_the_spread_on_both_sides(folder: Path, onecycle: Run) -> None:
    recorded(folder, onecycle, "tight", (600, 605, 610))
    recorded(folder, onecycle, "wide", (620, 660, 700), epochs=30)
    made(folder, 9, 620, epochs=31)
    code, said, _ = onecycle(folder, "gate", "--baseline", "tight", "--json")
    judged = json.loads(said)
    assert code == 0 and judged["deviation"] == pytest.approx(((0.0005**2 + 0.004**2) / 2) ** 0.5)  # of 10,000 images
    assert judged["deviation_source"] == "these runs and the seeds in results/reference, 3 of wide"


def test_a_run_is_not_compared_with_several_that_it_is_one_of(folder: Path, onecycle: Run) -> None:
    recorded(folder, onecycle, "exercise", (600, 640))
    for arguments in (("exercise", "exercise/seed-1"), ("workspace", "exercise"), ("exercise", "exercise")):
        code, _, said = onecycle(folder, "compare", *arguments)
        assert code == 2 and " is on both sides" in said
    code, said, _ = onecycle(folder, "compare", "exercise/seed-1", "workspace")
    assert code == 0 and "Both are the same run." in said
    code, said, _ = onecycle(folder, "gate", "--baseline", "exercise", "--strict")
    assert code == 0 and "workspace against results/reference/exercise/seed-1." in said


def test_a_recipe_is_kept_under_one_name(folder: Path, onecycle: Run) -> None:
    recorded(folder, onecycle, "exercise", (600,))
    made(folder, 1, 610)
    code, _, said = onecycle(folder, "record", "workspace", "--recipe", "other")
    assert (code, said) == (2, "error: workspace is of a recipe that is kept as exercise; give `--recipe exercise`\n")


def test_what_a_killed_record_leaves_is_no_run(folder: Path, onecycle: Run) -> None:
    assert onecycle(folder, "record", "workspace", "--recipe", "exercise")[0] == 0
    recipe = folder / "results/reference/exercise"
    shutil.copytree(recipe / "seed-0", recipe / ".recording-abc" / "new")
    found = executions()
    assert [name for run in found.runs for name in run.names if ".recording" in name] == []
    assert differences.recipes().keys() == {"exercise"} and len(differences.recipes()["exercise"]) == 1


def test_asked_to_end_while_it_puts_a_run_into_place_it_does_so_first(
    folder: Path, onecycle: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between two renames, when neither the old nor the new run is in its place."""
    assert onecycle(folder, "record", "workspace", "--recipe", "exercise")[0] == 0
    rename = Path.rename

    def interrupted(self: Path, target: Path) -> Path:
        renamed = rename(self, target)
        os.kill(os.getpid(), signal.SIGTERM)
        return renamed

    monkeypatch.setattr(Path, "rename", interrupted)
    assert onecycle(folder, "record", "workspace", "--recipe", "exercise")[0] == 128 + signal.SIGTERM
    kept = folder / "results/reference/exercise"
    assert [file.name for file in kept.iterdir()] == ["seed-0"] and (kept / "seed-0/params.yaml").exists()


def test_a_state_folder_on_another_disk_costs_no_record(folder: Path, onecycle: Run) -> None:
    """As where `.state` is a link to a scratch disk."""
    if Path("/dev/shm").stat().st_dev == folder.stat().st_dev:
        pytest.skip("there is no other disk")
    with TemporaryDirectory(dir="/dev/shm") as elsewhere:
        (folder / ".state").symlink_to(elsewhere)
        for wrong in (600, 600):
            made(folder, 0, wrong)
            assert onecycle(folder, "record", "workspace", "--recipe", "exercise")[0] == 0
        kept = folder / "results/reference/exercise"
        assert [file.name for file in kept.iterdir()] == ["seed-0"]
        assert {file.relative_to(kept / "seed-0").as_posix() for file in kept.rglob("*") if file.is_file()} == KEPT


def test_what_is_told_of_a_run_without_a_row(folder: Path, onecycle: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a clone: its files tell, also where MLflow cannot be asked."""
    for seed in (0, 1):
        made(folder, seed, 600 + seed)
        assert onecycle(folder, "record", "workspace", "--recipe", "exercise")[0] == 0
    for name in ("HEAD", "workspace", "results/reference/exercise/seed-0"):
        code, said, _ = onecycle(folder, "show", name, "--json")
        shown = json.loads(said)
        assert (code, shown["metrics"]["test/wrong"]) == (0, 601 if name == "workspace" else 600)
        assert (shown["metrics"]["train/loss"], shown["metrics"]["train/epochs"]) == (0.5, 2)
    code, said, _ = onecycle(folder, "show", "workspace")
    assert code == 0 and said.startswith(
        f"workspace, commit {command(folder, 'git', 'rev-parse', 'HEAD').stdout[:12]}\n"
    )
    assert "No row in MLflow is of it; what follows is what its files tell." in said and "test/accuracy" in said
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")
    code, said, _ = onecycle(folder, "show", "workspace")
    assert code == 0 and "MLflow cannot be asked: " in said and "test/accuracy" in said
    code, _, said = onecycle(folder, "show", "exercise")
    assert code == 2 and "exercise is a recipe of 2 runs; give one of results/reference/exercise/seed-0, " in said
    for arguments in (("record", "exercise", "--recipe", "exercise"), ("reproduce", "exercise")):
        assert onecycle(folder, *arguments)[2] == said
    code, _, said = onecycle(folder, "show", ".dvc")
    assert code == 2 and said.startswith("error: .dvc holds no results, and no row is of it; ")


def test_what_is_kept_of_a_run(folder: Path, onecycle: Run) -> None:
    row(0)
    code, said, _ = onecycle(folder, "record", "workspace", "--recipe", "exercise")
    assert code == 0
    assert said.splitlines() == [
        "results/reference/exercise/seed-0: test accuracy 94.00 %, trained in 3 min on Some CPU, 2 cores, bfloat16",
        "README.md: its table is new; commit it with results/reference",
    ]
    run = folder / "results/reference/exercise/seed-0"
    assert {file.relative_to(run).as_posix() for file in run.rglob("*") if file.is_file()} == KEPT
    for path in provenance.KEPT:
        assert (run / path.relative_to("results")).read_bytes() == (folder / path).read_bytes()
        assert (run / path.relative_to("results")).stat().st_size <= 65_536
    assert (run / "params.yaml").read_bytes() == (folder / "params.yaml").read_bytes()
    hashes = kept(folder, "exercise/seed-0/hashes.json")
    assert hashes["outputs"]["results/train/history.csv"] == md5((folder / paths.HISTORY).read_bytes())
    assert hashes["outputs"]["models/model.pt"] == "model-0"
    assert hashes["code"] == {"src/onecycle/training.py": "code"}
    environment = kept(folder, "exercise/seed-0/environment.json")
    assert environment["versions"] == {"torch": "2.15.0"}
    assert (environment["device"], environment["training_seconds"]) == ("cpu, bfloat16", 180.5)
    assert "somebody" not in json.dumps(environment)


def test_code_that_no_commit_holds_is_told_of(folder: Path, onecycle: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """When a run is recorded, and wherever it is shown afterwards."""
    changed = "README.md, params.yaml, src/onecycle/training.py"
    monkeypatch.setitem(TAGS, "git.commit", "0123456789abcdef")
    monkeypatch.setitem(TAGS, "git.changed", changed)
    row(0)
    code, said, _ = onecycle(folder, "record", "workspace", "--recipe", "exercise")
    lacks = "on Some CPU, 2 cores, bfloat16; commit 0123456789ab lacks what it changed of src/onecycle/training.py"
    assert code == 0 and lacks in said
    shutil.rmtree(folder / ".state")
    code, said, _ = onecycle(folder, "show", "exercise/seed-0", "--json")
    assert (code, json.loads(said)["tags"]) == (0, {tag: TAGS[tag] for tag in TAGS if tag != "hardware.host"})
    code, said, _ = onecycle(folder, "show", "exercise/seed-0")
    assert code == 0 and "Made from" in said and changed in said and "Made with" in said and "Some CPU" in said


def test_every_reader_of_results_finds_it(folder: Path, onecycle: Run) -> None:
    for seed, wrong in enumerate((600, 612, 630)):
        made(folder, seed, wrong)
        row(seed)
        onecycle(folder, "record", "workspace", "--recipe", "exercise")
        made(folder, seed, wrong - 60, epochs=30)
        onecycle(folder, "record", "workspace", "--recipe", "longer")
    shutil.rmtree(folder / ".state")
    command(folder, "git", "checkout", "-q", ".")
    commit(folder, "references")
    for name in ("exercise/seed-1", "results/reference/exercise/seed-1"):
        assert find(name).folder is not None
    for name in ("exercise", "results/reference/exercise"):
        assert [run.params["seed"] for run in read_side(name)] == [0, 1, 2]
    found = executions()
    assert found.left_out == {}
    [first] = [one for one in found.runs if "results/reference/exercise/seed-0" in one.names]
    assert first.names == ("workspace", "HEAD", "results/reference/exercise/seed-0")
    [second] = [one for one in found.runs if "results/reference/exercise/seed-1" in one.names]
    assert (second.seconds, second.code) == (180.5, frozenset({("src/onecycle/training.py", "code")}))
    code, said, _ = onecycle(folder, "compare", "exercise", "longer", "--json")
    assert code == 0
    [comparison] = json.loads(said)
    assert (comparison["params"], comparison["verdict"]) == ({"epochs": ["24", "30"]}, "better")
    assert {past.place.name for past in _references()} == {
        f"{recipe}/seed-{seed}" for recipe in ("exercise", "longer") for seed in range(3)
    }


@pytest.mark.parametrize("evaluated", [True, False], ids=["one row", "trained and evaluated in two"])
def test_without_a_row_time_and_hardware_are_unknown_and_what_was_known_stays(
    folder: Path, onecycle: Run, evaluated: bool
) -> None:
    _, said, _ = onecycle(folder, "record", "HEAD", "--recipe", "exercise")
    assert "time and hardware unknown: no row in MLflow has its training" in said
    environment = kept(folder, "exercise/seed-0/environment.json")
    assert environment.pop("versions") == {}
    assert set(environment.values()) == {None}
    row(0, evaluated=evaluated)
    onecycle(folder, "record", "HEAD", "--recipe", "exercise")
    assert kept(folder, "exercise/seed-0/environment.json")["training_seconds"] == 180.5
    shutil.rmtree(folder / ".state")
    _, said, _ = onecycle(folder, "record", "HEAD", "--recipe", "exercise")
    assert "trained in 3 min on Some CPU" in said and "README.md: its table is up to date" in said
    assert kept(folder, "exercise/seed-0/environment.json")["training_seconds"] == 180.5


def test_of_an_interrupted_training_the_row_in_which_it_ended_tells_the_hardware(folder: Path, onecycle: Run) -> None:
    row(0, epochs=1)  # the rest of its epochs are in another row, perhaps of another machine
    _, said, _ = onecycle(folder, "record", "HEAD", "--recipe", "exercise")
    assert "test accuracy 94.00 %, trained on Some CPU, 2 cores, bfloat16" in said
    environment = kept(folder, "exercise/seed-0/environment.json")
    assert (environment["processor"], environment["versions"]) == ("Some CPU", {"torch": "2.15.0"})
    assert environment["training_seconds"] is None
    [table_row] = [
        line for line in (folder / "README.md").read_text(encoding="utf-8").splitlines() if "Some CPU" in line
    ]
    assert "| – | Some CPU, 2 cores, bfloat16 |" in table_row


def test_a_row_that_tells_less_takes_nothing_from_what_is_kept(folder: Path, onecycle: Run) -> None:
    row(0)
    onecycle(folder, "record", "HEAD", "--recipe", "exercise")
    shutil.rmtree(folder / ".state")
    row(0, epochs=1)  # the same model, made again elsewhere with an interruption
    _, said, _ = onecycle(folder, "record", "HEAD", "--recipe", "exercise")
    assert "trained in 3 min on Some CPU" in said
    assert kept(folder, "exercise/seed-0/environment.json")["training_seconds"] == 180.5


def _absent(folder: Path) -> None:
    shutil.rmtree(folder / paths.EVALUATE)


def _partial(folder: Path) -> None:
    (folder / paths.HISTORY).unlink()


def _edited(folder: Path) -> None:
    (folder / paths.HISTORY).write_text("epoch,train_loss\n1,0.1\n", encoding="utf-8")


def _other_seed(folder: Path) -> None:
    set_params(folder, {"seed": 7})


def _no_params(folder: Path) -> None:
    (folder / paths.PARAMS).unlink()


def _other_run(folder: Path) -> None:
    made(folder, 0, 640)
    text = (folder / paths.DVC_LOCK).read_text(encoding="utf-8")
    (folder / paths.DVC_LOCK).write_text(text.replace("model-0", "model-new"), encoding="utf-8")


def _other_recipe(folder: Path) -> None:
    made(folder, 1, 640, **{"optimizer.name": "sgd"})


def _other_data(folder: Path) -> None:
    made(folder, 1, 640)
    edit_metrics(folder, dataset_digest="d2")


def _large(folder: Path) -> None:
    (folder / paths.HISTORY).write_text("x" * 65_537, encoding="utf-8")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_absent, "results/evaluate/metrics.json is missing; run `dvc repro`"),
        (_partial, "results/train/history.csv is missing; run `dvc repro`"),
        (_edited, "results/train/history.csv is not what dvc.lock records; run `dvc repro`"),
        (_other_seed, "params.yaml says seed: 7, its results are of 0; run `dvc repro`"),
        (_no_params, "params.yaml of workspace has no seed"),
        (_other_run, "exercise/seed-0 is another run of that seed; keep it, or"),
        (
            _other_recipe,
            "another recipe: optimizer.name is adam there and sgd in workspace; give another --recipe",
        ),
        (_other_data, "results/reference/exercise/seed-0 was tested on another data set than workspace"),
        (_large, "results/train/history.csv has 65,537 bytes; a reference takes up to 65,536 a file"),
    ],
)
def test_what_is_refused_leaves_what_is_there(folder: Path, onecycle: Run, change: Any, words: str) -> None:
    onecycle(folder, "record", "workspace", "--recipe", "exercise")
    before = {file: file.read_bytes() for file in (folder / "results/reference").rglob("*") if file.is_file()}
    change(folder)
    code, _, said = onecycle(folder, "record", "workspace", "--recipe", "exercise")
    assert code == 2 and words in said, said
    assert {file: file.read_bytes() for file in (folder / "results/reference").rglob("*") if file.is_file()} == before
    assert list((folder / "results/reference").rglob(".recording-*")) == []


def _edit_lock(folder: Path, **entries: Any) -> None:
    document = json.loads((folder / paths.DVC_LOCK).read_text(encoding="utf-8"))
    document["stages"] |= entries
    (folder / paths.DVC_LOCK).write_text(json.dumps(document), encoding="utf-8")


def test_a_report_that_was_not_made_again_is_no_hindrance(folder: Path, onecycle: Run) -> None:
    """As after `dvc repro -s evaluate`."""
    _edit_lock(folder, report={"params": {"params.yaml": {"seed": 5}}})
    code, _, said = onecycle(folder, "record", "workspace", "--recipe", "exercise")
    assert code == 0, said
    assert executions().left_out == {}


def test_results_that_are_not_of_the_params_beside_them_are_not_compared(folder: Path, onecycle: Run) -> None:
    set_params(folder, {"seed": 7})
    for words in (("compare", "HEAD", "workspace"), ("gate", "--baseline", "HEAD")):
        code, _, said = onecycle(folder, *words)
        assert (code, said) == (2, "error: params.yaml says seed: 7, its results are of 0; run `dvc repro`\n")
    commit(folder, "a seed, not run")
    code, _, said = onecycle(folder, "compare", "HEAD~1", "HEAD")
    assert (code, said) == (2, "error: params.yaml of HEAD says seed: 7, its results are of 0; run `dvc repro`\n")


@pytest.mark.parametrize(
    ("stages", "sentence"),
    [
        (
            {"train": {"outs": [{"path": "models/model.pt", "md5": "another"}]}},
            "dvc.lock: evaluate did not run again when what comes before did; run `dvc repro`",
        ),
        (
            {
                "lr_range": {"params": {"params.yaml": {"augment.pad": 8}}},
                "train": {"params": {"params.yaml": {"augment.pad": 4}}},
            },
            "params.yaml says augment.pad: 8, its results are of 4; run `dvc repro`",
        ),
    ],
    ids=["trained", "only the range test"],
)
def test_results_of_a_command_that_was_stopped_are_not_compared(
    folder: Path, onecycle: Run, stages: dict[str, Any], sentence: str
) -> None:
    set_params(folder, {"augment.pad": 8})
    _edit_lock(folder, **stages)
    for words in (
        ("compare", "HEAD", "workspace"),
        ("gate", "--baseline", "HEAD"),
        ("record", "workspace", "--recipe", "trial"),
    ):
        code, _, said = onecycle(folder, *words)
        assert (code, said) == (2, f"error: {sentence}\n")
    assert executions().left_out == {"workspace": sentence}


@pytest.mark.parametrize(
    "entry",
    [
        1,
        {"outs": [{"md5": "x"}]},
        {"deps": "x"},
        {"params": []},
        {"params": {"params.yaml": 3}},
        {"outs": [{"path": 1}]},
    ],
    ids=str,
)
def test_a_lock_that_is_none_is_left_out_and_refused(folder: Path, onecycle: Run, entry: Any) -> None:
    _edit_lock(folder, train=entry)
    commit(folder, "a stranger's")
    sentence = "holds no stages as DVC writes them"
    assert executions().left_out["HEAD"] == f"dvc.lock of HEAD: {sentence}"
    for words in (("compare", "HEAD~1", "HEAD"), ("show", "HEAD"), ("record", "HEAD", "--recipe", "x")):
        code, _, said = onecycle(folder, *words)
        assert (code, sentence in said) == (2, True), said


@pytest.mark.parametrize(
    ("file", "content", "key"),
    [
        ("environment.json", {"training_seconds": "soon"}, "training_seconds"),
        ("environment.json", {"device": 3}, "device"),
        ("environment.json", {"versions": ["torch"]}, "versions"),
        ("hashes.json", {"outputs": {"a": 1}}, "outputs.a"),
    ],
    ids=lambda value: str(value),
)
def test_a_stranger_s_reference_is_refused_by_its_key(
    folder: Path, onecycle: Run, file: str, content: Any, key: str
) -> None:
    onecycle(folder, "record", "workspace", "--recipe", "exercise")
    run = Path("results/reference/exercise/seed-0")
    (run / file).write_text(json.dumps(content), encoding="utf-8")
    assert executions().left_out[run.as_posix()].startswith(f"{file} of {run.as_posix()}: {key}: ")


def test_a_folder_of_the_workspace_is_not_taken_for_it(folder: Path, onecycle: Run) -> None:
    shutil.copy(REPO / paths.DVC_YAML, folder)
    (folder / "src").mkdir()
    for words in (("summary",), ("check-lock",), ("compare", "HEAD", "workspace")):
        code, _, said = onecycle(folder / "src", *words)
        assert (code, said) == (2, f"error: this is a folder of the workspace {folder}; run the command there\n")


@pytest.mark.parametrize("recipe", ["../evaluate", "Page", "", "a/b"])
def test_a_recipe_is_one_folder(folder: Path, onecycle: Run, recipe: str) -> None:
    code, _, said = onecycle(folder, "record", "workspace", "--recipe", recipe)
    assert code == 2 and "--recipe must be lower-case letters" in said
    assert not (folder / "results/reference").exists()


def test_the_table_of_recipes(folder: Path, onecycle: Run) -> None:
    assert readme.rewrite().startswith("README.md: its table is new")
    assert (folder / "README.md").read_text(encoding="utf-8") == MARKS.replace(
        readme.END, f"{readme.NONE}\n{readme.END}"
    )
    for seed, wrong in enumerate((600, 620)):
        made(folder, seed, wrong)
        row(seed)
        onecycle(folder, "record", "workspace", "--recipe", "exercise")
    made(folder, 4, 550, **{"data.validation_fraction": 0, "optimizer.name": "sgd"})
    onecycle(folder, "record", "workspace", "--recipe", "page")
    code, said, _ = onecycle(folder, "summary", "--readme")
    assert (code, said) == (0, "README.md: its table is up to date\n")
    text = (folder / "README.md").read_text(encoding="utf-8")
    before, _, rest = text.partition(f"{readme.BEGIN}\n")
    between, _, after = rest.partition(readme.END)
    assert (before, after) == ("# A title\n\n", "\n\nThe rest.\n")
    assert between.splitlines() == [
        "| recipe | n | test accuracy | training | hardware |",
        "| --- | ---: | ---: | ---: | --- |",
        "| [page](results/reference/page) | 1 | 94.50 % | – | – |",
        "| [exercise](results/reference/exercise) | 2 | 93.90 ± 0.14 % | 3 min | Some CPU, 2 cores, bfloat16 |",
        "",
        "```sh",
        "dvc exp run -S data.validation_fraction=0 -S optimizer.name=sgd    # page",
        "dvc repro    # exercise",
        "```",
    ]


def test_a_recipe_of_other_knobs_has_no_command(folder: Path, onecycle: Run) -> None:
    onecycle(folder, "record", "workspace", "--recipe", "exercise")
    text = (folder / "params.yaml").read_text(encoding="utf-8")
    (folder / "params.yaml").write_text(f"a_new_knob: 1\n{text}", encoding="utf-8")
    assert "dvc repro    # exercise" in readme.table()
    commit(folder, "a new knob")
    assert readme.table().splitlines()[-1].endswith("| – | – |")


def test_a_knob_that_came_later_makes_no_other_recipe(
    folder: Path, onecycle: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where it is known what runs did before; its new default may be another, too."""
    onecycle(folder, "record", "workspace", "--recipe", "exercise")
    text = (folder / "params.yaml").read_text(encoding="utf-8")
    (folder / "params.yaml").write_text(f"a_new_knob: 1\n{text}", encoding="utf-8")
    commit(folder, "a new knob")
    old, new = (find(name).params() for name in ("results/reference/exercise/seed-0", "HEAD"))
    assert recipe.recipe_differing(old, new) == ["a_new_knob"]
    monkeypatch.setattr(recipe, "ADDED", {"a_new_knob": 1})
    assert recipe.recipe_differing(old, new) == recipe.recipe_differing(new, old) == []
    assert "dvc repro    # exercise" in readme.table()
    monkeypatch.setattr(recipe, "ADDED", {"a_new_knob": 2})
    assert "dvc exp run -S a_new_knob=2    # exercise" in readme.table()
    assert "a_new_knob" in recipe.recipe_differing({}, new)  # of a run without params nothing is known


def test_a_readme_without_a_place_for_it(folder: Path, onecycle: Run) -> None:
    (folder / "README.md").write_text("# A title\n", encoding="utf-8")
    code, _, said = onecycle(folder, "summary", "--readme")
    assert code == 2 and "README.md lacks the lines" in said
    code, _, said = onecycle(folder, "record", "workspace", "--recipe", "exercise")
    assert code == 0 and said.startswith("warning: README.md lacks the lines")
    assert (folder / "results/reference/exercise/seed-0").is_dir()
    (folder / "README.md").write_bytes(MARKS.encode("utf-16"))
    assert onecycle(folder, "summary", "--readme")[::2] == (2, "error: README.md is not UTF-8 text\n")
    (folder / "README.md").write_text(MARKS, encoding="utf-8")
    (folder / "params.yaml").write_text("seed: [", encoding="utf-8")
    commit(folder, "a broken file")
    code, _, said = onecycle(folder, "summary", "--readme")
    assert code == 2 and said.startswith("error: params.yaml of HEAD")


def test_the_readme_here_says_what_is_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPO)
    _, begin, rest = readme.README.read_text(encoding="utf-8").partition(f"{readme.BEGIN}\n")
    between, end, _ = rest.partition(readme.END)
    assert begin and end
    assert between == readme.table(), "run `onecycle summary --readme`"


def test_a_real_run_by_its_row_and_from_the_workspace(pipeline: Path, tmp_path: Path, onecycle: Run) -> None:
    folder = tmp_path / "repo"
    shutil.copytree(pipeline, folder, symlinks=True)
    assert onecycle(folder, "sync", "--relocate")[0] == 0
    [run] = MlflowClient(f"sqlite:///{folder / 'mlflow.db'}").search_runs(["1"])
    said = onecycle(folder, "record", run.info.run_id, "--recipe", "digits")[1]
    assert re.search(r"trained in [\d.]+ s on .+, \d+ cores, float32", said), said
    target = folder / "results/reference/digits/seed-0"
    assert params.load(target / "params.yaml") == params.load(folder / "params.yaml")
    of_the_row = kept(folder, "digits/seed-0/hashes.json")["outputs"]
    said = onecycle(folder, "record", "HEAD", "--recipe", "digits")[1]  # the same run, by another name
    assert re.search(r"trained in [\d.]+ s on .+, \d+ cores, float32", said), said
    lock = {out["path"]: out["md5"] for stage in read_lock(folder).values() for out in stage["outs"]}
    of_the_lock = kept(folder, "digits/seed-0/hashes.json")["outputs"]
    assert of_the_lock == lock
    assert of_the_row == {path: lock[path] for path in of_the_row} and "models/model.pt" in of_the_row
    for file in target.rglob("*"):
        assert file.is_dir() or file.stat().st_size <= 65_536
