"""The page: everything in it, nothing from outside, the same bytes each time, and whole on every kind of run."""

from __future__ import annotations

import json
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from report_case import ACCEPTED, REFUSED, range_curve, report_inputs, training

from onecycle import paths
from onecycle.data import Dataset
from onecycle.errors import UserError
from onecycle.params import load
from onecycle.report import ReportInputs, page, read, words
from onecycle.report import inputs as inputs_module
from onecycle.report.charts import Axis, Line, line_chart, ticks
from onecycle.report.galleries import heat
from onecycle.report.mistakes import confusion_rows
from onecycle.report.verdict import STUDENT_PROJECTS, verdict

SECTIONS = [
    "verdict", "run", "data", "range-test", "schedule", "curves", "confusion", "classes", "calibration", "pairs",
    "galleries", "model",
]  # fmt: skip


class Page(HTMLParser):
    """A page taken apart: elements with their attributes, and the text a reader sees."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.data: list[str] = []
        self.inside = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.inside = tag
        self.elements.append((tag, {key: value or "" for key, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        self.inside = ""

    def handle_data(self, data: str) -> None:
        if self.inside not in ("script", "style"):
            self.data.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.data).split())

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture(scope="module")
def inputs(digits: Dataset, small_params: Any) -> ReportInputs:
    return report_inputs(digits, small_params())


@pytest.fixture(scope="module")
def cifar(digits: Dataset, small_params: Any) -> ReportInputs:
    """As if the digits were CIFAR-10's whole test set: what is said of it is what counts here."""
    return report_inputs(digits, small_params(**{"data.dataset": "cifar10", "data.limit": None}))


def test_the_page_has_all_sections_in_order(inputs: ReportInputs) -> None:
    shown = Page(page(inputs))
    ids = [attributes["id"] for tag, attributes in shown.elements if tag in ("header", "section")]
    assert ids == SECTIONS
    links = [attributes["href"].removeprefix("#") for attributes in shown.all("a")]
    assert links == SECTIONS[1:]


def test_the_page_needs_nothing_from_outside(inputs: ReportInputs) -> None:
    html = page(inputs)
    for tag, attributes in Page(html).elements:
        for key in ("src", "href", "srcset", "action", "poster", "xlink:href"):
            assert attributes.get(key, "#").startswith(("#", "data:")), (tag, attributes)
    assert "url(" not in html
    assert "@import" not in html
    assert "http" not in html


def test_every_picture_says_what_it_shows(inputs: ReportInputs) -> None:
    shown = Page(page(inputs))
    assert shown.all("html") == [{"lang": "en"}]
    assert all(attributes["alt"] for attributes in shown.all("img"))
    named = [attributes for _, attributes in shown.elements if attributes.get("role") == "img"]
    assert len(named) > 100
    assert all(attributes["aria-label"] for attributes in named)
    assert all(attributes["aria-label"] for attributes in shown.all("input"))
    assert all("scope" in attributes for attributes in shown.all("th"))


@pytest.mark.parametrize("damage", [None, b"", b"\xff"])
def test_an_input_that_is_damaged_or_gone_is_named(
    workspace: Path, monkeypatch: pytest.MonkeyPatch, damage: bytes | None
) -> None:
    monkeypatch.chdir(workspace)
    params = load(paths.PARAMS)
    assert read(params).metrics["n"] == 320
    for path in (paths.EVALUATE_METRICS, paths.HISTORY, paths.PREDICTIONS, paths.GALLERY_IMAGES):
        whole = path.read_bytes()
        path.unlink()
        if damage is not None:
            path.write_bytes(damage)
        with pytest.raises(UserError, match=rf"^{path} is missing or damaged"):
            read(params)
        path.write_bytes(whole)


def test_the_same_inputs_give_the_same_page(inputs: ReportInputs, digits: Dataset, small_params: Any) -> None:
    assert page(inputs) == page(report_inputs(digits, small_params()))


