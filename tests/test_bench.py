"""The benchmark: real engine, real student's loop, each in its process; what is derived follows from what was timed."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import REPO, SMALL, command, set_params

from onecycle import tables
from onecycle.bench import rounds, startup
from onecycle.bench.engine import flop_per_image
from onecycle.bench.timing import Task, images
from onecycle.bench.worker import Worker
from onecycle.data import Dataset, save
from onecycle.device import select
from onecycle.errors import UserError
from onecycle.model import build_classifier
from onecycle.params import Params

MakeParams = Callable[..., Params]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_every_part_is_timed_and_the_rest_follows(
    small_params: MakeParams, digits: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In bf16 and fp32, through both backends, with a network of 4 channels on a workspace's digits."""
    monkeypatch.chdir(tmp_path)
    save(digits, Path("data/arrays"))
    params = small_params(**{"train.precision": "bf16"})
    found = rounds.measure(params, seconds=0, turn_seconds=0.01)

    assert found["device"].startswith("cpu (")
    assert (found["threads"], found["batch_size"], found["rounds"]) == (1, 32, 1)
    assert found["images"] == "320 images of digits"
    bf16 = select(params.train).convolution
    trained = {("bf16", bf16), ("fp32", "winograd")}
    arithmetics = {*trained, ("bf16", "direct"), ("fp32", "direct")}
    combinations = {(each["backend"], (each["precision"], each["convolution"])) for each in found["training"]}
    assert combinations == {(a, b) for a in ("albumentations", "batched") for b in trained}
    assert {each["backend"] for each in found["input"]} == {"albumentations", "batched"}
    assert {(each["precision"], each["convolution"]) for each in found["forward_backward"]} == arithmetics
    peaks = {each["precision"]: each["flop_per_second"] for each in found["matrix_peak"]}
    for each in (*found["forward_backward"], *found["training"]):
        assert each["images_per_second"] > 0
        assert each["flop_per_second"] == each["images_per_second"] * found["flop_per_image"]
        assert each["matrix_peak_share"] == each["flop_per_second"] / peaks[each["precision"]]
    ours = found["end_to_end"]
    taken = tuple(ours[name] for name in ("backend", "precision", "convolution"))
    assert taken == ("batched", "bf16", bf16), "what the params take on a CPU"
    assert found["matrix_peak_share"] == ours["matrix_peak_share"]
    assert found["ratio"] == ours["images_per_second"] / found["student"]["images_per_second"]
    assert found["versions"]["torch"] == torch.__version__.partition("+")[0] or "+" in found["versions"]["torch"]
    json.dumps(found)


ABOUT = {
    "device": "cpu",
    "kind": "cpu",
    "threads": 2,
    "images": "50,000 images of cifar10",
    "epoch_images": 44_544,
    "turns": [
        ("input", "albumentations"),
        ("matrix", "bf16"),
        ("convolution", "bf16"),
        ("network", "bf16", "direct"),
        ("training", "albumentations", "bf16", "direct"),
        ("matrix", "fp32"),
        ("convolution", "fp32"),
        ("network", "fp32", "winograd"),
        ("training", "albumentations", "fp32", "winograd"),
    ],
    "chosen": ("albumentations", "bf16", "direct"),
    "flop_per_image": 2.0e9,
    "versions": {"torch": "2.15.0"},
}
RATES = [10_000.0, 800e9, 700e9, 380.0, 360.0, 150e9, 400e9, 160.0, 150.0, 100.0]


def crafted(factors: list[float]) -> dict[str, Any]:
    turns = [*ABOUT["turns"], rounds.STUDENT]  # type: ignore[misc]
    measured = [{turn: rate * by for turn, rate in zip(turns, RATES, strict=True)} for by in factors]
    return rounds.document(ABOUT, 512, dict.fromkeys(turns, 4.0), measured)


def test_the_median_of_rounds_counts() -> None:
    found = crafted([1.0, 0.5, 1.1])
    assert found["end_to_end"]["images_per_second"] == 360
    assert (found["end_to_end"]["lowest"], found["end_to_end"]["highest"]) == (180, 396.00000000000006)
    assert found["ratio"] == 3.6
    assert found["matrix_peak_share"] == 0.9
    assert found["student"]["matrix_peak_share"] == 0.5
    peaks = [(each["precision"], each["flop_per_second"], each["of"]) for each in found["matrix_peak"]]
    assert peaks == [("bf16", 800e9, "matrix product"), ("fp32", 400e9, "3×3 convolution")]
    assert found["end_to_end"]["input_share"] == 0.036
    assert found["epoch_seconds"] == pytest.approx(123.7, abs=0.1)


