"""The gate on planted cases: what it lets through, turns down, refuses to judge, and how often it is mistaken."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from conftest import REPO, Run, command
from crafted_run import IMAGES, commit, edit_metrics, errors, repository, set_params, write_run
from numpy.typing import NDArray

from onecycle import gate, paths, revisions
from onecycle.differences import EqualRuns, run_deviation
from onecycle.errors import UserError
from onecycle.exits import CRASHED
from onecycle.gate import judge, verdict_on
from onecycle.params import load
from onecycle.results import Results, read, read_side
from onecycle.revisions import Place
from onecycle.stats_tests import Discordant, paired_difference, runs_estimate, runs_to_settle

COMMON, OWN = 375, 225
"""Of 10,000 images every run gets 375 wrong, and 225 of its own: 6 % wrong, 450 discordant between two equal runs."""

LIMITS = load(REPO / paths.PARAMS).gate


@pytest.fixture(scope="session")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository: main, branches whose results differ from it, and an empty branch. Never write to it."""
    folder = repository(tmp_path_factory.mktemp("gate") / "repo")
    (folder / "README").write_text("nothing yet\n", encoding="utf-8")
    write_run(folder, errors(COMMON, OWN))
    (folder / "results").rename(folder.parent / "later")
    commit(folder, "no results")
    command(folder, "git", "branch", "empty")
    (folder.parent / "later").rename(folder / "results")
    commit(folder, "results")
    cases = {
        "equal": errors(COMMON, OWN, OWN),
        "noise": errors(COMMON, OWN + 10, OWN),
        "unsure": errors(COMMON, OWN + 30, OWN),
        "worse": errors(COMMON, OWN + 60, OWN),
        "better": errors(COMMON, OWN - 60, OWN),
        "bad": errors(COMMON, 1000, OWN),
    }
    for name, wrong in cases.items():
        command(folder, "git", "switch", "-qc", name, "main")
        write_run(folder, wrong)
        commit(folder, name)
    command(folder, "git", "switch", "-q", "main")
    return folder


@pytest.fixture
def planted_copy(tmp_path: Path) -> Path:
    """A folder with one believable run, to spoil."""
    write_run(tmp_path, np.arange(0, 30), images=500)
    return tmp_path


@pytest.mark.parametrize(
    ("branch", "verdict", "code", "strict"),
    [
        ("main", "pass", 0, 0),
        ("equal", "pass", 0, 0),
        ("noise", "pass", 0, 0),
        ("better", "pass", 0, 0),
        ("unsure", "inconclusive", 0, 3),
        ("worse", "regression", 1, 1),
        ("bad", "regression", 1, 1),
    ],
)
def test_planted_branches(planted: Path, onecycle: Run, branch: str, verdict: str, code: int, strict: int) -> None:
    arguments = ("gate", "--baseline", "main", "--candidate", branch, "--json")
    ended, output, _ = onecycle(planted, *arguments)
    judged = json.loads(output)
    assert (ended, judged["verdict"], judged["exit_code"]) == (code, verdict, code)
    assert onecycle(planted, *arguments, "--strict")[0] == strict
    failed = [check["name"] for check in judged["checks"] if check["verdict"] == "regression"]
    assert failed == {"worse": ["accuracy"], "bad": ["accuracy", "floor", "loss", "ece"]}.get(branch, [])
    assert judged["seeds"] == (5 if branch == "unsure" else None)


def test_a_run_against_itself_passes_on_few_images(tmp_path: Path, onecycle: Run) -> None:
    """As two classifiers that agree on all 360 they might be further apart than the margin on others."""
    for name in (".", "again"):
        write_run(tmp_path / name, np.arange(18), images=360)
    code, output, _ = onecycle(tmp_path, "gate", "--baseline", "again", "--strict", "--markdown")
    assert code == 0 and "| +0.00 | +0.00 to +0.00 | pass |" in output
    assert "Accuracy of equal runs" not in output  # on which nothing stands
    assert "Both give the same predictions." in output
    write_run(tmp_path, np.arange(18), images=360, sure=0.96)
    assert onecycle(tmp_path, "gate", "--baseline", "again", "--strict")[0] == 3