def test_figures_on_the_page_are_the_inputs(inputs: ReportInputs) -> None:
    text = Page(page(inputs)).text
    metrics = inputs.metrics
    for expected in (
        words.percent(metrics["accuracy_low"], 2),
        words.percent(metrics["accuracy_high"], 2),
        f"{metrics['loss']:.4f}",
        words.percent(metrics["ece"], 2),
        "6,573,130",
        "Peak rate 0.01",
        "one_cycle",
        "torch 2.15.0",
        "CustomResNet <head>",
    ):
        assert " ".join(expected.split()) in text, expected


def test_the_command_sets_every_parameter_but_those_that_change_no_result(inputs: ReportInputs) -> None:
    text = Page(page(inputs)).text
    assert "-S data.limit=320" in text
    assert "-S optimizer.epsilon=0.00000001" in text
    assert "-S one_cycle.cycle_momentum=true" in text
    assert "runtime" not in text


@pytest.mark.parametrize("change", [{"runtime.checkpoint_seconds": 5.0}, {"gate.floor": 0.5}])
def test_parameters_that_change_no_result_do_not_change_the_page(
    inputs: ReportInputs, small_params: Any, change: dict[str, Any]
) -> None:
    assert page(replace(inputs, params=small_params(**change))) == page(inputs)


def test_digits_are_held_against_no_cifar_figure(inputs: ReportInputs) -> None:
    text = Page(page(inputs)).text
    assert "S0" not in text
    assert "93.8" not in text
    assert "compares with none of its figures" in text


def test_a_trial_on_part_of_cifar_is_held_against_none(cifar: ReportInputs, small_params: Any) -> None:
    trial = verdict(small_params(**{"data.dataset": "cifar10"}), cifar.metrics)
    assert trial.rows == []
    assert "no full run" in trial.sentences[0]


def test_cifar_is_held_against_the_targets_and_five_projects(cifar: ReportInputs) -> None:
    text = Page(page(cifar)).text
    assert "five public student projects" in text
    assert all(name in text for name in STUDENT_PROJECTS)
    assert "93.8 %" in text.replace("\N{NO-BREAK SPACE}", " ")


@pytest.mark.parametrize(
    ("accuracy", "low", "high", "target", "outstanding", "projects"),
    [
        (0.950, 0.946, 0.954, "above", "above", "S0, S1, S2, S3 and S4 below the interval."),
        (0.932, 0.927, 0.937, "above", "below", "S2 and S4 below the interval, S0, S1 and S3 within it."),
        (0.936, 0.931, 0.941, "above", "on both sides of", "S0, S1, S2, S3 and S4 below the interval."),
        (0.903, 0.897, 0.909, "on both sides of", "below", "S2 and S4 below the interval, S0, S1 and S3 above it."),
        (0.500, 0.490, 0.510, "below", "below", "S0, S1, S2, S3 and S4 above it."),
    ],
)
def test_the_verdict_is_the_intervals(
    cifar: ReportInputs, accuracy: float, low: float, high: float, target: str, outstanding: str, projects: str
) -> None:
    found = verdict(cifar.params, {"accuracy": accuracy, "accuracy_low": low, "accuracy_high": high, "n": 10_000})
    targets, others = (sentence.replace("\N{NO-BREAK SPACE}", " ") for sentence in found.sentences)
    assert f"lies {target} the exercise’s target of 90 % and {outstanding} the 93.8 %" in targets
    assert others.endswith(projects)
    assert [row.accuracy for row in found.rows] == sorted((row.accuracy for row in found.rows), reverse=True)
    assert all(0 <= row.at <= 1 for row in found.rows)


def test_a_range_test_says_how_many_sweeps_it_is_the_mean_of(digits: Dataset, small_params: Any) -> None:
    for sweeps, told in ((1, "One short training with a rate"), (3, "The mean of 3 short trainings, ")):
        assert told in Page(page(report_inputs(digits, small_params(**{"lr_range.sweeps": sweeps})))).text


def test_a_refused_range_test_gives_reason_advice_and_the_rate_taken(inputs: ReportInputs) -> None:
    text = Page(page(replace(inputs, suggestion=REFUSED))).text
    assert REFUSED["reason"] in text
    assert REFUSED["advice"] in text
    assert "Training took 0.01" in text


