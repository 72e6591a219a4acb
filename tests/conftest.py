"""What tests share: digits as arrays, the shipped params shrunk to seconds."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
for stale in ("MLFLOW_RUN_ID", "MLFLOW_TRACKING_URI", "DVC_EXP_NAME", "DVC_EXP_BASELINE_REV", "DVC_STAGE", "DVC_ROOT"):
    os.environ.pop(stale, None)

import pytest

from onecycle import download
from onecycle.data import Dataset, fewer
from onecycle.params import Params, load

REPO = Path(__file__).resolve().parent.parent

SMALL = {
    "epochs": 3,
    "batch_size": 32,
    "data.dataset": "digits",
    "data.limit": 320,
    "augment.flip_probability": 0.0,
    "model.width": 4,
    "one_cycle.max_at_epoch": 1,
    "one_cycle.max_lr": 0.01,
    "lr_range.iterations": 20,
    "train.precision": "fp32",
    "train.threads": 1,
}
"""Changes to the shipped params.yaml that make the whole pipeline run in seconds."""


@pytest.fixture(scope="session")
def small_params() -> Callable[..., Params]:
    """`small_params(**{"train.keep": "best"})`: the shipped params, shrunk by SMALL, then changed as asked."""
    shipped = load(REPO / "params.yaml").model_dump()

    def changed(**changes: Any) -> Params:
        tree = {key: dict(value) if isinstance(value, dict) else value for key, value in shipped.items()}
        for key, value in {**SMALL, **changes}.items():
            section, _, last = key.rpartition(".")
            (tree[section] if section else tree)[last] = value
        return Params.model_validate(tree)

    return changed


@pytest.fixture(scope="session")
def digits() -> Dataset:
    """320 training and 320 test images of scikit-learn's digits."""
    return fewer(download.digits(), 320, 0)