def test_a_table_for_a_pull_request(planted: Path, onecycle: Run) -> None:
    arguments = ("gate", "--baseline", "main", "--candidate", "unsure")
    code, output, errors_said = onecycle(planted, *arguments, "--markdown")
    lines = output.splitlines()
    assert (code, errors_said, lines[0]) == (0, "", "**Gate: inconclusive**")
    table = [line for line in lines if line.startswith("|")]
    assert len(table) == 6 and len({line.count("|") for line in table}) == 1
    assert table[2].startswith("| accuracy | 94.00 % | 93.70 % | -0.30 | -0.66 to +0.06 | inconclusive |")
    assert (
        "To pass: accuracy falls by &#60; 0.5 points, accuracy ≥ 90 %, loss rises by ≤ 0.03, ece rises by ≤ 0.02."
        in lines
    )
    assert "Warning: the drop in accuracy may be negligible or 0.5 points and more; 5 seeds each" in lines[-4]
    assert lines[-2:] == ["Accuracy of equal runs deviates by 0.15 points (from the images they disagree on).", ""]
    code, output, _ = onecycle(planted, *arguments)
    assert output.startswith("Gate: inconclusive") and "│" in output and "<" in output


def test_the_workspace_is_the_candidate(planted: Path, onecycle: Run) -> None:
    """A run that was made and not committed."""
    code, output, _ = onecycle(planted, "gate", "--baseline", "worse")
    assert code == 0
    assert "workspace against worse" in output