@pytest.mark.parametrize("steps", [0, 1])
def test_a_range_test_without_a_curve_has_no_chart(inputs: ReportInputs, steps: int) -> None:
    without = Page(page(replace(inputs, suggestion=REFUSED, lr_curve=range_curve().head(steps))))
    assert len(without.all("input")) == len(Page(page(inputs)).all("input")) - 2


def test_without_a_validation_split_the_curves_are_called_test(digits: Dataset, small_params: Any) -> None:
    shown = Page(page(report_inputs(digits, small_params(**{"data.validation_fraction": 0.0}))))
    assert "Test accuracy" in shown.text
    assert "nothing was chosen by them" in shown.text
    assert "validation images" not in shown.text


def test_runs_of_one_epoch_and_of_constant_momentum_are_whole(inputs: ReportInputs, small_params: Any) -> None:
    params = small_params(**{"epochs": 1, "one_cycle.max_at_epoch": 0.5, "one_cycle.cycle_momentum": False})
    history, schedule = training(params, "validation")
    kept = {**inputs.train_metrics, "kept_epoch": 1}
    html = page(replace(inputs, params=params, history=history, schedule=schedule, train_metrics=kept))
    assert "momentum that mirrors it" not in html
    assert html.count('<i class="single') == 5, "accuracy and loss of two splits, and the gap"
    assert "nan" not in Page(html).text


def test_a_training_that_ended_on_the_way_up_has_no_peak(inputs: ReportInputs, small_params: Any) -> None:
    params = small_params(**{"epochs": 6, "one_cycle.max_at_epoch": 5})
    history, schedule = training(params, "validation")
    ended = schedule[schedule["epoch"] <= 2]
    kept = {**inputs.train_metrics, "kept_epoch": 1, "epochs": 2}
    early = replace(inputs, params=params, history=history.head(2), schedule=ended, train_metrics=kept)
    text = Page(page(early)).text
    highest = words.rate(ended["learning_rate"].max())
    assert f" up to {highest}. Training ended early, after epoch 2 of 6, before the peak of 0.01." in text
    assert "at the last step" not in text and "peak 0." not in text
    assert " up to 0.01, and down to 0.0001 at the last step" in Page(page(replace(inputs, params=params))).text


def test_what_params_allow_and_few_choose(inputs: ReportInputs, small_params: Any) -> None:
    params = small_params(**{"data.validation_fraction": 0.125, "one_cycle.max_lr": 0.4})
    low = {**ACCEPTED, "min_lr": 1e-9}
    shown = Page(page(replace(inputs, params=params, suggestion=low)))
    assert "12.5 % of them held out for validation" in " ".join(shown.text.split())
    assert "params.yaml overrides both: training took 0.01" in shown.text
    marks = [path["d"] for path in shown.all("path") if path.get("class", "").startswith("mark")]
    assert marks and not any(mark.startswith("M-") for mark in marks), "LRMIN would be left of the plot"


def test_a_perfect_classifier_has_a_page_too(digits: Dataset, small_params: Any) -> None:
    text = Page(page(report_inputs(digits, small_params(), certainty=50))).text
    assert "Every test image was classified correctly." in text
    assert "Right, but barely" in text
    assert "The costliest mistakes" not in text


def test_an_execution_adds_its_section_to_the_copy_only(inputs: ReportInputs) -> None:
    copy = Page(page(inputs, {"seconds": {"train": "61.2"}}))
    assert "61.2" in copy.text
    assert "execution" in [attributes["href"].removeprefix("#") for attributes in copy.all("a")]
    assert "This execution" not in Page(page(inputs)).text


def test_names_are_escaped(inputs: ReportInputs) -> None:
    html = page(replace(inputs, versions={"<script>alert(1)</script>": "1"}))
    assert "<script>alert" not in html


