"""The page as one string: views of the inputs, put into the templates beside this module."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import groupby

from onecycle.figures import METHODS
from onecycle.params import Scalar, flatten
from onecycle.report import words
from onecycle.report.curves import range_test, schedule, training
from onecycle.report.galleries import data_uri, galleries, heat_maps, pictures
from onecycle.report.html import asset, template
from onecycle.report.inputs import ReportInputs
from onecycle.report.mistakes import calibration, class_rows, confusion_rows, pair_rows
from onecycle.report.verdict import verdict

DATASETS = {"cifar10": "CIFAR-10", "digits": "handwritten digits"}
MODELS = {"custom_resnet": "custom ResNet", "resnet18": "ResNet-18"}


def page(inputs: ReportInputs, execution: Mapping[str, Mapping[str, str]] | None = None) -> str:
    """The report as one HTML document that needs nothing else: the same inputs give the same text.

    Args:
        inputs: what the stages found.
        execution: heading → name → value of what is true of one execution only (seconds, hardware); for the copy
            that goes to the tracker, never for the file that DVC keeps.
    """
    classes, params = inputs.classes, inputs.params
    return template("page.html.jinja").render(
        inputs=inputs,
        execution=execution or {},
        dataset=DATASETS[params.data.dataset],
        model=MODELS.get(params.model.name, params.model.name),
        method=METHODS[params.lr_range.method],
        verdict=verdict(params, inputs.metrics),
        parameters=_groups(inputs),
        command=_command(inputs),
        range_test=range_test(inputs.lr_curve, inputs.suggestion),
        schedule=schedule(inputs.schedule),
        training=training(inputs.history, inputs.held_out, int(inputs.train_metrics["kept_epoch"])),
        confusion=confusion_rows(inputs.confusion, classes),
        per_class=class_rows(inputs.per_class),
        calibration=calibration(inputs.predictions),
        pairs=pair_rows(inputs.galleries["pairs"], inputs.per_class),
        galleries=galleries(inputs.galleries),
        pictures=pictures(inputs),
        cam_predicted=heat_maps(inputs.cam_predicted),
        cam_true=heat_maps(inputs.cam_true),
        samples=data_uri(inputs.samples_png),
        augmented=data_uri(inputs.augmented_png),
        style=asset("page.css"),
        script=asset("page.js"),
    )


def _result_params(inputs: ReportInputs) -> dict[str, Scalar]:
    """All but `runtime` and `gate`, which cannot change a result and therefore must not change the page."""
    return {key: value for key, value in flatten(inputs.params).items() if not key.startswith(("runtime.", "gate."))}


def _groups(inputs: ReportInputs) -> dict[str, dict[str, str]]:
    """Section → key → value as written; the top-level keys come first, under "run"."""
    return {
        section: {key.rpartition(".")[2]: words.plain(value) for key, value in items}
        for section, items in groupby(
            _result_params(inputs).items(), key=lambda item: item[0].rpartition(".")[0] or "run"
        )
    }


def _command(inputs: ReportInputs) -> str:
    """The experiment that sets every parameter of this run, whatever params.yaml says."""
    settings = (f"-S {key}={words.plain(value)}" for key, value in _result_params(inputs).items())
    return " \\\n  ".join(["dvc exp run", *settings])