def test_a_crash_does_not_look_like_a_regression(planted: Path, onecycle: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError("a fault of ours")

    monkeypatch.setattr(gate, "judge", broken)
    code, output, said = onecycle(planted, "gate", "--baseline", "main")
    assert (code, output) == (CRASHED, "") and code not in (0, 1, 2, 3)
    assert said.startswith("Traceback") and said.endswith("ZeroDivisionError: a fault of ours\n")


def test_limits_are_params(tmp_path: Path, onecycle: Run) -> None:
    write_run(tmp_path / "other", errors(COMMON, OWN))
    write_run(tmp_path, errors(COMMON, OWN + 60, OWN), sure=0.965)
    assert onecycle(tmp_path, "gate", "--baseline", "other")[0] == 1
    set_params(tmp_path, {"gate.negligible": 0.007, "gate.margin": 0.02})
    code, output, _ = onecycle(tmp_path, "gate", "--baseline", "other", "--markdown")
    assert code == 0  # but not unseen
    said = "The limits are not those of the baseline: gate.negligible 0.001 → 0.007, gate.margin 0.005 → 0.02."
    assert said in output.splitlines()
    for change in ({"gate.floor": 0.95}, {"gate.floor": 0.9, "gate.loss_margin": 0.0}):
        set_params(tmp_path, change)
        assert onecycle(tmp_path, "gate", "--baseline", "other")[0] == 1
    set_params(tmp_path, {"gate.loss_margin": 1.0, "gate.ece_margin": 0.0})
    assert onecycle(tmp_path, "gate", "--baseline", "other")[0] == 1
    set_params(tmp_path, {"gate.margin": 0.005})
    code, _, said = onecycle(tmp_path, "gate", "--baseline", "other")
    assert (code, said) == (2, "error: params.yaml: gate.negligible must be < gate.margin (0.005), got 0.007\n")


def test_a_rise_of_loss_that_may_be_chance_fails_nothing(tmp_path: Path) -> None:
    """Equal runs whose loss varies as much are known, or hardly varies, or none are."""

    def run(name: str, start: int, sure: float) -> Results:
        write_run(tmp_path / name, errors(COMMON, OWN, start), sure=sure)
        return read(Place(name, None, tmp_path / name))

    sides = (run("baseline", 0, 0.97),), (run("candidate", OWN, 0.96),)
    limits = LIMITS.model_copy(update={"loss_margin": 0.005})
    for name, spread, expected in (
        ("far", 0.01, "inconclusive"),
        ("near", 0.0001, "regression"),
        ("", 0, "regression"),
    ):
        kept = [run(f"{name}{seed}", 300 * seed, 0.97 - seed * spread) for seed in range(3)] if name else []
        judged = judge(*sides, limits, EqualRuns({"exercise": kept}, "results/reference") if kept else None)
        verdicts = {check.name: check.verdict for check in judged.checks}
        assert verdicts == {"accuracy": "pass", "floor": "pass", "loss": expected, "ece": "pass"}
        said = "loss rose by more than the limit, which may be chance"
        told = any(said in part for part in gate.page(judged, limits) if isinstance(part, str))
        assert told == (expected == "inconclusive")


def test_seeds_that_are_there_were_not_enough(tmp_path: Path) -> None:
    """Three on one side ask for four each at least, however little the many on the other side deviate."""
    for name, steps in (("few", (0, 35, 70)), ("many", (35, 37) * 12)):
        for seed, step in enumerate(steps):
            write_run(tmp_path / f"{name}{seed}", errors(COMMON, OWN + step, 300 * seed + 7 * len(steps)))
            set_params(tmp_path / f"{name}{seed}", {"seed": seed})
    sides = [read_side(",".join(map(str, sorted(tmp_path.glob(f"{name}*"))))) for name in ("few", "many")]
    judged = judge(sides[0], sides[1], LIMITS)
    assert judged.checks[0].verdict == "inconclusive" and judged.deviation is not None
    assert runs_to_settle(LIMITS.margin, judged.deviation, LIMITS.alpha) == 3
    assert judged.seeds == 4


def test_without_a_baseline_only_the_floor_judges(planted: Path, onecycle: Run) -> None:
    for name, why in (
        ("empty", "results/evaluate/metrics.json of empty is missing"),
        ("nowhere", "there is no git revision, DVC experiment, folder, recipe or MLflow run called nowhere"),
    ):
        code, output, said = onecycle(planted, "gate", "--baseline", name)
        assert (code, output) == (2, "") and why in said and "--allow-no-baseline" in said
        code, output, _ = onecycle(planted, "gate", "--baseline", name, "--allow-no-baseline", "--markdown")
        assert code == 0 and f"without a baseline ({why}" in output and "): only the floor judges" in output
    bad = ("--baseline", "nowhere", "--candidate", "bad", "--allow-no-baseline")
    assert onecycle(planted, "gate", *bad)[0] == 1


def test_a_shallow_clone_is_told_to_fetch(planted: Path, tmp_path: Path, onecycle: Run) -> None:
    command(tmp_path, "git", "clone", "-q", "--depth", "1", "--branch", "worse", f"file://{planted}", "shallow")
    for allowed in ((), ("--allow-no-baseline",)):
        code, _, said = onecycle(tmp_path / "shallow", "gate", "--baseline", "origin/main", *allowed)
        assert code == 2 and said.startswith("error: origin/main is not in this shallow clone")
        assert "fetch-depth: 0" in said


def test_outside_git_a_folder_still_compares(tmp_path: Path, onecycle: Run) -> None:
    write_run(tmp_path, np.arange(30), images=500)
    write_run(tmp_path / "reference", np.arange(30), images=500)
    assert onecycle(tmp_path, "gate", "--baseline", "reference")[0] == 0
    code, _, said = onecycle(tmp_path, "gate", "--baseline", "main")
    assert code == 2 and "main is no folder, and git cannot be asked for it: not a git repository" in said


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"accuracy": ...}, "accuracy is missing; run `dvc repro evaluate`"),
        ({"n": ...}, "n is missing; run `dvc repro evaluate`"),
        ({"loss": float("nan")}, "loss must be a finite number, got nan"),
        ({"loss": float("inf")}, "loss must be a finite number, got inf"),
        ({"loss": "low"}, 'loss must be a number, got "low"'),
        ({"loss": None}, "loss must be a number, got null"),
        ({"ece": True}, "ece must be a number, got true"),
        ({"ece": -0.1}, "ece must be between 0 and 1, got -0.1"),
        ({"accuracy": 94.0}, "accuracy must be between 0 and 1, got 94.0"),
        ({"top5": 1.5}, "top5 must be between 0 and 1, got 1.5"),
        ({"loss": -1}, "loss must be ≥ 0, got -1"),
        ({"loss": 10**400}, "loss must be between 0 and 1.79769e+308, got 1000"),
        ({"n": 500.0}, "n must be an integer, got 500.0"),
        ({"n": 0}, "n must be ≥ 1, got 0"),
        ({"dataset_digest": 3}, "dataset_digest must be a string, got 3"),
        ({"accuracy": 0.95}, "accuracy is 0.95, but predictions.parquet beside it gives 0.94"),
        ({"wrong": 29}, "wrong is 29, but predictions.parquet beside it gives 30"),
        ({"ece": 0.5}, "ece is 0.5, but predictions.parquet beside it gives"),
        ({"macro_f1": 0.5}, "macro_f1 is 0.5, but predictions.parquet beside it gives"),
    ],
)
def test_metrics_that_are_refused(planted_copy: Path, onecycle: Run, changes: dict[str, Any], sentence: str) -> None:
    edit_metrics(planted_copy, **changes)
    code, output, said = onecycle(planted_copy, "gate", "--baseline", "workspace")
    assert (code, output) == (2, "")
    assert said.startswith(f"error: results/evaluate/metrics.json: {sentence}")
    assert said.count("\n") == 1


