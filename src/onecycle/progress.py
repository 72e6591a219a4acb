"""How training shows itself in a terminal: a live bar, or plain lines where there is no terminal."""

from __future__ import annotations

import sys
import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from onecycle.training import Epoch


class TrainingProgress:
    """A bar over optimiser steps with the last epoch's figures; each epoch also leaves a line."""

    def __init__(self, epochs: int, steps: int, done: int, batch_size: int, held_out: str) -> None:
        """Show `steps` optimiser steps, `done` of them already taken."""
        self._epochs, self._batch_size, self._held_out = epochs, batch_size, held_out
        self._console = Console(file=sys.stderr)
        self._bar = Progress(
            TextColumn("[bold]train"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("steps · {task.fields[speed]:.0f} images/s"),
            TimeRemainingColumn(),
            console=self._console,
            disable=not self._console.is_terminal,
        )
        self._task = self._bar.add_task("train", total=steps, completed=done, speed=0.0)
        self._epoch_steps = steps // epochs
        self._steps = 0
        self._started = time.perf_counter()

    def __enter__(self) -> TrainingProgress:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def step(self) -> None:
        """One more step is done."""
        self._steps += 1
        self._bar.update(self._task, advance=1, speed=self._speed())

    def epoch(self, epoch: Epoch) -> dict[str, float]:
        """Print the epoch's line; returns its seconds and training images a second, which belong into no file.

        Of an epoch that another process began there is nothing to return.
        """
        seconds, speed, whole = time.perf_counter() - self._started, self._speed(), self._steps == self._epoch_steps
        self._console.print(
            f"epoch {epoch.epoch:>2}/{self._epochs}  "
            f"train {epoch.train_loss:.4f} {epoch.train_accuracy:7.2%}  "
            f"{self._held_out} {epoch.held_out_loss:.4f} {epoch.held_out_accuracy:7.2%}  "
            f"rate {epoch.learning_rate:.2e}  {seconds:.1f} s, {speed:.0f} images/s",
            highlight=False,
            soft_wrap=True,
        )
        self._steps = 0
        self._started = time.perf_counter()
        return {"train/epoch_seconds": seconds, "train/images_per_second": speed} if whole else {}

    def _speed(self) -> float:
        return self._steps * self._batch_size / max(time.perf_counter() - self._started, 1e-9)