@pytest.mark.parametrize("name", ["None", "NA", "nan", "007", ""])
def test_a_class_may_be_called_what_pandas_takes_for_nothing(name: str, tmp_path: Path) -> None:
    file = tmp_path / "per_class.csv"
    file.write_text(f"class,precision,support\n{name},0.5,3\ncat,0.25,4\n", encoding="utf-8")
    table = inputs_module._named(file, ("class",))
    assert table["class"].tolist() == [name, "cat"]
    assert (table["precision"].tolist(), table["support"].tolist()) == ([0.5, 0.25], [3, 4])


def test_confusion_rows_are_the_counts(inputs: ReportInputs) -> None:
    rows = confusion_rows(inputs.confusion, inputs.classes)
    counts = np.array([[cell.images for cell in cells] for _, cells in rows])
    assert counts.ravel().tolist() == inputs.confusion["count"].tolist(), "true classes are the rows"
    assert counts.sum() == inputs.metrics["n"]
    assert counts.trace() == inputs.metrics["n"] - inputs.metrics["wrong"]
    off_diagonal = [cell.strength for _, cells in rows for cell in cells if not cell.correct]
    assert max(off_diagonal) == 100


def test_a_chart_puts_values_where_they_belong() -> None:
    x, y = Axis("rate", 0.001, 10, words.rate, log=True), Axis("loss", 0, 4, "{:.1f}".format)
    chart = line_chart("", x, y, [0.001, 0.1, 10], [Line("loss", "train", [0, np.nan, 4], "{:.1f}".format)])
    assert chart.lines[0].path.startswith("M0.0 1000.0L1000.0 0.0")
    assert chart.readings == [
        (0.0, "rate 0.001", [("0.0", 0.0)]),
        (0.5, "rate 0.1", [("–", None)]),
        (1.0, "rate 10", [("4.0", 1.0)]),
    ]
    assert [tick.text for tick in ticks(x)] == ["0.001", "0.01", "0.1", "1", "10"]
    json.dumps(chart.readings, allow_nan=False)


def test_a_long_schedule_stays_small_and_keeps_its_peak() -> None:
    steps = np.arange(10_000)
    rate = np.interp(steps, [0, 2_000, 9_999], [0.1, 1, 0.1])
    axis = Axis("rate", 0, 1, words.rate)
    chart = line_chart("", Axis("step", 0, 9_999, words.count), axis, steps, [Line("rate", "train", rate, words.rate)])
    assert len(chart.readings) <= 400
    assert len(chart.lines[0].path) < 1_000
    assert " 0.0" in chart.lines[0].path


def test_heat_is_clear_where_cold_and_dense_where_hot() -> None:
    alpha = heat(np.array([[0, 0.5, 1]], np.float16))[0, :, 3]
    assert alpha[0] == 0
    assert alpha[0] < alpha[1] < alpha[2] < 255


@pytest.mark.parametrize(
    ("value", "expected"), [(0.0012, "0.0012"), (0.00001, "10⁻⁵"), (0.000012, "1.2 × 10⁻⁵"), (0.0, "0"), (10.0, "10")]
)
def test_rates_in_words(value: float, expected: str) -> None:
    assert words.rate(value).replace("\N{NO-BREAK SPACE}", " ") == expected


def test_parameters_are_spelled_as_in_the_file() -> None:
    assert [words.plain(value) for value in (None, True, 5.0, 1e-8, "auto", 512)] == [
        "null",
        "true",
        "5",
        "0.00000001",
        "auto",
        "512",
    ]


def test_pictures_are_enlarged_without_smoothing(inputs: ReportInputs) -> None:
    sprites = [attributes for attributes in Page(page(inputs)).all("image") if "id" in attributes]
    assert len(sprites) == len(inputs.gallery_images)
    assert {attributes["image-rendering"] for attributes in sprites} == {"pixelated"}


def test_the_marks_of_the_suggestion_are_on_the_page(inputs: ReportInputs) -> None:
    assert ACCEPTED["max_lr"] == inputs.suggestion["max_lr"]
    html = page(inputs)
    assert "LRMAX 0.01</span>" in html
    assert "LRMIN 0.001</span>" in html
