"""Turns models/model.pt into a model that MLflow loads without this project.

    python -m onecycle.tracking.export model.pt galleries.npz <new folder>

It is a process of its own because tracing takes ten seconds and most of a gigabyte, which neither a stage nor the
sender should need, and because whatever goes wrong in here then costs the model and not the row.
"""

from __future__ import annotations

import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import onecycle
from onecycle.stage import exit_with
from onecycle.tracking.redaction import without_secrets

SECONDS = 600
"""How long it may take."""
EXAMPLES = 2
"""Images in the input example; with one, torch.export would fix the batch size at one."""


def export(model: Path, pictures: Path, target: Path) -> str | None:
    """Write the MLflow model of `model` into the new folder `target`; returns what went wrong, if anything did."""
    code = str(Path(onecycle.__file__).parents[1])
    command = [sys.executable, "-P", "-m", __name__, str(model), str(pictures), str(target)]
    environment = {**os.environ, "PYTHONPATH": code, "MLFLOW_DISABLE_TELEMETRY": "true"}
    try:
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=SECONDS, stdin=subprocess.DEVNULL
        )
    except subprocess.TimeoutExpired:
        return f"exporting took more than {SECONDS} s"
    if done.returncode == 0:
        return None
    said = done.stderr.strip().splitlines() or [f"exporting ended with {done.returncode}"]
    return without_secrets(said[-1])[:500]


def _save(model: Path, pictures: Path, target: Path) -> None:
    """uint8 (N, 32, 32, 3) in, float32 (N, classes) out, as a program of torch.export with the weights in it."""
    import mlflow.pytorch
    import numpy as np
    import torch
    from mlflow.models import ModelSignature
    from mlflow.types.schema import Schema, TensorSpec

    from onecycle.model import load_classifier

    torch.set_num_threads(1)
    classifier, file = load_classifier(model)
    images = np.load(pictures)["images"][:EXAMPLES]
    signature = ModelSignature(
        inputs=Schema([TensorSpec(np.dtype(np.uint8), (-1, *images.shape[1:]))]),
        outputs=Schema([TensorSpec(np.dtype(np.float32), (-1, len(file.classes)))]),
    )
    requirements = [f"{name}=={metadata.version(name).partition('+')[0]}" for name in ("mlflow", "torch", "numpy")]
    mlflow.pytorch.save_model(
        classifier,
        str(target),
        signature=signature,
        input_example=images,
        pip_requirements=requirements,
        metadata={"classes": list(file.classes)},
        serialization_format="pt2",
    )


def main() -> None:
    """Export the model named on the command line."""
    model, pictures, target = map(Path, sys.argv[1:])
    exit_with(lambda: _save(model, pictures, target))


if __name__ == "__main__":
    main()
