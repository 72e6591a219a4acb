"""The verdict on a run that was made again, from hashes, code, surroundings and figures set by hand."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import PARAMS_FILE
from crafted_run import errors, write_run

from onecycle import paths
from onecycle.errors import UserError
from onecycle.params import load
from onecycle.reproduction import agreement, page, surroundings
from onecycle.reproduction.agreement import Agreement, Output
from onecycle.reproduction.record import Record
from onecycle.reproduction.rerun import Reproduction
from onecycle.reproduction.surroundings import UNKNOWN, Difference
from onecycle.restoring import copy, link, remove_output, restore_output
from onecycle.revisions import Place

STAGES = ("stats", "train", "evaluate")
THREADS = Difference("threads", "1", "2")


def lock(**hashes: str) -> dict[str, dict[str, list[dict[str, str]]]]:
    """A dvc.lock: each stage reads its own code and writes one file; `train="x"` sets a hash, `train_code="x"` too."""
    return {
        stage: {
            "deps": [
                {"path": f"src/{stage}.py", "md5": hashes.get(f"{stage}_code", "c")},
                {"path": "data", "md5": "d"},
            ],
            "outs": [{"path": f"results/{stage}", "md5": hashes.get(stage, "o")}],
        }
        for stage in STAGES
    }


def judged(surroundings: tuple[Difference, ...] = (), accuracy: float = 0.9, **hashes: str) -> Agreement:
    then, now = lock(), lock(**hashes)
    shares = {"accuracy": accuracy, "loss": 0.3, "ece": 0.02, "n": 100, "wrong": 10}
    figures = {f"evaluate.{name}": (0.9 if name == "accuracy" else value, value) for name, value in shares.items()} | {
        "train.train_loss": (1.0, 5.0)
    }
    return Agreement(
        agreement.outputs(then, now, STAGES),
        agreement.changed_code(then, now, STAGES),
        figures,
        None,
        None,
        surroundings,
        load(PARAMS_FILE).gate,
    )


def test_the_same_hashes_are_identical_whatever_else_differs() -> None:
    found = judged((THREADS,), train_code="other")
    assert (found.verdict, found.parted, found.culprits) == ("identical", None, [])


def test_another_machine_may_be_why_within_the_margins_of_the_gate() -> None:
    found = judged((THREADS,), accuracy=0.904, train="x", evaluate="y")
    assert found.verdict == "equal within"
    assert found.within == pytest.approx(0.004)
    assert found.parted == Output("train", "results/train", "o", "x")
    assert judged((UNKNOWN,), accuracy=0.904, train="x").verdict == "equal within"
    for away in (0.906, 0.894):  # better is no reproduction either
        found = judged((THREADS,), accuracy=away, train="x")
        assert (found.verdict, found.within) == ("different", None)


def test_a_metric_that_only_one_of_them_has_is_no_agreement() -> None:
    """As `evaluate.top5` of a time before it was there."""
    found = judged((THREADS,), accuracy=0.904, train="x")
    for pair in ((0.99, None), (0.99, math.nan)):
        other = replace(found, metrics={**found.metrics, "evaluate.top5": pair})
        assert (other.verdict, other.within) == ("different", None)


def test_what_came_of_it_is_valid_json() -> None:
    """Also where a tensor has another shape, and its difference is infinite."""
    record = Record(Place("HEAD", "c0ffee", None), "c0ffee", b"", b"", {}, {}, {})
    found = replace(judged(train="x"), weights=agreement.Weights(3, 1, math.inf, "a"))
    said = json.dumps(page.document(Reproduction(record, found, STAGES, STAGES)), allow_nan=False)
    assert json.loads(said)["weights"] == {"tensors": 3, "differing": 1, "largest": None, "where": "a"}


def test_where_nothing_else_differs_it_is_different() -> None:
    assert judged(train="x").verdict == "different"


def test_changed_code_is_no_surroundings() -> None:
    found = judged((THREADS,), evaluate="x", train_code="a", stats_code="b")
    assert (found.verdict, found.culprits) == ("different", ["src/stats.py", "src/train.py"])
    assert judged((THREADS,), stats="x", evaluate_code="a").culprits == []  # code of a later stage is not why
    assert judged((THREADS,), stats="x", evaluate_code="a").verdict == "equal within"


def test_an_output_that_is_not_written_is_not_the_same() -> None:
    now = lock()
    del now["train"]["outs"][0]
    found = agreement.outputs(lock(), now, STAGES)
    assert [one for one in found if not one.same] == [Output("train", "results/train", "o", None)]


def test_weights_tensor_by_tensor(tmp_path: Path) -> None:
    state = {"a": torch.ones(2, 3), "b": torch.zeros(4), "steps": torch.tensor(5)}
    other = {"a": torch.ones(2, 3), "b": torch.tensor([0.0, 0.25, 0.0, -0.5]), "steps": torch.tensor(5)}
    files = [tmp_path / name for name in ("one.pt", "other.pt", "odd.pt")]
    for file, tensors in zip(files, (state, other, {"a": torch.ones(3, 2), "b": torch.zeros(4)}), strict=True):
        torch.save({"state": tensors}, file)
    assert agreement.weights(files[0], files[0]) == agreement.Weights(3, 0, 0.0, "")
    assert agreement.weights(files[0], files[1]) == agreement.Weights(3, 1, 0.5, "b")
    assert agreement.weights(files[0], files[2]) == agreement.Weights(3, 2, math.inf, "a")


@pytest.mark.parametrize("content", [b"PK", {"weights": {}}, {"state": 3}, {"state": {"a": 1}}], ids=str)
def test_a_model_that_is_none_is_told(tmp_path: Path, content: Any) -> None:
    good, odd = tmp_path / "good.pt", tmp_path / "odd.pt"
    torch.save({"state": {"a": torch.ones(2)}}, good)
    if isinstance(content, bytes):
        odd.write_bytes(content)
    else:
        torch.save(content, odd)
    with pytest.raises(UserError, match="the recorded model is damaged, or of a time when"):
        agreement.weights(odd, good)
    with pytest.raises(UserError, match="the new model is damaged"):
        agreement.weights(good, odd)


def test_what_cannot_be_read_is_told_beside_the_rest(tmp_path: Path) -> None:
    write_run(tmp_path, errors(600, 0))
    (tmp_path / paths.TRAIN_METRICS).parent.mkdir(parents=True)
    (tmp_path / paths.TRAIN_METRICS).write_text('{"train_loss": 0.', encoding="utf-8")
    (tmp_path / paths.STATS_JSON).parent.mkdir(parents=True)
    (tmp_path / paths.STATS_JSON).write_text('{"mean": ' * 200_000, encoding="utf-8")
    (tmp_path / paths.PREDICTIONS).write_bytes(b"PAR1")
    found = agreement.measured(Place("one", None, tmp_path))
    assert found.metrics["evaluate.wrong"] == 600 and found.results is None
    assert [note.partition(" of one")[0] for note in found.notes] == [
        "no metrics of stats are compared: results/stats/stats.json",
        "no metrics of train are compared: results/train/metrics.json",
        "no predictions are compared: results/evaluate/predictions.parquet",
    ]


def test_predictions_and_metrics_image_by_image(tmp_path: Path) -> None:
    for name, wrong in (("then", errors(600, 0)), ("now", errors(600, 3))):
        write_run(tmp_path / name, wrong)
    then, now, none = (agreement.measured(Place(name, None, tmp_path / name)) for name in ("then", "now", "none"))
    found = agreement.predictions(then, now)
    assert found is not None
    assert found.images == 10_000
    assert found.changed == len(set(errors(600, 0)) ^ set(errors(600, 3)))
    assert agreement.predictions(then, none) is None
    figures = agreement.metrics(then, now)
    assert figures["evaluate.wrong"] == (600, len(errors(600, 3)))
    assert agreement.metrics(then, none)["evaluate.wrong"] == (600, None)


def test_what_differs_of_that_which_is_known() -> None:
    recorded = {"device": "cpu, float32", "threads": "1", "version.torch": "2.15.0", "version.gone": "1", "os": "a"}
    here = {"device": "cpu, float32", "threads": "2", "version.torch": "2.14.1", "version.new": "3", "os": "b"}
    assert surroundings.differences(recorded, here) == [THREADS, Difference("torch", "2.15.0", "2.14.1")]
    for nothing in ({}, {"rebuilt": "from git", "git.commit": "abc"}):
        assert surroundings.differences(nothing, here) == [UNKNOWN]


def test_a_gpu_may_differ_from_itself_unless_its_kernels_repeat() -> None:
    gpu, cpu = {"device": "NVIDIA H100, bfloat16"}, {"device": "cpu, bfloat16"}
    [kernels] = surroundings.noise(gpu, gpu, {"train.deterministic": "false"})
    assert str(kernels) == "GPU kernels need not repeat to the bit, here neither"
    assert judged((kernels,), accuracy=0.904, train="x").verdict == "equal within"
    assert judged((kernels,), accuracy=0.906, train="x").verdict == "different"
    assert surroundings.noise(gpu, gpu, {}) == [kernels]  # a run of a time when there was no such knob
    assert surroundings.noise(gpu, gpu, {"train.deterministic": "true"}) == []
    assert surroundings.noise(cpu, cpu, {"train.deterministic": "false"}) == []


def test_what_a_kept_stage_ran_with_is_not_in_the_row_of_later_ones() -> None:
    tags = {"dvc.stages": "download cached, train cached, evaluate ran", "device": "cpu, bfloat16"}
    [unknown] = surroundings.elsewhere(["train", "evaluate"], tags)
    assert str(unknown) == "what train ran with is in another row, here known"
    assert judged((unknown,), accuracy=0.904, train="x").verdict == "equal within"
    assert surroundings.elsewhere(["evaluate"], tags) == surroundings.elsewhere(["train"], {}) == []


@pytest.mark.parametrize("path", ["../outside", "/outside", "results/../../outside"])
def test_a_lock_that_leads_out_of_the_workspace_is_refused(tmp_path: Path, path: str) -> None:
    place = Place("theirs", None, tmp_path)
    for act in (
        lambda: restore_output(place, tmp_path, tmp_path / "in", Path(path), "0" * 32, copy),
        lambda: remove_output(place, tmp_path / "in", Path(path)),
    ):
        with pytest.raises(UserError, match="names an output outside the workspace"):
            act()


def test_a_lock_brings_nothing_but_what_the_cache_has_by_its_md5(tmp_path: Path) -> None:
    """Not a file elsewhere, which a hash that is a path would lead to, and not one that was damaged."""
    secret, files, folder = tmp_path / "id_rsa", tmp_path / "cache", tmp_path / "in"
    secret.write_text("private", encoding="utf-8")
    place = Place("theirs", None, tmp_path / "none")

    def cached(content: str, suffix: str = "") -> str:
        md5 = hashlib.md5(content.encode(), usedforsecurity=False).hexdigest() + suffix
        (files / md5[:2]).mkdir(parents=True, exist_ok=True)
        (files / md5[:2] / md5[2:]).write_text(content, encoding="utf-8")
        return md5

    damaged = cached("whole")
    (files / damaged[:2] / damaged[2:]).write_text("half", encoding="utf-8")
    for md5 in (f"xx{secret}", "xx../../id_rsa", damaged):
        listed = cached(json.dumps([{"relpath": "inside", "md5": md5}]), ".dir")
        restore_output(place, files, folder, Path("results/one"), md5, copy)
        restore_output(place, files, folder, Path("results/several"), listed, copy)
    assert [file for file in folder.rglob("*") if file.is_file()] == []
    listed = cached(json.dumps([{"relpath": "inside", "md5": cached("content")}]), ".dir")
    restore_output(place, files, folder, Path("results/several"), listed, copy)
    assert (folder / "results/several/inside").read_text(encoding="utf-8") == "content"


def test_a_lock_that_names_an_output_twice_writes_nothing_into_the_cache(tmp_path: Path) -> None:
    """What is linked first would be written through."""
    files, folder = tmp_path / "cache", tmp_path / "in"
    theirs, ours = (hashlib.md5(text, usedforsecurity=False).hexdigest() for text in (b"theirs", b"ours"))
    cached = files / ours[:2] / ours[2:]
    for file, content in ((cached, b"ours"), (tmp_path / "theirs/results/a", b"theirs")):
        file.parent.mkdir(parents=True)
        file.write_bytes(content)
    place = Place("theirs", None, tmp_path / "theirs")
    for md5 in (ours, theirs):
        restore_output(place, files, folder, Path("results/a"), md5, link)
    assert (cached.read_bytes(), (folder / "results/a").read_bytes()) == (b"ours", b"theirs")


@pytest.mark.parametrize("content", ["{", '[{"relpath": "a"}]', "[1]", "null", "[" * 100_000])
def test_a_list_of_a_folders_files_that_is_none_is_refused(tmp_path: Path, content: str) -> None:
    md5 = hashlib.md5(content.encode(), usedforsecurity=False).hexdigest()
    (tmp_path / md5[:2]).mkdir()
    (tmp_path / md5[:2] / f"{md5[2:]}.dir").write_text(content, encoding="utf-8")
    with pytest.raises(UserError, match="is no list of a folder's files"):
        restore_output(Place("theirs", None, tmp_path), tmp_path, tmp_path / "in", Path("data"), f"{md5}.dir", copy)
