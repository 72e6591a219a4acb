"""A run's params, test metrics and predictions, believed only where they make sense and agree with each other.

Results come from branches that others wrote: each error names the file, the run it is of, the key and the rule.
"""

from __future__ import annotations

import csv
import io
import math
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from onecycle import evaluation, paths, provenance, recipe
from onecycle.errors import UserError
from onecycle.provenance import Recorded
from onecycle.refusals import shown
from onecycle.revisions import AbsentError, Place, find, seeds

MOST_IMAGES = 100_000_000
"""In a test set; a few bytes of Parquet can stand for billions of equal rows."""
SHARE = (0.0, 1.0)
RANGES = {
    "accuracy": SHARE,
    "accuracy_low": SHARE,
    "accuracy_high": SHARE,
    **{f"top{k}": SHARE for k in range(2, 6)},
    "loss": (0.0, sys.float_info.max),
    "brier": (0.0, 2.0),
    "ece": SHARE,
    "macro_precision": SHARE,
    "macro_recall": SHARE,
    "macro_f1": SHARE,
    "wrong": (0, sys.maxsize),
    "n": (1, MOST_IMAGES),
    "tta_accuracy": SHARE,
}
"""What a metric of the test may be; no other is looked at."""

REQUIRED = ("accuracy", "loss", "ece", "wrong", "n")
COUNTS = ("wrong", "n")
COLUMNS = ("index", "label", "prediction", "confidence")


@dataclass(frozen=True)
class Results:
    """One run, as it was evaluated on N test images."""

    place: Place
    params: Mapping[str, Any]
    """Dotted keys; empty where the run has no params.yaml."""
    metrics: Mapping[str, float]
    digest: str
    """Of the data set: hex sha256 over arrays and classes."""
    classes: tuple[str, ...]
    labels: NDArray[np.int64]
    predictions: NDArray[np.int64]
    confidence: NDArray[np.float32]
    made: Recorded
    """What dvc.lock, or what stands for it, records of it."""

    @property
    def name(self) -> str:
        """As it was asked for."""
        return self.place.name

    @property
    def commit(self) -> str | None:
        """None where it is of no commit."""
        return self.place.commit

    @property
    def correct(self) -> NDArray[np.bool_]:
        """(N,) whether the prediction is the label."""
        return np.equal(self.predictions, self.labels)

    @property
    def described(self) -> str:
        """The name, with the commit where that says more."""
        short = (self.commit or "")[:7]
        return f"{self.name} ({short})" if short and not self.name.startswith(short) else self.name


def read_side(names: str) -> tuple[Results, ...]:
    """The runs of one side: one name, or several with commas between them, equal but for the seed.

    The name of a recipe below results/reference stands for all its seeds.

    Raises:
        AbsentError: there is no such run.
        UserError: what it holds is not to be believed or is not of its params, or the runs are no replicates of one
            recipe.
    """
    runs = tuple(read(place) for name in names.split(",") for place in seeds(find(name.strip())))
    first = runs[0]
    for position, run in enumerate(runs):
        provenance.check_current(run.place, run.params, run.made)
        _check_same_test(first, run)
        for other in runs[:position]:
            if same_model(run, other):
                raise UserError(f"{other.name} and {run.name} are the same run; give runs with different seeds")
        changed = recipe.recipe_differing(first.params, run.params) if first.params and run.params else []
        if changed:
            raise UserError(f"{first.name} and {run.name} differ in {changed[0]}; runs of one side may differ in seed")
    return runs


def shared_metrics(runs: Collection[Results]) -> list[str]:
    """The metrics that all runs have, but for the ends of each run's own interval and the number of images."""
    own = ("accuracy_low", "accuracy_high", "n")
    return [name for name in RANGES if name not in own and all(name in run.metrics for run in runs)]


def prediction_metrics(run: Results, images: NDArray[np.int64] | slice = slice(None)) -> dict[str, float | int]:
    """The metrics that a run's predictions tell, on some of its images or all."""
    labels = run.labels[images]
    unknown = np.full(len(labels), np.nan)  # losses, which predictions do not tell
    outcomes = evaluation.Outcomes(labels, run.predictions[images], run.confidence[images], unknown)
    return evaluation.prediction_metrics(outcomes, len(run.classes))


