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
from onecycle.exits import CRASHED, exit_with, no_memory
from onecycle.tracking.delivery import python_path
from onecycle.tracking.errors import StoreError
from onecycle.tracking.redaction import without_secrets

SECONDS = 600
"""How long it may take."""
EXAMPLES = 2
"""Images in the input example; with one, torch.export would fix the batch size at one."""
_VERDICTS = (2, CRASHED)
"""Exit codes that another time, or another machine, would not change."""


def export(model: Path, pictures: Path, target: Path) -> str | None:
    """Write the MLflow model of `model` into the new folder `target`; returns what is wrong with it, if anything is.

    Raises:
        StoreError: that is not known, since the process was killed, took too long or had no room to write.
    """
    code = python_path(Path(onecycle.__file__).parents[1])
    command = [sys.executable, "-P", "-m", __name__, str(model), str(pictures), str(target)]
    environment = {**os.environ, "PYTHONPATH": code, "MLFLOW_DISABLE_TELEMETRY": "true"}
    try:
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=SECONDS, stdin=subprocess.DEVNULL
        )
    except subprocess.TimeoutExpired:
        raise StoreError(f"exporting the model took more than {SECONDS} s") from None
    if done.returncode == 0:
        return None
    said = without_secrets((done.stderr.strip().splitlines() or [""])[-1])[:500]
    if done.returncode in _VERDICTS:
        return said
    if done.returncode < 0:  # it said nothing of that
        raise StoreError(f"exporting the model was ended by signal {-done.returncode}")
    raise StoreError(f"exporting the model ended with {done.returncode}: {said}")


def _save(model: Path, pictures: Path, target: Path) -> None:
    """uint8 (N, 32, 32, 3) in, float32 (N, classes) out, as a program of torch.export with the weights in it."""
    import mlflow.pytorch
    import numpy as np
    import torch
    from mlflow.models import Model, ModelSignature
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
    # Where there is a GPU, pyfunc would load it onto that, and refuse: the program holds its weights on the CPU.
    described = Model.load(str(target))
    described.flavors["python_function"]["config"] = {"device": "cpu"}
    described.save(str(target / "MLmodel"))


def _saved(model: Path, pictures: Path, target: Path) -> int:
    try:
        _save(model, pictures, target)
    except Exception as error:
        if not (isinstance(error, OSError) or no_memory(error)):
            raise
        print(error, file=sys.stderr)
        return os.EX_TEMPFAIL
    return 0


def main() -> None:
    """Export the model named on the command line."""
    model, pictures, target = map(Path, sys.argv[1:])
    exit_with(lambda: _saved(model, pictures, target))


if __name__ == "__main__":
    main()