@pytest.mark.parametrize(
    ("path", "content", "sentence"),
    [
        (paths.EVALUATE_METRICS, b"{", "results/evaluate/metrics.json is not valid JSON"),
        (paths.EVALUATE_METRICS, b"[" * 100_000, "results/evaluate/metrics.json is not valid JSON"),
        (paths.EVALUATE_METRICS, b"\xff\xfe\xff", "results/evaluate/metrics.json is not valid JSON"),
        (paths.EVALUATE_METRICS, b"[1]", "results/evaluate/metrics.json must hold keys and values, got a list"),
        (paths.EVALUATE_METRICS, None, "results/evaluate/metrics.json is missing"),
        (paths.PREDICTIONS, None, "results/evaluate/predictions.parquet is missing"),
        (paths.PREDICTIONS, b"PAR1", "results/evaluate/predictions.parquet is no readable Parquet file"),
        (paths.PREDICTIONS, b"version https://git-lfs", "results/evaluate/predictions.parquet is no readable Parquet"),
        (paths.PER_CLASS, None, "results/evaluate/per_class.csv is missing"),
        (paths.PER_CLASS, b"class,recall\n,1\n", "results/evaluate/per_class.csv: class must name every class"),
        (paths.PER_CLASS, b"\xff", "results/evaluate/per_class.csv is not UTF-8 text"),
    ],
)
def test_files_that_are_refused(
    planted_copy: Path, monkeypatch: pytest.MonkeyPatch, path: Path, content: bytes | None, sentence: str
) -> None:
    if content is None:
        (planted_copy / path).unlink()
    else:
        (planted_copy / path).write_bytes(content)
    monkeypatch.chdir(planted_copy)
    with pytest.raises(UserError) as refusal:
        read(revisions.find("workspace"))
    assert str(refusal.value).startswith(sentence)


