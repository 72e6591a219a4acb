"""params.yaml as typed, frozen values: what every stage and command reads, and where bad values are refused.

    python -m stages.params        # says what is wrong with params.yaml, or nothing

There are no defaults here: params.yaml holds every key. A key that is unknown, missing, of the wrong type, out of
its range or at odds with another raises `UserError` with one sentence that names key, rule and value.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from onecycle.errors import UserError
from onecycle.refusals import sentence, shown
from onecycle.yaml_limits import TRIPPED, check_size
from onecycle.yaml_values import flat

Scalar = str | int | float | bool | None

TRAINING_IMAGES = {"cifar10": 50_000, "digits": 1_437}
"""Images in the training split of each data set, before `data.limit`."""

Probability = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]
LARGEST = 3.4e38
"""As float32, in which it is computed with, has it."""
Positive = Annotated[float, Field(gt=0, le=LARGEST)]
NotNegative = Annotated[float, Field(ge=0, le=LARGEST)]
Fill = Literal["mean", "black"]
Convolution = Literal["direct", "winograd", "strips"]


MOST_WORKERS = 1024


def _rate_or_auto(value: object) -> object:
    match value:
        case "auto":
            return value
        case int() | float() if not isinstance(value, bool) and 0 < value <= LARGEST:
            return float(value)
    raise ValueError("must be 'auto' or a number > 0")


def _workers_or_auto(value: object) -> object:
    match value:
        case "auto":
            return value
        case int() if not isinstance(value, bool) and 0 <= value <= MOST_WORKERS:
            return value
    raise ValueError(f"must be 'auto' or an integer from 0 to {MOST_WORKERS}")


class Section(BaseModel):
    """A part of params.yaml: strict types, no unknown keys, no NaN or Inf, immutable."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)


class DataParams(Section):
    """Which images, and how they are split."""

    dataset: Literal["cifar10", "digits"]
    limit: Annotated[int, Field(ge=20)] | None
    validation_fraction: Annotated[float, Field(ge=0, le=0.5)]
    split_seed: Seed


class AugmentParams(Section):
    """Pad, random crop, flip, cutout; shift-scale-rotate as an option."""

    backend: Literal["albumentations", "batched", "auto"]
    pad: Annotated[int, Field(ge=0, le=16)]
    border: Literal["constant", "reflect"]
    border_fill: Fill
    crop_probability: Probability
    flip_probability: Probability
    cutout_probability: Probability
    cutout_holes: Annotated[int, Field(ge=1, le=1024)]
    cutout_size: Annotated[int, Field(ge=1, le=32)]
    cutout_fill: Fill
    cutout_overhang: bool
    shift_scale_rotate_probability: Probability
    shift_limit: Annotated[float, Field(ge=0, le=0.5)]
    scale_limit: Annotated[float, Field(ge=0, le=0.9)]
    rotate_limit: Annotated[float, Field(ge=0, le=180)]


class ModelParams(Section):
    """Which network."""

    name: Literal["custom_resnet", "resnet18"]
    width: Annotated[int, Field(ge=1, le=1024)]
    fc_bias: bool
    dropout: Annotated[float, Field(ge=0, lt=1)]
    logit_scale: Positive


class OptimizerParams(Section):
    """Which optimiser, and what it is pulled towards besides the loss."""

    name: Literal["adam", "adamw", "sgd"]
    weight_decay: NotNegative
    decay_norms_and_biases: bool
    l1: NotNegative
    momentum: Annotated[float, Field(ge=0, lt=1)]
    beta2: Annotated[float, Field(ge=0, lt=1)]
    epsilon: Positive


class OneCycleParams(Section):
    """The schedule of rate and momentum over the steps of training."""

    max_lr: Annotated[float | Literal["auto"], BeforeValidator(_rate_or_auto)]
    max_at_epoch: Positive
    anneal: Literal["linear", "cosine"]
    div_factor: Annotated[float, Field(ge=1)]
    final_div_factor: Annotated[float, Field(ge=1)]
    cycle_momentum: bool
    base_momentum: Annotated[float, Field(gt=0, lt=1)]
    max_momentum: Annotated[float, Field(gt=0, lt=1)]


class LRRangeParams(Section):
    """The learning-rate range test and how a rate is read from it."""

    start_lr: Annotated[float, Field(ge=1e-30, le=LARGEST)]
    end_lr: Positive
    iterations: Annotated[int, Field(ge=20, le=100_000)]
    sweeps: Annotated[int, Field(ge=1, le=100)]
    criterion: Literal["loss", "accuracy"]
    method: Literal["middle", "minimum_over_two", "minimum_over_ten", "steepest", "valley"]
    smoothing: Annotated[float, Field(ge=0, le=1000)]


class TrainParams(Section):
    """Where and how exactly training computes, and which weights it keeps."""

    device: Literal["auto", "cpu", "cuda", "mps"]
    precision: Literal["auto", "bf16", "fp16", "fp32"]
    convolution: Literal["auto", Convolution]
    threads: Annotated[int, Field(ge=0, le=4096)]
    deterministic: bool
    compile: Literal["auto", True, False]
    label_smoothing: Annotated[float, Field(ge=0, lt=1)]
    keep: Literal["last", "best"]
    early_stop_patience: Annotated[int, Field(ge=0)]


