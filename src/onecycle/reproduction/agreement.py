"""How far a run that was made again agrees with what was recorded: hashes, metrics, weights, predictions, a verdict."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from onecycle import paths, yaml_values
from onecycle.dvc_lock import CODE, Lock, hashes
from onecycle.errors import UserError
from onecycle.params import GateParams
from onecycle.reproduction.surroundings import Difference
from onecycle.results import Results, read
from onecycle.revisions import AbsentError, Place

if TYPE_CHECKING:
    import torch

IDENTICAL, WITHIN, DIFFERENT = "identical", "equal within", "different"
METRICS = (paths.STATS_JSON, paths.TRAIN_METRICS, paths.EVALUATE_METRICS)


@dataclass(frozen=True)
class Output:
    """Something a stage writes, and its hash then and now; None where it was not written."""

    stage: str
    path: str
    recorded: str | None
    now: str | None

    @property
    def same(self) -> bool:
        """To the byte."""
        return self.recorded == self.now


@dataclass(frozen=True)
class Weights:
    """The networks' state, tensor by tensor."""

    tensors: int
    differing: int
    largest: float
    """Absolute difference of any two values; infinite where a tensor is missing or has another shape."""
    where: str
    """The tensor that has it."""


@dataclass(frozen=True)
class Predictions:
    """The test images, one by one."""

    images: int
    changed: int
    """How many of them got another class."""
    largest: float
    """The largest absolute difference of two confidences."""


@dataclass(frozen=True)
class Measured:
    """What one run measured."""

    metrics: Mapping[str, float]
    """As "evaluate.accuracy"."""
    results: Results | None
    """None where it has not evaluated, or has nothing that makes sense."""
    notes: Sequence[str]
    """Why something is not there to be compared."""


@dataclass(frozen=True)
class Agreement:
    """Everything compared."""

    outputs: Sequence[Output]
    code: Sequence[tuple[str, str]]
    """(stage, file) of code that is not what dvc.lock records, in the pipeline's order."""
    metrics: Mapping[str, tuple[float | None, float | None]]
    """Name → as recorded, as now."""
    weights: Weights | None
    predictions: Predictions | None
    """None where either was not written, or is no longer to be had."""
    surroundings: Sequence[Difference]
    """Of which any can be why figures differ."""
    limits: GateParams

    @property
    def parted(self) -> Output | None:
        """The first output that is not the same, in the pipeline's order."""
        return next((output for output in self.outputs if not output.same), None)

    @property
    def culprits(self) -> list[str]:
        """Files of `code` that can be why the outputs part where they do."""
        if self.parted is None:
            return []
        stages = list(dict.fromkeys(output.stage for output in self.outputs))
        before = stages[: stages.index(self.parted.stage) + 1]
        return list(dict.fromkeys(file for stage, file in self.code if stage in before))

    @property
    def within(self) -> float | None:
        """The largest difference of a test metric; None where one is missing, or differs more than the gate allows."""
        tested = {name: pair for name, pair in self.metrics.items() if name.startswith("evaluate.")}
        differences = {
            name.partition(".")[2]: math.inf if None in pair else abs(pair[0] - pair[1])  # type: ignore[operator]
            for name, pair in tested.items()
            if name not in ("evaluate.n", "evaluate.wrong")  # counts, of which accuracy tells
        }
        margins = {"accuracy": self.limits.margin, "loss": self.limits.loss_margin, "ece": self.limits.ece_margin}
        fine = all(map(math.isfinite, differences.values())) and all(
            differences.get(name, math.inf) <= margin for name, margin in margins.items()
        )
        return max(differences.values()) if fine else None

    @property
    def verdict(self) -> str:
        """`identical`; `equal within`, where other surroundings can be why; or `different`."""
        if self.parted is None:
            return IDENTICAL
        return WITHIN if self.surroundings and not self.culprits and self.within is not None else DIFFERENT