@pytest.mark.parametrize("keep", [0.2, 0.5, 0.9, 0.999])
def test_a_truncated_file_is_refused(planted_copy: Path, keep: float) -> None:
    path = planted_copy / paths.PREDICTIONS
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * keep)])
    with pytest.raises(UserError, match=r"predictions\.parquet of .* is no readable Parquet file"):
        read(revisions.find(str(planted_copy)))


def test_a_byte_that_flipped_is_refused_or_harms_nothing(planted_copy: Path) -> None:
    path = planted_copy / paths.PREDICTIONS
    content = path.read_bytes()
    place = revisions.find(str(planted_copy))
    good = read(place)
    refused = 0
    for position in np.random.default_rng(0).integers(0, len(content), 60).tolist():
        path.write_bytes(content[:position] + bytes([content[position] ^ 0x15]) + content[position + 1 :])
        try:
            assert (read(place).correct == good.correct).all()
        except UserError:
            refused += 1
    assert refused > 40


@pytest.mark.parametrize(
    ("column", "change", "sentence"),
    [
        ("label", lambda values: values + 10, "label must be below 10, the number of classes, got 10"),
        ("prediction", lambda values: values.astype("float"), "prediction must hold integers and no gaps"),
        ("confidence", lambda values: values * 2, "confidence must be between 0 and 1, got"),
        ("confidence", lambda values: values * np.nan, "confidence must hold numbers and no gaps"),
        ("index", lambda values: values * 0, "index must count the images from 0 to 499, got 0"),
        ("index", lambda values: values.astype(str), "index must hold integers and no gaps"),
        ("label", None, "there must be one column label"),
    ],
)
def test_predictions_that_are_refused(
    planted_copy: Path, column: str, change: Callable[[Any], Any] | None, sentence: str
) -> None:
    path = planted_copy / paths.PREDICTIONS
    frame = pd.read_parquet(path)
    changed = frame.drop(columns=column) if change is None else frame.assign(**{column: change(frame[column])})
    changed.to_parquet(path)
    with pytest.raises(UserError) as refusal:
        read(revisions.find(str(planted_copy)))
    assert sentence in str(refusal.value)


def test_rows_in_another_order_are_the_same_run(planted_copy: Path) -> None:
    place = revisions.find(str(planted_copy))
    before = read(place)
    pd.read_parquet(planted_copy / paths.PREDICTIONS)[::-1].to_parquet(planted_copy / paths.PREDICTIONS)
    assert (read(place).predictions == before.predictions).all()


@pytest.mark.parametrize(
    ("other", "sentence"),
    [
        ({"digest": "d2"}, 'dataset_digest is "d1" for workspace and "d2" for other'),
        ({"images": 400}, "n is 500 for workspace and 400 for other"),
    ],
)
def test_another_test_set_is_refused(planted_copy: Path, onecycle: Run, other: dict[str, Any], sentence: str) -> None:
    write_run(planted_copy / "other", np.arange(30), **{"images": 500, **other})
    code, _, said = onecycle(planted_copy, "gate", "--baseline", "workspace", "--candidate", "other")
    assert code == 2 and sentence in said


def test_another_number_of_predictions_is_refused(planted_copy: Path, onecycle: Run) -> None:
    edit_metrics(planted_copy, n=499)
    code, _, said = onecycle(planted_copy, "gate", "--baseline", "workspace")
    assert code == 2 and "predictions.parquet: holds 500 images, but n in metrics.json beside it is 499" in said


