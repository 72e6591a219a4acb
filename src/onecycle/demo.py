"""The whole pipeline on built-in data, as one DVC experiment that leaves the workspace as it was: `make demo`."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

from onecycle import paths, signals
from onecycle.dvc_command import environment
from onecycle.errors import UserError
from onecycle.tables import Table, show

NAME = "demo"
RESULTS = Path("demo")
SETTINGS = {
    "data.dataset": "digits",
    "data.limit": "null",
    "data.validation_fraction": 0.1,
    "epochs": 6,
    "batch_size": 64,
    "model.width": 16,
    "augment.flip_probability": 0,  # a mirrored 2 is no 2
    "one_cycle.max_at_epoch": 2,
}
"""What the digits need and `_show` looks for, whatever the workspace has; the rest of the recipe is the workspace's."""


def main() -> None:
    """Run the experiment `demo`, copy its small results and report into demo/, and say where everything is."""
    if not paths.PARAMS.exists():
        raise UserError("params.yaml is missing; run the demo from the folder that holds it")
    if not Path(".dvc").is_dir():
        raise UserError(".dvc is missing; clone the repository whole, or run `git init` and `dvc init` here")
    started = time.monotonic()
    _dvc("exp", "remove", "--quiet", NAME, quiet=True)  # an earlier demo; there may be none
    changes = [word for key, value in SETTINGS.items() for word in ("-S", f"{key}={value}")]
    if _dvc("exp", "run", "--temp", "--name", NAME, *changes):
        raise UserError("the demo's `dvc exp run` failed; its own message is above")
    shutil.rmtree(RESULTS, ignore_errors=True)
    RESULTS.mkdir()
    for source in (paths.REPORT, paths.TRAIN, paths.EVALUATE):
        target = RESULTS / source.name
        if _dvc("get", ".", source.as_posix(), "--rev", NAME, "--out", str(target), "--quiet"):
            raise UserError(f"{source} of the demo could not be copied to {target}; dvc's message is above")
    _show(time.monotonic() - started)


def _dvc(*arguments: str, quiet: bool = False) -> int:
    """dvc's exit code; what it says is seen while it runs.

    A signal waits until it is done, for the reason that `dvc_command.dvc` has; Ctrl-C reaches dvc and its stages too,
    which end by it.
    """
    silence = subprocess.DEVNULL if quiet else None
    command = [sys.executable, "-m", "dvc", *arguments]
    with signals.deferred() as request:
        code = subprocess.run(command, env=environment(), stdout=silence, stderr=silence).returncode
    request.obey()
    return code


def _show(seconds: float) -> None:
    train = json.loads((RESULTS / paths.TRAIN.name / paths.TRAIN_METRICS.name).read_text(encoding="utf-8"))
    test = json.loads((RESULTS / paths.EVALUATE.name / paths.EVALUATE_METRICS.name).read_text(encoding="utf-8"))
    rows = (
        ("test accuracy", f"{test['accuracy']:.2%}"),
        ("95 % interval", f"{test['accuracy_low']:.2%} to {test['accuracy_high']:.2%}"),
        ("test loss", f"{test['loss']:.4f}"),
        ("validation accuracy", f"{train['validation_accuracy']:.2%}"),
        ("peak rate", f"{train['max_lr']:.3g}"),
        ("parameters", f"{train['parameters']:,.0f}"),
        ("time, all stages", f"{seconds:.0f} s"),
    )
    show(
        (
            Table("The pipeline on handwritten digits", ("", ""), rows),
            f"report      {(RESULTS / paths.REPORT.name / paths.REPORT_HTML.name).as_posix()}  (open it in a browser)",
            "MLflow      make ui",
            "experiment  source .venv/bin/activate && dvc exp show --only-changed",
        )
    )
