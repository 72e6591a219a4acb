"""What a comparison says, in figures and in words, and where it finds the runs."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Run, command
from crafted_run import CLASSES, LABELS, commit, errors, repository, set_params, write_run
from scipy.stats import t as student
from scipy.stats import ttest_ind

from onecycle import compare, differences, numbers, paths, results, revisions, tables
from onecycle.differences import side_name
from onecycle.errors import UserError
from onecycle.results import Results, read, read_side
from onecycle.revisions import AbsentError, Place, find


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders: `first`, `second` with 60 more images wrong and other params, `equal`. Never write to it."""
    folder = tmp_path_factory.mktemp("compare")
    write_run(folder / "first", errors(375, 225))
    write_run(folder / "second", errors(375, 285, 225))
    write_run(folder / "equal", errors(375, 225, 225))
    set_params(folder / "second", {"epochs": 30, "one_cycle.max_lr": 0.00001, "seed": 1})
    return folder


def side(folder: Path, *names: str) -> tuple[Results, ...]:
    return read_side(",".join(str(folder / name) for name in names))


def compared(folder: Path, first: str, second: str) -> compare.Comparison:
    return compare.compare(side(folder, first), side(folder, second))


def test_a_worse_run(runs: Path) -> None:
    comparison = compared(runs, "first", "second")
    assert comparison.verdict == "worse"
    assert (comparison.only_first_right, comparison.only_second_right) == (285, 225)
    assert comparison.test == "McNemar's test" and comparison.p == pytest.approx(0.0079, abs=1e-4)
    assert comparison.params == {"seed": ("0", "1"), "epochs": ("24", "30"), "one_cycle.max_lr": ("auto", "1e-05")}
    rows = {row.name: row for row in comparison.metrics}
    accuracy = rows["accuracy"]
    assert (accuracy.first, accuracy.second) == (0.94, 0.934)
    assert accuracy.low is not None and accuracy.high is not None
    assert (accuracy.difference, accuracy.low, accuracy.high) == pytest.approx((-0.006, -0.0104, -0.0016), abs=1e-4)
    assert (rows["wrong"].low, rows["wrong"].high) == pytest.approx((-1e4 * accuracy.high, -1e4 * accuracy.low))
    assert rows["loss"].low is None
    for name in ("ece", "macro_precision", "macro_recall", "macro_f1"):
        low, high = rows[name].low, rows[name].high
        assert low is not None and high is not None and low < rows[name].difference < high, name
    recall = rows["macro_recall"]  # on classes of one size this is the accuracy
    assert (recall.low, recall.high) == pytest.approx((accuracy.low, accuracy.high), abs=1e-3)
    assert not {"n", "accuracy_low", "accuracy_high"} & set(rows)


def test_a_better_run_and_an_equal_one(runs: Path) -> None:
    assert compared(runs, "second", "first").verdict == "better"
    equal = compared(runs, "first", "equal")
    assert equal.verdict == "no evidence" and equal.p == 1.0
    assert equal.deviation == pytest.approx(0.0015)
    assert equal.runs_to_see == {0.002: 13, 0.005: 4}
    assert equal.params == {}


def test_a_verdict_needs_the_test_and_the_interval(tmp_path: Path) -> None:
    """McNemar's p is just below 0.05 here, and the interval of the difference just holds 0."""
    write_run(tmp_path / "first", np.arange(600))
    write_run(tmp_path / "second", np.arange(12, 624))
    comparison = compared(tmp_path, "first", "second")
    accuracy = next(row for row in comparison.metrics if row.name == "accuracy")
    assert comparison.p < 0.05 and accuracy.low is not None and accuracy.high is not None
    assert accuracy.low < 0 < accuracy.high
    assert comparison.verdict == "no evidence"