def same_predictions(one: Results, other: Results) -> bool:
    """Whether two are the same to the last bit of every prediction."""
    return np.array_equal(one.predictions, other.predictions) and np.array_equal(one.confidence, other.confidence)


def same_model(one: Results, other: Results) -> bool:
    """Whether two, on the same images, are of one model; evaluated again elsewhere, it may differ in last bits."""
    known = one.made.model is not None and one.made.model == other.made.model
    return known or same_predictions(one, other)


def check_comparable(first: Sequence[Results], second: Sequence[Results]) -> None:
    """Refuse two sides that were not tested on the same images, or have a run in common among several."""
    _check_same_test(first[0], second[0])
    if len(first) == len(second) == 1:
        return
    for one in first:
        for other in second:
            if same_model(one, other):
                raise UserError(
                    f"{one.name} is on both sides{f', there as {other.name}' if other.name != one.name else ''}; "
                    "several runs are compared with others than themselves"
                )


def differing_params(first: Results, second: Results) -> list[str]:
    """Keys of params that do not have the same value in both; none where a side has no params at all."""
    if not first.params or not second.params:
        return []
    return recipe.differing(first.params, second.params)


def _check_same_test(first: Results, second: Results) -> None:
    file = paths.EVALUATE_METRICS.as_posix()
    one, other = (run.params.get("data.dataset") for run in (first, second))
    if one and other and one != other:
        raise UserError(
            f"{first.name} is of {one} and {second.name} of {other}; only runs on the same test images compare"
        )
    pairs = (
        ("dataset_digest", first.digest, second.digest),
        ("n", len(first.labels), len(second.labels)),
    )
    for key, one, other in pairs:
        if one != other:
            raise UserError(
                f"{file}: {key} is {shown(one)} for {first.name} and {shown(other)} for {second.name}; "
                "only runs on the same test images compare"
            )
    if not np.array_equal(first.labels, second.labels):
        raise UserError(f"{paths.PREDICTIONS.as_posix()}: label differs between {first.name} and {second.name}")
    if first.classes != second.classes:
        raise UserError(f"{paths.PER_CLASS.as_posix()}: class differs between {first.name} and {second.name}")


def read(place: Place) -> Results:
    """Read and check one run.

    Raises:
        AbsentError: it has no results/evaluate/metrics.json.
        UserError: a file is missing beside it, broken, or at odds with the others.
    """
    written = _metrics_file(place)
    metrics = {key: _number(place, written, key) for key in RANGES if key in written or key in REQUIRED}
    digest = written.get("dataset_digest")
    if not isinstance(digest, str) or not digest:
        raise _refused(place, "dataset_digest", "must be a string", digest)
    classes = _classes(place)
    columns = _predictions(place, int(metrics["n"]), len(classes))
    results = Results(
        place,
        place.params(),
        metrics,
        digest,
        classes,
        labels=columns["label"].astype(np.int64),
        predictions=columns["prediction"].astype(np.int64),
        confidence=columns["confidence"].astype(np.float32),
        made=provenance.recorded(place),
    )
    _check_agreement(place, results)
    return results


def _metrics_file(place: Place) -> dict[str, Any]:
    tree = place.json(paths.EVALUATE_METRICS)
    if tree is None:
        raise AbsentError(f"{place.of(paths.EVALUATE_METRICS)} is missing; {place.remedy}")
    return tree


def _number(place: Place, tree: Mapping[str, Any], key: str) -> float:
    if key not in tree:
        raise UserError(f"{place.of(paths.EVALUATE_METRICS)}: {key} is missing; run `dvc repro evaluate`")
    value = tree[key]
    kind = int if key in COUNTS else int | float
    if not isinstance(value, kind) or isinstance(value, bool):
        raise _refused(place, key, "must be an integer" if key in COUNTS else "must be a number", value)
    low, high = RANGES[key]
    if isinstance(value, float) and not math.isfinite(value):
        raise _refused(place, key, "must be a finite number", value)
    if not low <= value <= high:
        rule = f"≥ {low:g}" if value < low and high >= MOST_IMAGES else f"between {low:g} and {high:g}"
        raise _refused(place, key, f"must be {rule}", value)
    return value


