"""What came of a reproduction, for a terminal and as JSON."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from onecycle.reproduction.agreement import DIFFERENT, IDENTICAL, Agreement, Weights
from onecycle.reproduction.rerun import Reproduction
from onecycle.tables import Page, Table

HEADLINES = ("evaluate.accuracy", "evaluate.loss", "evaluate.ece", "train.train_loss", "train.validation_accuracy")


def page(done: Reproduction) -> Page:
    """Stages, metrics, weights, predictions; the verdict comes last."""
    return [*_stages(done), *_metrics(done.agreement), *_in_words(done), verdict(done)]


def verdict(done: Reproduction) -> str:
    """One line."""
    found = done.agreement
    if found.parted is None:
        how = _how(done)
        return f"Verdict: identical. All {len(found.outputs)} outputs have the recorded hashes; {how}."
    where = f"from stage {found.parted.stage} on, first in {found.parted.path}"
    if found.verdict == DIFFERENT:
        causes = [f"{file} is not the code that was recorded" for file in found.culprits]
        causes = causes or [str(one) for one in found.surroundings] or ["code, params and surroundings are as recorded"]
        return f"Verdict: different {where} ({'; '.join(causes)})."
    causes = [str(one) for one in found.surroundings]
    return f"Verdict: equal within {found.within:.2g} in all test metrics, apart {where} ({'; '.join(causes)})."


def document(done: Reproduction) -> dict[str, Any]:
    """Every figure."""
    found = done.agreement
    return {
        "name": done.record.name,
        "commit": done.record.commit,
        "run_id": done.record.row.run_id if done.record.row else None,
        "rerun_id": done.row.run_id if done.row else None,
        "verdict": found.verdict,
        "within": found.within if found.verdict not in (IDENTICAL, DIFFERENT) else None,
        "parted": {"stage": found.parted.stage, "path": found.parted.path} if found.parted else None,
        "culprits": found.culprits,
        "ran": list(done.ran),
        "surroundings": [one._asdict() for one in found.surroundings],
        "outputs": [
            {"stage": one.stage, "path": one.path, "recorded": one.recorded, "now": one.now} for one in found.outputs
        ],
        "metrics": {name: {"recorded": then, "now": now} for name, (then, now) in found.metrics.items()},
        "weights": _weights(found.weights),
        "predictions": vars(found.predictions) if found.predictions else None,
        "notes": list(done.notes),
    }


def _weights(found: Weights | None) -> dict[str, Any] | None:
    """JSON has no infinity: a largest difference of null is one in shape or name."""
    if found is None:
        return None
    return vars(found) | {"largest": found.largest if math.isfinite(found.largest) else None}


def _how(done: Reproduction) -> str:
    kept = [stage for stage in done.stages if stage not in done.ran]
    if not kept:
        return "every stage ran again"
    if not done.ran:
        return "DVC had all of them, so no stage ran (--from-scratch runs each)"
    return f"{', '.join(done.ran)} ran again, {', '.join(kept)} did not"


def _stages(done: Reproduction) -> Iterator[Table]:
    rows = []
    for stage in done.stages:
        outputs = [one for one in done.agreement.outputs if one.stage == stage]
        first = next((one.path for one in outputs if not one.same), "")
        same = sum(one.same for one in outputs)
        how = "ran again" if stage in done.ran else "kept by DVC"
        rows.append((stage, how, f"{same} of {len(outputs)}", first))
    yield Table("Outputs with the recorded hash", ("stage", "", "same", "first that is not"), rows)


def _metrics(found: Agreement) -> Iterator[Table]:
    """Those that differ, or else the headlines."""
    differing = [name for name, (then, now) in found.metrics.items() if then != now]
    names = differing or [name for name in HEADLINES if name in found.metrics]
    rows = [(name, *(_number(value) for value in found.metrics[name]), _apart(*found.metrics[name])) for name in names]
    if rows:
        equal = len(found.metrics) - len(differing)
        title = f"Metrics: {equal} of {len(found.metrics)} equal to the last bit"
        yield Table(title, ("metric", "recorded", "again", "difference"), rows)


def _number(value: float | None) -> str:
    return "none" if value is None else f"{value:.6g}"


def _apart(then: float | None, now: float | None) -> str:
    return "" if then is None or now is None else f"{now - then:+.2g}" if now != then else "0"


def _in_words(done: Reproduction) -> Iterator[str]:
    found = done.agreement
    if found.weights:
        one = found.weights
        size = "in shape or name" if math.isinf(one.largest) else f"{one.largest:.2g}"
        apart = (
            f"{one.differing} differ, most by {size} in {one.where}" if one.differing else "all equal to the last bit"
        )
        yield f"Weights: {one.tensors} tensors, {apart}."
    if found.predictions:
        images = found.predictions
        yield (
            f"Predictions: {images.images:,} test images, {images.changed:,} of another class than recorded, "
            f"confidences at most {images.largest:.2g} apart."
        )
    yield from (f"{note}." for note in done.notes)
    if done.row:
        yield f"The rerun is run {done.row.run_id} in MLflow."