def test_few_discordant_images_are_tested_exactly(tmp_path: Path) -> None:
    write_run(tmp_path / "first", np.arange(30), images=500)
    write_run(tmp_path / "second", np.arange(36), images=500)
    comparison = compared(tmp_path, "first", "second")
    assert comparison.test == "McNemar's test, exact"
    assert comparison.p == pytest.approx(2 * 0.5**6)
    assert comparison.verdict == "worse"
    write_run(tmp_path / "third", np.arange(5, 44), images=500)
    doubtful = compared(tmp_path, "first", "third")  # 14 against 5: the interval sees it, the exact test does not
    accuracy = next(row for row in doubtful.metrics if row.name == "accuracy")
    assert accuracy.high is not None and accuracy.high < 0 and doubtful.p > 0.05
    assert doubtful.verdict == "no evidence"


def test_one_image_gives_no_interval_by_resampling(tmp_path: Path) -> None:
    write_run(tmp_path / "first", np.arange(0), images=1)
    write_run(tmp_path / "second", np.arange(1), images=1)
    rows = {row.name: row for row in compared(tmp_path, "first", "second").metrics}
    assert (rows["ece"].low, rows["macro_f1"].high) == (None, None)
    assert rows["accuracy"].low is not None


def test_differences_by_class(tmp_path: Path) -> None:
    """Cats become worse, all else stays."""
    cats = np.flatnonzero(LABELS == 3)
    write_run(tmp_path / "first", cats[:50])
    write_run(tmp_path / "second", cats[:120])
    rows = {row.name: row for row in compared(tmp_path, "first", "second").classes}
    assert tuple(rows) == CLASSES
    assert (rows["cat"].first, rows["cat"].second) == (0.95, 0.88)
    assert rows["cat"].high is not None and rows["cat"].high < 0
    assert rows["dog"].difference == 0 and rows["dog"].low is not None and rows["dog"].low < 0


def test_three_seeds_a_side_are_compared_as_runs(tmp_path: Path) -> None:
    for seed in range(3):
        for name, wrong in (("a", 225), ("b", 285)):
            write_run(tmp_path / f"{name}{seed}", errors(375, wrong + 8 * seed, 300 * seed))
            set_params(tmp_path / f"{name}{seed}", {"seed": seed})
    comparison = compare.compare(side(tmp_path, "a0", "a1", "a2"), side(tmp_path, "b0", "b1", "b2"))
    assert comparison.test == "Welch's t-test" and comparison.verdict == "worse"
    assert comparison.only_first_right is None
    assert comparison.deviation == pytest.approx(0.0008)
    assert all(row.low is not None and row.low < row.difference for row in comparison.metrics)
    assert comparison.params == {}


def test_one_run_against_several_and_two_against_two(tmp_path: Path) -> None:
    for seed in range(3):
        for name, wrong in (("a", 225), ("b", 285)):
            write_run(tmp_path / f"{name}{seed}", errors(375, wrong + 8 * seed, 300 * seed))
            set_params(tmp_path / f"{name}{seed}", {"seed": seed})
    alone = compare.compare(side(tmp_path, "a0", "a1", "a2"), side(tmp_path, "b0"))
    assert (alone.test, alone.verdict) == ("Student's t-test", "worse")
    assert (alone.deviation, alone.deviation_source) == (pytest.approx(0.0008), "these runs")
    assert alone.only_first_right is None and alone.classes[0].low is not None
    pairs = compare.compare(side(tmp_path, "a0", "a1"), side(tmp_path, "b0", "b2"))
    welch = ttest_ind([0.94, 0.9392], [0.934, 0.9324], equal_var=False).pvalue
    assert (pairs.test, pairs.p) == ("Welch's t-test", pytest.approx(welch))


def test_runs_that_do_not_vary_are_refused(tmp_path: Path) -> None:
    for position in range(3):
        write_run(tmp_path / f"a{position}", np.arange(30) + position, images=500)
        write_run(tmp_path / f"b{position}", np.arange(40) + position, images=500)
    with pytest.raises(UserError, match="accuracy does not vary between the runs of either side"):
        compare.compare(side(tmp_path, "a0", "a1", "a2"), side(tmp_path, "b0", "b1", "b2"))


