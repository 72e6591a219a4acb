"""A training run carried to its end: shown, logged, checkpointed, and stopped between two steps when asked to."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext

from onecycle import signals
from onecycle.checkpoint import Checkpoints, InBackground
from onecycle.params import Params
from onecycle.progress import TrainingProgress
from onecycle.training import Epoch, Run

LogMetrics = Callable[[Mapping[str, float], int], None]

SPARED_SECONDS = 5.0
"""What a crash may cost a device that trains an epoch in less: taking its state would cost it that much each time."""

LAST_SECONDS = 0.1
"""How much later than those that load images this process may get a signal that is for all."""


def train_to_end(
    training: Run,
    checkpoints: Checkpoints,
    params: Params,
    held_out: str,
    log_metrics: LogMetrics,
    in_background: bool | None = None,
) -> None:
    """Resume `training` from its last checkpoint if there is one, and train; `log_metrics` gets each epoch's figures.

    `in_background`: whether state is written while training goes on; None: except on the CPU. A fast GPU trains an
    epoch in the time that a state takes to reach the disk.

    Raises:
        Stopped: a signal asked to end; the step was finished and its state saved.
        UserError: the loss is no longer finite; the last good state stays.
    """
    snapshot, notices = checkpoints.load()
    if snapshot is not None:
        training.restore(snapshot)
        notices.append(f"resuming after step {training.state.step} of {training.total_steps}")
    for notice in notices:
        print(f"train: {notice}")

    saved = time.monotonic()
    shown = TrainingProgress(params.epochs, training.total_steps, training.state.step, params.batch_size, held_out)
    if in_background is None:
        in_background = training.device.type != "cpu"
    saving = InBackground(checkpoints.save) if in_background else nullcontext(checkpoints.save)
    with signals.deferred() as request, shown as progress, saving as save:

        def between_steps() -> None:
            nonlocal saved
            progress.step()
            if request.signal_number is not None or time.monotonic() - saved >= params.runtime.checkpoint_seconds:
                save(training.snapshot())
                saved = time.monotonic()
            request.obey()

        try:
            for epoch in training.epochs(between_steps):
                log_metrics({**series(epoch, held_out), **progress.epoch(epoch)}, epoch.epoch)
                recent = in_background and time.monotonic() - saved < SPARED_SECONDS
                if request.signal_number is not None or not recent:
                    save(training.snapshot())
                    saved = time.monotonic()
                request.obey()
        except (RuntimeError, ConnectionError, EOFError) as error:  # the others as it hands over what it has loaded
            if isinstance(error, RuntimeError) and "DataLoader worker" not in str(error):
                raise
            time.sleep(LAST_SECONDS)
            if request.signal_number is None:
                raise
            # these come between two steps; that one was killed is told anywhere, and the last state counts
            if not isinstance(error, RuntimeError) or "exited unexpectedly" in str(error):
                save(training.snapshot())
    request.obey()


def series(epoch: Epoch, held_out: str) -> dict[str, float]:
    """An epoch's figures by their names in MLflow; curves on the test set stand apart from its final figures."""
    split = "test_epoch" if held_out == "test" else held_out
    figures = {
        "train/loss": epoch.train_loss,
        "train/accuracy": epoch.train_accuracy,
        "train/learning_rate": epoch.learning_rate,
        f"{split}/loss": epoch.held_out_loss,
        f"{split}/accuracy": epoch.held_out_accuracy,
    }
    return figures if epoch.momentum is None else figures | {"train/momentum": epoch.momentum}