class EvaluateParams(Section):
    """How the test set is looked at."""

    batch_size: Count
    tta: Literal["none", "mirror"]
    gradcam_layer: Literal["layer1", "layer2"]


class GateParams(Section):
    """When `onecycle gate` refuses a change."""

    alpha: Annotated[float, Field(gt=0, lt=0.5)]
    negligible: Annotated[float, Field(ge=0, lt=1)]
    margin: Annotated[float, Field(gt=0, le=1)]
    floor: Probability
    loss_margin: NotNegative
    ece_margin: NotNegative


class RuntimeParams(Section):
    """Knobs that cannot change a result."""

    allocator: bool
    workers: Annotated[int | Literal["auto"], BeforeValidator(_workers_or_auto)]
    checkpoint_seconds: Positive


class Params(Section):
    """The whole of params.yaml."""

    seed: Seed
    epochs: Annotated[int, Field(ge=1, le=100_000)]
    batch_size: Annotated[int, Field(ge=2)]
    data: DataParams
    augment: AugmentParams
    model: ModelParams
    optimizer: OptimizerParams
    one_cycle: OneCycleParams
    lr_range: LRRangeParams
    train: TrainParams
    evaluate: EvaluateParams
    gate: GateParams
    runtime: RuntimeParams

    def training_images(self) -> int:
        """Images left for training after `data.limit` and the validation split."""
        return self._images() - self.held_out_images()

    def held_out_images(self) -> int:
        """Images of the validation split."""
        return round(self._images() * self.data.validation_fraction)

    def _images(self) -> int:
        return int(min(TRAINING_IMAGES[self.data.dataset], self.data.limit or math.inf))


def load(path: Path) -> Params:
    """Read and check `path`.

    Raises:
        UserError: the file is missing, is no YAML, or holds a value that is refused.
    """
    return parse(path.name, _read(path))


def flatten(params: BaseModel) -> dict[str, Scalar]:
    """Dotted key → value, in the order of params.yaml: {"seed": 0, …, "one_cycle.max_lr": "auto", …}."""
    return flat(params.model_dump())


def _read(path: Path) -> object:
    reader = YAML(typ="safe", pure=True)
    reader.composer.warn_double_anchors = False  # YAML lets an anchor be defined again
    try:
        root = reader.compose(path.read_text(encoding="utf-8"))
        check_size(root)
        return None if root is None else reader.constructor.construct_document(root)
    except FileNotFoundError:
        raise UserError(f"{path.name} is missing; run from the folder that holds it and dvc.yaml") from None
    except MarkedYAMLError as error:
        mark = error.problem_mark
        line = f", line {mark.line + 1}" if mark else ""
        raise UserError(f"{path.name}{line}: not valid YAML: {error.problem or error.context}") from None
    except (YAMLError, OSError, *TRIPPED) as error:
        raise UserError(f"{path.name}: cannot be read as YAML: {' '.join(str(error).split())}") from None


def parse(name: str, tree: object) -> Params:
    """Check what a YAML reader made of a file called `name`. Raises `UserError` as `load` does."""
    if not isinstance(tree, dict):
        raise UserError(f"{name} must hold keys and values, got {shown(tree)}")
    try:
        params = Params.model_validate(tree)
    except ValidationError as error:
        raise UserError(sentence(name, Params, error)) from None
    _check_combinations(name, params)
    return params


def _check_combinations(name: str, params: Params) -> None:
    """Rules that span two keys, as (holds, key, rule, value)."""
    cycle, lr_range, augment = params.one_cycle, params.lr_range, params.augment
    images = params.training_images()
    unselected = "{} where data.validation_fraction holds out no image (nothing is selected on the test set)"
    rules = (
        (
            cycle.max_at_epoch < params.epochs,
            "one_cycle.max_at_epoch",
            f"< epochs ({shown(params.epochs)})",
            cycle.max_at_epoch,
        ),
        (
            cycle.base_momentum <= cycle.max_momentum,
            "one_cycle.base_momentum",
            f"≤ one_cycle.max_momentum ({cycle.max_momentum:g})",
            cycle.base_momentum,
        ),
        (
            1.01 * lr_range.start_lr <= lr_range.end_lr,
            "lr_range.end_lr",
            f"≥ 1.01 · lr_range.start_lr ({lr_range.start_lr:g})",
            lr_range.end_lr,
        ),
        (params.batch_size <= images, "batch_size", f"≤ the training split ({images} images)", params.batch_size),
        (
            augment.shift_scale_rotate_probability == 0 or augment.backend != "batched",
            "augment.backend",
            "albumentations or auto when augment.shift_scale_rotate_probability is above 0",
            augment.backend,
        ),
        (
            params.train.keep == "last" or params.held_out_images() > 0,
            "train.keep",
            unselected.format("last"),
            params.train.keep,
        ),
        (
            params.train.early_stop_patience == 0 or params.held_out_images() > 0,
            "train.early_stop_patience",
            unselected.format(0),
            params.train.early_stop_patience,
        ),
        (
            params.gate.negligible < params.gate.margin,
            "gate.negligible",
            f"< gate.margin ({params.gate.margin:g})",
            params.gate.negligible,
        ),
    )
    for holds, key, rule, value in rules:
        if not holds:
            raise UserError(f"{name}: {key} must be {rule}, got {shown(value)}")