def seeds_apart(folder: Path, step: int) -> differences.EqualRuns:
    """Three runs, each with `step` images more wrong than the one before."""
    for seed in range(3):
        write_run(folder / f"{seed}", errors(375, 225 + step * seed, 300 * seed), sure=0.97 - seed / 1000)
    runs = [read(Place(f"{seed}", None, folder / f"{seed}")) for seed in range(3)]
    return differences.EqualRuns({"exercise": runs}, "results/reference")


def interval(row: compare.MetricComparison) -> tuple[float | None, float | None]:
    return row.low, row.high


def test_what_is_known_of_equal_runs_widens_what_their_images_show(runs: Path, tmp_path: Path) -> None:
    sides = side(runs, "first"), side(runs, "second")
    known = seeds_apart(tmp_path / "far", 40)
    comparison = compare.compare(*sides, known)
    assert (comparison.verdict, comparison.deviation) == ("no evidence", pytest.approx(0.004))
    accuracy, alone = ({row.name: row for row in each.metrics} for each in (comparison, compare.compare(*sides)))
    reach = student.ppf(0.975, 2) * 2**0.5 * 0.004
    assert interval(accuracy["accuracy"]) == pytest.approx((-0.006 - reach, -0.006 + reach))
    assert interval(accuracy["macro_recall"]) == pytest.approx(interval(accuracy["accuracy"]), abs=1e-3)
    assert alone["loss"].low is None and accuracy["loss"].low is not None
    assert all(row.low is not None and row.low < 0 < row.high for row in comparison.classes if row.high is not None)
    source = "the seeds in results/reference, 3 of exercise"
    assert compare.sentence(comparison).endswith(f", t-test with the deviation of {source}")
    assert f"0.40 points, {source})." in tables.markdown(compare.page(comparison))
    less = compare.compare(*sides, seeds_apart(tmp_path / "near", 1))
    assert (less.p, less.test) == (compare.compare(*sides).p, "McNemar's test")
    assert interval({row.name: row for row in less.metrics}["accuracy"]) == interval(alone["accuracy"])


def test_two_seeds_of_one_recipe_and_code_are_said_to_be_that(tmp_path: Path) -> None:
    for seed, code in ((0, "c1"), (1, "c1"), (2, "c2")):
        write_run(tmp_path / f"{seed}", errors(375, 225 + seed, 300 * seed))
        set_params(tmp_path / f"{seed}", {"seed": seed})
        hashes = {"outputs": {}, "code": {"src/onecycle/training.py": code}}
        (tmp_path / f"{seed}" / "hashes.json").write_text(json.dumps(hashes), encoding="utf-8")
    told = "Same code and recipe, other seeds: with the same packages and device, what differs is chance."
    for other, expected in (("1", True), ("2", False), ("0", False)):
        comparison = compared(tmp_path, "0", other)
        assert comparison.same_recipe is expected
        assert (told in compare.page(comparison)) is expected
    write_run(tmp_path / "3", errors(375, 225))  # as seed 0 has it
    set_params(tmp_path / "3", {"seed": 3})
    shutil.copy(tmp_path / "1/hashes.json", tmp_path / "3")
    said = tables.markdown(compare.page(compared(tmp_path, "0", "3")))
    assert "Both have the same results though their seeds differ" in said and told not in said
    mixed = compare.compare(side(tmp_path, "0"), side(tmp_path, "1") + side(tmp_path, "2"))
    assert mixed.same_recipe is False, "one of three has other code"


