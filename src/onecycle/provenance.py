"""Where a run's figures come from: the MD5 of what it wrote and of the code that did, the machine it was trained on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from onecycle import paths, yaml_values
from onecycle.dvc_lock import CODE, WITHOUT_FIGURES, Lock, evaluated_model, hashes, outputs, stage_params, undone
from onecycle.errors import UserError
from onecycle.revisions import Place

if TYPE_CHECKING:
    from onecycle.tracking.times import Training

T = TypeVar("T")

HASHES = Path("hashes.json")
ENVIRONMENT = Path("environment.json")
"""Beside the params.yaml of a reference run, which has no dvc.lock and no row."""
KEPT = (
    paths.EVALUATE_METRICS,
    paths.PREDICTIONS,
    paths.PER_CLASS,
    paths.TRAIN_METRICS,
    paths.HISTORY,
    paths.LR_RANGE_SUGGESTION,
)
"""The results of a reference run."""

_TAGS = {
    "device": "device",
    "processor": "hardware.cpu",
    "cores": "hardware.cores",
    "memory_gib": "hardware.memory_gib",
    "system": "os",
    "commit": "git.commit",
    "changed": "git.changed",
}
"""Field of an environment → tag of a row. Not the host's name, which is nobody else's business."""


@dataclass(frozen=True)
class Recorded:
    """What dvc.lock records of a run: MD5 by path."""

    outputs: Mapping[str, str] = field(default_factory=dict)
    code: Mapping[str, str] = field(default_factory=dict)
    """Of what computed the figures."""
    stages: Lock = field(default_factory=dict)
    """Those that make figures, as dvc.lock has them."""

    @property
    def model(self) -> str | None:
        """The MD5 of the model that was evaluated."""
        return self.outputs.get(paths.MODEL.as_posix())


@dataclass(frozen=True)
class Environment:
    """What a model was trained on and from; None for what no row tells."""

    device: str | None = None
    """With the precision: "NVIDIA H100 80GB HBM3, bfloat16", "cpu, float32, winograd"."""
    processor: str | None = None
    cores: str | None = None
    memory_gib: str | None = None
    system: str | None = None
    commit: str | None = None
    changed: str | None = None
    """Files that were not as in that commit."""
    versions: Mapping[str, str] = field(default_factory=dict)
    training_seconds: float | None = None

    @property
    def hardware(self) -> str | None:
        """In a few words; of a training on a CPU, the CPU's name."""
        name, _, precision = (self.device or "").partition(", ")
        if name != "cpu":
            return self.device
        return f"{self.processor or name}, {self.cores or '?'} cores, {precision}"


def recorded(place: Place) -> Recorded:
    """By the run's dvc.lock, else by its hashes.json; of a row that has no dvc.lock, only the model's MD5.

    Raises:
        UserError: what there is cannot be read.
    """
    lock = place.lock()
    if lock:
        evaluated = evaluated_model(lock)
        figures = {stage: entry for stage, entry in lock.items() if stage != WITHOUT_FIGURES}
        read = {path: md5 for entry in figures.values() for path, md5 in hashes(entry, "deps").items()}
        code = {path: md5 for path, md5 in read.items() if path.startswith(CODE)}
        known = outputs(lock) | ({paths.MODEL.as_posix(): evaluated} if evaluated else {})
        return Recorded(known, code, figures)
    if place.row is not None:
        md5 = place.row.model_md5()
        return Recorded({paths.MODEL.as_posix(): md5} if md5 else {})
    return _from_json(Recorded, place, HASHES, ("outputs", "code"))


def environment(place: Place, model: str | None, trainings: Mapping[str, Training]) -> Environment:
    """By the row that trained the run's model (its MD5), else as `kept_environment`."""
    training = trainings.get(model or "")
    if training is None:
        return kept_environment(place)
    versions = {
        name.removeprefix("version."): value for name, value in training.tags.items() if name.startswith("version.")
    }
    fields: dict[str, Any] = {name: training.tags.get(tag) for name, tag in _TAGS.items()}
    seconds = None if training.seconds is None else round(training.seconds, 1)
    return Environment(**fields, versions=dict(sorted(versions.items())), training_seconds=seconds)


def kept_environment(place: Place) -> Environment:
    """By the run's environment.json; unknown where it has none.

    Raises:
        UserError: it cannot be read.
    """
    return _from_json(Environment, place, ENVIRONMENT, tuple(Environment.__dataclass_fields__))


def tags(trained: Environment) -> dict[str, str]:
    """What a row would say of it."""
    known = {tag: getattr(trained, name) for name, tag in _TAGS.items()}
    versions = {f"version.{name}": value for name, value in trained.versions.items()}
    return {tag: value for tag, value in known.items() if value} | versions


def check_current(place: Place, params: Mapping[str, Any], made: Recorded) -> None:
    """Refuse stale results: of other params than lie beside them, or of a stage before them that has run again since.

    Raises:
        UserError: they are.
    """
    stale = undone(made.stages, made.stages, params) if params else []
    for stage in stale:
        for key, value in stage_params(made.stages[stage]).items():
            now = params.get(key, "absent")
            if not yaml_values.same(now, value):
                raise UserError(
                    f"{place.of(paths.PARAMS)} says {key}: {yaml_values.spelled(now)}, its results are of "
                    f"{yaml_values.spelled(value)}; run `dvc repro`"
                )
    if stale:
        raise UserError(
            f"{place.of(paths.DVC_LOCK)}: {' and '.join(stale)} did not run again when what comes before did; "
            "run `dvc repro`"
        )


def _from_json(kind: type[T], place: Place, path: Path, fields: tuple[str, ...]) -> T:
    """`kind` as a file beside a run's params.yaml has it; empty where there is no such file, as in a workspace."""
    tree = None if place.folder in (None, Path()) else place.json(path)
    if tree is None:
        return kind()
    if not set(tree) <= set(fields):
        raise UserError(f"{place.of(path)} must hold nothing but {', '.join(fields)}")
    try:
        return TypeAdapter(kind).validate_python(tree)
    except ValidationError as error:
        detail = error.errors(include_url=False)[0]
        key = ".".join(str(part) for part in detail["loc"])
        raise UserError(f"{place.of(path)}: {key}: {detail['msg']}") from None