def _refused(place: Place, key: str, rule: str, value: object) -> UserError:
    return UserError(f"{place.of(paths.EVALUATE_METRICS)}: {key} {rule}, got {shown(value)}")


def _classes(place: Place) -> tuple[str, ...]:
    """Class names by label."""
    path = paths.PER_CLASS
    try:
        rows = list(csv.DictReader(io.StringIO(place.need(path).decode("utf-8-sig"))))
    except UnicodeDecodeError:
        raise UserError(f"{place.of(path)} is not UTF-8 text") from None
    except csv.Error as error:
        raise UserError(f"{place.of(path)} is not valid CSV: {error}") from None
    names = tuple(row.get("class") or "" for row in rows)
    if not names or not all(names):
        raise UserError(f"{place.of(path)}: class must name every class")
    return names


def _predictions(place: Place, n: int, classes: int) -> dict[str, NDArray[Any]]:
    """Checked columns in the test set's order."""
    path = paths.PREDICTIONS
    content = place.need(path)
    try:
        file = pq.ParquetFile(pa.BufferReader(content))
        rows = file.metadata.num_rows  # before reading them: a small file may claim billions
        if rows != n:
            raise UserError(f"{place.of(path)}: holds {rows} images, but n in metrics.json beside it is {n}")
        for name in COLUMNS:
            if file.schema_arrow.names.count(name) != 1:
                raise UserError(f"{place.of(path)}: there must be one column {name}; run `dvc repro evaluate`")
        table = file.read(columns=list(COLUMNS))
        if table.num_rows != n:
            raise UserError(f"{place.of(path)}: holds {table.num_rows} images, but says that it holds {n}")
    except UserError:
        raise
    except (pa.ArrowException, OSError, ValueError) as error:
        raise UserError(f"{place.of(path)} is no readable Parquet file: {' '.join(str(error).split())}") from None
    for name in COLUMNS:
        kind = table.schema.field(name).type
        numeric = pa.types.is_floating(kind) if name == "confidence" else pa.types.is_integer(kind)
        if not numeric or table[name].null_count:
            rule = "numbers" if name == "confidence" else "integers"
            raise UserError(f"{place.of(path)}: {name} must hold {rule} and no gaps")
    columns = {name: np.asarray(table[name].to_numpy()) for name in COLUMNS}
    order = np.argsort(columns["index"], kind="stable")
    columns = {name: values[order] for name, values in columns.items()}
    rules = (
        ("index", f"count the images from 0 to {n - 1}", columns["index"] == np.arange(n)),
        ("label", f"be below {classes}, the number of classes", _within(columns["label"], 0, classes - 1)),
        ("prediction", f"be below {classes}, the number of classes", _within(columns["prediction"], 0, classes - 1)),
        ("confidence", "be between 0 and 1", _within(columns["confidence"], 0, 1 + 1e-6)),
    )
    for name, rule, holds in rules:
        if not holds.all():
            worst = columns[name][~holds][0]
            raise UserError(f"{place.of(path)}: {name} must {rule}, got {worst:g}")
    return columns


def _within(values: NDArray[Any], low: float, high: float) -> NDArray[np.bool_]:
    return np.asarray((values >= low) & (values <= high))


def _check_agreement(place: Place, results: Results) -> None:
    """Refuse metrics that the predictions beside them do not give."""
    for key, value in prediction_metrics(results).items():
        claimed = results.metrics.get(key, value)
        if not math.isclose(claimed, value, rel_tol=0, abs_tol=1e-9):
            raise UserError(
                f"{place.of(paths.EVALUATE_METRICS)}: {key} is {claimed:g}, but {paths.PREDICTIONS.name} beside it "
                f"gives {value:g}; run `dvc repro evaluate`"
            )