def test_seeds_of_a_recipe_are_called_by_its_name() -> None:
    seeds = [f"results/reference/page/seed-{seed}" for seed in range(3)]
    assert side_name(seeds) == "page (3 runs)"
    assert side_name(["mine/seed-0", "mine/seed-1"]) == "mine (2 runs)"
    for others in (seeds[:1], [*seeds, "workspace"], [seeds[0], "results/reference/exercise/seed-1"], ["a", "b"]):
        assert side_name(others) == ", ".join(others)


@pytest.mark.parametrize(
    ("p", "told"), [(0.0078912, "0.0079"), (0.0499416, "0.0499"), (0.05, "0.05"), (0.0500001, "0.05"), (1.0, "1")]
)
def test_a_p_value_is_told_on_its_side_of_the_level(p: float, told: str) -> None:
    assert numbers.p_value(p, 0.05) == told


def test_a_mean_of_counts_is_no_whole_number() -> None:
    assert numbers.compared("wrong", 659.0, 1591 + 2 / 3, -0.01, 1865.3) == (
        "659.0",
        "1,591.7",
        "+932.7",
        "-0.0 to +1,865.3",
    )


def test_a_metric_is_told_by_its_range(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(results.RANGES, "worst_loss", (0.0, 10.0))
    monkeypatch.setitem(results.RANGES, "worst_recall", results.SHARE)
    assert numbers.compared("worst_loss", 2.3379, 2.606, None, None) == ("2.3379", "2.6060", "+0.2681", "–")
    assert numbers.compared("worst_recall", 0.9, 0.85, None, None) == ("90.00 %", "85.00 %", "-5.00", "–")


def test_what_it_prints(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    comparison = compared(runs, "first", "second")
    verdict = "worse; accuracy -0.60 points (-1.04 to -0.16), p = 0.0079, McNemar's test"
    assert compare.sentence(comparison) == verdict
    text = tables.markdown(compare.page(comparison))
    assert text.splitlines()[0].endswith(verdict)
    assert "| accuracy | 94.00 % | 93.40 % | -0.60 | -1.04 to -0.16 |" in text
    assert "| wrong | 600 | 660 | +60 | +16 to +104 |" in text
    assert "| one\\_cycle.max\\_lr | auto | 1e-05 |" in text
    assert "Images that only the first gets right: 285; only the second: 225." in text
    source = "from the images they disagree on"
    assert f"for 0.2 points and 4 for 0.5 points (standard deviation between equal runs 0.16 points, {source})." in text
    tables.show(compare.page(comparison))
    shown = capsys.readouterr().out
    assert "max_lr" in shown and "93.40 %" in shown
    document: dict[str, Any] = json.loads(json.dumps(compare.document(comparison), allow_nan=False))
    assert document["verdict"] == "worse" and document["runs_to_see"].keys() == {"0.002", "0.005"}


def test_names_from_a_branch_stay_text() -> None:
    """They end up in a comment on a pull request."""
    text = tables.markdown(["see @all", tables.Table("t", ("a",), [["x|y <img src=z>\n| [link](b)"]])])
    assert text == "see &#64;all\n\n**t**\n\n| a |\n| --- |\n| x\\|y &#60;img src=z&#62; \\| \\[link\\](b) |\n"
    assert tables.markdown(["~~a~~ __b__ &#64;c #7"]) == "\\~\\~a\\~\\~ \\_\\_b\\_\\_ &#38;&#35;64;c &#35;7\n"


def test_names_from_a_branch_steer_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    tables.show(["one\x1b[2J\nmore", tables.Table("ti\x9btle", ("a", "b"), [("x\x1b]52;c;eA==\a", "1")])])
    shown = capsys.readouterr().out
    assert {sign for sign in shown if not sign.isprintable()} == {"\n"}
    assert "one?[2J\nmore" in shown and "x?]52;c;eA==?" in shown


def test_a_narrow_terminal_cuts_no_name(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    names = [f"results/reference/{recipe}/seed-0" for recipe in ("exercise", "tenth")]
    tables.show([tables.Table("t", ("execution", "recipe"), [(name, "as workspace") for name in names])])
    cells = [line.split("│")[1].strip() for line in capsys.readouterr().out.splitlines() if line.startswith("│")]
    assert "".join(cells) == "".join(names)


def test_a_pipe_gets_whole_lines(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    long = "results/reference/" + "x" * 200
    tables.show([f"{long} is better", tables.Table("t", ("execution", "n"), [(long, "1")])])
    assert capsys.readouterr().out.count(long) == 2


def test_the_command(runs: Path, onecycle: Run) -> None:
    """Exit 0 whatever the verdict, a comparison for each run after the first."""
    code, output, _ = onecycle(runs, "compare", "first", "second", "equal", "--json")
    assert code == 0
    assert [document["verdict"] for document in json.loads(output)] == ["worse", "no evidence"]
    code, output, said = onecycle(runs, "compare", "first")
    assert (code, output) == (2, "")
    assert said == "error: compare takes two runs or more; try `onecycle compare HEAD workspace`\n"


def experiment(folder: Path, baseline: str, name: str, target: str) -> None:
    """Name a commit the way DVC names its experiments."""
    command(folder, "git", "update-ref", f"refs/exps/{baseline[:2]}/{baseline[2:]}/{name}", target)


def test_where_runs_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = repository(tmp_path / "repo")
    write_run(folder, np.arange(30), images=500)
    before = commit(folder, "30 wrong")
    write_run(folder, np.arange(40), images=500)
    after = commit(folder, "40 wrong")
    experiment(folder, before, "solo-run", after)
    write_run(folder, np.arange(50), images=500)
    write_run(folder / "results/reference/five", np.arange(5), images=500)
    monkeypatch.chdir(folder)
    wrong = {"HEAD": 40, "HEAD~1": 30, "main": 40, before[:8]: 30, "solo-run": 40, "workspace": 50}
    wrong["results/reference/five"] = 5
    assert {name: read(find(name)).metrics["wrong"] for name in wrong} == wrong
    assert read(find("solo-run")).commit == after
    assert read(find("HEAD")).described == f"HEAD ({after[:7]})"
    with pytest.raises(AbsentError, match="called solo"):
        find("solo")


def test_experiments_of_one_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The one that started from here is meant; without such a one, none is."""
    folder = repository(tmp_path / "repo")
    commits = []
    for number in range(3):
        (folder / "file").write_text(str(number), encoding="utf-8")
        commits.append(commit(folder, str(number)))
    experiment(folder, commits[0], "twin", commits[1])
    experiment(folder, commits[1], "twin", commits[2])
    monkeypatch.chdir(folder)
    with pytest.raises(UserError, match="there are 2 DVC experiments called twin"):
        find("twin")
    command(folder, "git", "checkout", "-q", commits[0])
    assert find("twin").commit == commits[1]


def test_a_workspace_below_the_top_of_the_repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = repository(tmp_path / "repo")
    write_run(folder / "vision", np.arange(30), images=500)
    commit(folder, "one")
    monkeypatch.chdir(folder / "vision")
    assert read(find("main")).metrics["wrong"] == 30


def test_results_as_the_demo_leaves_them(tmp_path: Path) -> None:
    write_run(tmp_path, np.arange(30), images=500)
    (tmp_path / "results/evaluate").rename(tmp_path / "evaluate")
    (tmp_path / paths.PARAMS).unlink()
    run = read(find(str(tmp_path)))
    assert run.metrics["wrong"] == 30 and run.params == {}


@pytest.mark.parametrize("name", ["", "-rf", "--output=x"])
def test_names_that_are_no_names(name: str) -> None:
    with pytest.raises(UserError, match="names no run"):
        revisions.find(name)


def test_a_name_too_long_for_the_system_is_nobody_s() -> None:
    with pytest.raises(AbsentError, match="there is no git revision"):
        find("a" * 300)