def test_several_seeds_are_judged_as_runs(tmp_path: Path, onecycle: Run) -> None:
    """Accuracies 94.0 ± 0.1 and 93.7 ± 0.1: one run each cannot tell, four can."""
    for seed, extra in enumerate((-10, 0, 0, 10)):
        write_run(tmp_path / f"a{seed}", errors(COMMON, OWN + extra, 300 * seed), sure=0.97 - seed / 1000)
        write_run(tmp_path / f"b{seed}", errors(COMMON, OWN + 30 + extra, 1200 + 300 * seed), sure=0.97 - seed / 1000)
        for side in "ab":
            set_params(tmp_path / f"{side}{seed}", {"seed": seed})
    write_run(tmp_path, errors(COMMON, OWN))
    first, second = (",".join(f"{side}{seed}" for seed in range(4)) for side in "ab")
    one = ("gate", "--baseline", "a1", "--candidate", "b1", "--strict")
    assert onecycle(tmp_path, *one)[0] == 3
    assert onecycle(tmp_path, "gate", "--baseline", first, "--candidate", second)[0] == 1
    for baseline, candidate, sentence in (
        ("a0,a1,a0", second, "a0 and a0 are the same run; give runs with different seeds"),
    ):
        code, _, said = onecycle(tmp_path, "gate", "--baseline", baseline, "--candidate", candidate)
        assert code == 2 and sentence in said
    set_params(tmp_path / "b3", {"epochs": 30})
    code, _, said = onecycle(tmp_path, "gate", "--baseline", first, "--candidate", second)
    assert code == 2 and "b0 and b3 differ in epochs; runs of one side may differ in seed" in said


def detected(loss: float, trials: int = 20_000) -> float:
    """How often a true `loss` is called a regression, one run a side, 4.5 % of 10,000 images discordant."""
    shares = [(0.045 - loss) / 2, (0.045 + loss) / 2, 1 - 0.045]
    draws = np.random.default_rng(0).multinomial(IMAGES, shares, size=trials).tolist()
    losses = (paired_difference(Discordant(*draw[:2], IMAGES), 1 - 2 * LIMITS.alpha) for draw in draws)
    return float(np.mean([verdict_on(loss, LIMITS) == "regression" for loss in losses]))


def detected_by_seeds(loss: float, seeds: int, trials: int = 1000) -> float:
    """The same with several seeds a side. Each image has its own probability of being right, and equal runs are
    independent draws (Jordan 2023): a mean of 94 %, and 4.5 % discordant between two equal runs."""
    generator = np.random.default_rng(0)
    precision = 0.94 * 0.06 / (0.94 * 0.06 - 0.045 / 2) - 1
    right = generator.beta(0.94 * precision, 0.06 * precision, IMAGES)
    found = 0
    for _ in range(trials):
        baseline, candidate = (accuracies(generator, right * (1 - lost / 0.94), seeds) for lost in (0.0, loss))
        estimate = runs_estimate(candidate, baseline)
        assert estimate
        found += verdict_on(estimate.difference(1 - 2 * LIMITS.alpha), LIMITS) == "regression"
    return found / trials


def accuracies(generator: np.random.Generator, right: NDArray[np.float64], seeds: int) -> list[float]:
    draws = generator.random((seeds, IMAGES), dtype=np.float32) < right
    return [float(share) for share in draws.mean(axis=1)]


def test_where_more_is_negligible_it_asks_for_more_seeds(planted: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A certain loss that is negligible would stay inconclusive in an interval that is only as wide as the margin."""
    monkeypatch.chdir(planted)
    sides = read_side("main"), read_side("unsure")
    few, many = (judge(*sides, LIMITS.model_copy(update={"negligible": share})).seeds for share in (0.0025, 0.004))
    assert few == judge(*sides, LIMITS).seeds == 5
    assert many == runs_to_settle(0.002, run_deviation(*sides)[0], LIMITS.alpha) > few


def test_calibration_with_one_run_a_side() -> None:
    """README tells both."""
    assert detected(0.0) == pytest.approx(LIMITS.alpha, abs=0.005)
    assert detected(0.006) == pytest.approx(0.88, abs=0.01)


def test_calibration_with_the_seeds_it_asks_for() -> None:
    seeds = runs_to_settle(LIMITS.margin, 0.0015, LIMITS.alpha)
    assert detected_by_seeds(0.0, seeds) <= 0.05
    assert detected_by_seeds(0.005, seeds) >= 0.9