def test_the_table_fits_80_columns(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    tables.show(rounds.page(crafted([1.0])))
    shown = capsys.readouterr().out
    assert max(map(len, shown.splitlines())) <= 80
    assert "3.60 times the student's loop" in " ".join(shown.split())
    [row] = [line for line in shown.splitlines() if "end to end, bf16, albumentations" in line]
    assert [cell.strip() for cell in row.split("│")[2:-1]] == ["360", "±0.0%", "720 G", "90%"]
    assert "end to end, winograd, albumentations" in shown


def test_operations_of_an_image(small_params: MakeParams) -> None:
    """Of the exercise's network: three times the forward pass, but for the first layer, whose input has no gradient."""
    params = small_params(**{"model.width": 64})
    classifier = build_classifier(params.model, 10, [0.5] * 3, [0.25] * 3)
    convolutions = (
        (3, 64, 32),
        (64, 128, 32),
        (128, 128, 16),
        (128, 128, 16),
        (128, 256, 16),
        (256, 512, 8),
        (512, 512, 4),
        (512, 512, 4),
    )
    forward = sum(2 * 9 * inputs * outputs * side**2 for inputs, outputs, side in convolutions) + 2 * 512 * 10
    assert flop_per_image(classifier, torch.device("cpu")) == 3 * forward - 2 * 9 * 3 * 64 * 32**2
    assert all(parameter.grad is None for parameter in classifier.parameters())


def test_a_turn_lasts() -> None:
    asked: list[int] = []

    def seconds(times: int) -> float:
        asked.append(times)
        return 0.001 * times

    task = Task(32, seconds)
    assert task.rate(1.0) == pytest.approx(32_000)
    assert asked == [1, 1000]
    assert task.rate(1.0) == pytest.approx(32_000)
    assert asked == [1, 1000, 1000], "the pace is known by now"
    assert Task(32, lambda times: 9.0 * times).rate(1.0) == pytest.approx(32 / 9)


def test_without_data_images_are_random(
    small_params: MakeParams, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    dataset, words = images(small_params(**{"data.dataset": "cifar10", "data.limit": 500}))
    assert words == "500 random images, since data/arrays is not there"
    assert dataset.train_images.shape == (500, 32, 32, 3)
    assert len(set(dataset.train_labels)) == len(dataset.classes)


def test_data_of_other_params_are_refused(
    small_params: MakeParams, digits: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    save(digits, Path("data/arrays"))
    with pytest.raises(UserError, match=r"^batch_size must be ≤ .*\(288 images\), got 289; run `dvc repro download`"):
        images(small_params(batch_size=289, **{"data.limit": None}))


ANSWERING = "answering:Answering"


def assert_gone(pid: int) -> None:
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_each_worker_is_a_process_of_its_own() -> None:
    """So the engine's allocator setting does not reach the student."""
    with Worker(ANSWERING) as one, Worker(ANSWERING) as other:
        one.build("one")
        other.build("other")
        (first, word), (second, other_word) = one.ask("who"), other.ask("who")
        assert (word, other_word) == ("one", "other")
        assert len({os.getpid(), first, second}) == 3
        with pytest.raises(UserError, match=r"process `answering` ended by itself \(exit code 7\).*lower batch_size"):
            other.ask("end")
    for pid in (first, second):
        assert_gone(pid)


def test_a_worker_that_ends_while_it_builds_is_told(tmp_path: Path) -> None:
    with Worker(ANSWERING) as ending:
        ending.build("end")
        with pytest.raises(UserError, match=r"ended by itself \(exit code 7\)"):
            ending.ask("who")


def test_a_worker_ends_with_the_benchmark() -> None:
    with pytest.raises(KeyboardInterrupt), Worker(ANSWERING) as busy:
        busy.build("one")
        pid, _ = busy.ask("who")
        busy._send(("sleep", ()))
        raise KeyboardInterrupt
    assert_gone(pid)


def test_what_a_worker_refuses_is_told_here() -> None:
    with Worker(ANSWERING) as refusing:
        refusing.build("bad")
        with pytest.raises(UserError, match=r"^a bad word$"):
            refusing.ask("mapped")


def test_a_worker_short_of_memory_says_so() -> None:
    with Worker(ANSWERING) as full:
        full.build("one")
        with pytest.raises(UserError, match=r"^the benchmark ran out of memory \(MemoryError\); lower batch_size$"):
            full.ask("fill")


def small_workspace(folder: Path, digits: Dataset) -> None:
    for name in ("params.yaml", "dvc.yaml"):
        shutil.copy2(REPO / name, folder / name)
    set_params(folder, SMALL)
    save(digits, folder / "data" / "arrays")


def test_where_no_file_can_be_written_nothing_is_measured(digits: Dataset, tmp_path: Path) -> None:
    small_workspace(tmp_path, digits)
    refused = command(tmp_path, "onecycle", "bench", "--json", "nowhere/bench.json", check=False)
    assert (refused.returncode, refused.stderr) == (
        2,
        "error: --json: nowhere/bench.json cannot be written: No such file or directory\n",
    )


@pytest.mark.slow
def test_the_command(digits: Dataset, tmp_path: Path) -> None:
    small_workspace(tmp_path, digits)
    done = command(tmp_path, "onecycle", "bench", "--seconds", "0", "--json", "bench.json", COLUMNS="80")
    found = json.loads((tmp_path / "bench.json").read_text(encoding="utf-8"))
    assert {"device", "versions", "matrix_peak_share"} <= set(found)
    assert found["ratio"] == found["end_to_end"]["images_per_second"] / found["student"]["images_per_second"]
    assert f"{found['ratio']:.2f} times the student's loop" in " ".join(done.stdout.split())


@pytest.mark.slow
def test_what_a_start_costs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPO)
    starts = {each["stage"]: each["cpu_seconds"] for each in startup.measure()}
    assert set(starts) == {"python", "params", "download", "stats", "lr_range", "train", "evaluate", "report"}
    assert 0 < starts["python"] < starts["params"] < starts["stats"] < starts["train"]