def outputs(recorded: Lock, now: Lock, stages: Collection[str]) -> list[Output]:
    """Each output that dvc.lock has of `stages`, then or now."""
    found = []
    for stage in stages:
        then, here = (hashes(lock.get(stage, {}), "outs") for lock in (recorded, now))
        found += [Output(stage, path, then.get(path), here.get(path)) for path in dict.fromkeys([*then, *here])]
    return found


def changed_code(recorded: Lock, now: Lock, stages: Collection[str]) -> list[tuple[str, str]]:
    """(stage, file) of code among the recorded dependencies of `stages` that is not what it was."""
    changed = []
    for stage in stages:
        then, here = (hashes(lock.get(stage, {}), "deps") for lock in (recorded, now))
        changed += [(stage, path) for path, md5 in then.items() if path.startswith(CODE) and md5 != here.get(path)]
    return changed


def measured(place: Place) -> Measured:
    """A run's metrics and predictions; of what cannot be read, or makes no sense, there is a note, and the rest."""
    numbers: dict[str, float] = {}
    results, notes = None, []
    for path in METRICS:
        try:
            numbers |= {f"{path.parent.name}.{key}": value for key, value in _numbers(place, path).items()}
        except (UserError, OverflowError) as error:
            notes.append(f"no metrics of {path.parent.name} are compared: {error}")
    try:
        results = read(place)
    except AbsentError:
        pass
    except UserError as error:
        notes.append(f"no predictions are compared: {error}")
    return Measured(numbers, results, notes)


def metrics(recorded: Measured, now: Measured) -> dict[str, tuple[float | None, float | None]]:
    """Every number in the metrics of the stages of which any were kept, as "evaluate.accuracy"."""
    then, here = recorded.metrics, now.metrics
    stages = {name.partition(".")[0] for name in then}  # a reference run keeps no stats.json
    names = dict.fromkeys([*then, *(name for name in here if name.partition(".")[0] in stages)])
    return {name: (then.get(name), here.get(name)) for name in names}


def weights(recorded: Path, now: Path) -> Weights:
    """Two models, tensor by tensor; neither file is trusted.

    Raises:
        UserError: one holds no weights as `train` writes them.
    """
    import torch

    then, here = (_state(file, whose) for file, whose in ((recorded, "recorded"), (now, "new")))
    differing, largest, where = 0, 0.0, ""
    for name in dict.fromkeys([*then, *here]):
        one, other = then.get(name), here.get(name)
        if one is not None and other is not None and torch.equal(one, other):
            continue
        differing += 1
        apart = math.inf
        if one is not None and other is not None and one.shape == other.shape:
            apart = float((one.double() - other.double()).abs().max())
        if apart > largest or not where:
            largest, where = max(apart, largest), name
    return Weights(len(dict.fromkeys([*then, *here])), differing, largest, where)


def _state(file: Path, whose: str) -> Mapping[str, torch.Tensor]:
    import torch

    sentence = f"the {whose} model is damaged, or of a time when models were kept in another way"
    try:
        state = dict(torch.load(file, map_location="cpu", weights_only=True)["state"])
    except Exception as error:  # torch.load raises many types for a damaged file
        raise UserError(sentence) from error
    if not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise UserError(sentence)
    return state


def predictions(recorded: Measured, now: Measured) -> Predictions | None:
    """The test images, one by one; None where there are none to compare.

    Raises:
        UserError: they were tested on other images.
    """
    then, here = recorded.results, now.results
    if then is None or here is None:
        return None
    if len(then.labels) != len(here.labels):
        raise UserError(f"{then.name} was tested on {len(then.labels)} images, and again on {len(here.labels)}")
    changed = int((then.predictions != here.predictions).sum())
    apart = np.abs(then.confidence.astype(np.float64) - here.confidence.astype(np.float64))
    return Predictions(len(then.labels), changed, float(apart.max(initial=0.0)))


def _numbers(place: Place, path: Path) -> dict[str, float]:
    return {
        key: float(value)
        for key, value in yaml_values.flat(place.json(path) or {}).items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    }
