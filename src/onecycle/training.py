"""The One Cycle training loop: resumable at any step, and ignorant of files and trackers.

Everything that decides the next step is in `State` or follows from (seed, epoch, step), so a run that is interrupted
and entered again gives the same weights to the bit on the CPU as one that never stopped.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from onecycle.device import InPrecision
from onecycle.finite import FiniteLoss
from onecycle.generators import generator_states, restore_generators
from onecycle.objective import Launch, Objective, launch_of, launched
from onecycle.optimizer import build_optimizer, set_rate
from onecycle.params import OptimizerParams, TrainParams
from onecycle.preparation import Prepared
from onecycle.schedule import Schedule

HELD_OUT_BATCH = 1000  # images a forward pass on the held-out split


@dataclass(frozen=True)
class Epoch:
    """One row of history: losses and accuracies are means over images; epochs count from 1."""

    epoch: int
    learning_rate: float
    momentum: float | None
    train_loss: float
    train_accuracy: float
    held_out_loss: float
    held_out_accuracy: float


@dataclass
class State:
    """What is to be kept to go on after `step` optimiser steps. `Run.snapshot` and `Run.restore` carry it."""

    step: int
    loss_sum: Tensor  # over the epoch's images so far, float64; on the device, so that steps need not wait for it
    hits: Tensor  # int64, likewise
    seen: int = 0
    history: list[Epoch] = field(default_factory=list)
    best_epoch: int = 0
    best_weights: dict[str, Tensor] | None = None


class Run:
    """A training run: `epochs()` yields each epoch as it ends; `snapshot()` is enough to go on in another process.

    Between two optimiser steps the run is consistent; `on_step` is called there, and may save or stop.
    """

    def __init__(
        self,
        prepared: Prepared,
        schedule: Schedule,
        optimizer: OptimizerParams,
        train: TrainParams,
        ahead: bool | None = None,
        launch: Launch | None = None,
    ) -> None:
        """`ahead`: whether steps follow each other without waiting for the device; None: on CUDA.

        `launch` is as `train.compile` has it where it is None.
        """
        compute = prepared.compute
        self.classifier, self.device = prepared.classifier, compute.device
        if ahead is None:
            ahead = self.device.type == "cuda"
        self.state = State(0, *_no_sums(self.device))
        self._loader, self._schedule, self._train = prepared.loader, schedule, train
        first = None if schedule.momentum is None else float(schedule.momentum[0])
        self._optimizer = build_optimizer(
            self.classifier, optimizer, float(schedule.learning_rate[0]), first, fused=ahead
        )
        self._finite = FiniteLoss(self._optimizer, schedule.learning_rate, self._loader.steps, self.device, ahead)
        self._scaler = torch.amp.GradScaler(self.device.type, enabled=compute.precision == torch.float16)
        self._logits = InPrecision(self.classifier, compute)
        if launch is None:
            launch = launch_of(train, self.device, self.total_steps * self._loader.batch_size)
        self.objective = launched(Objective(self._logits, optimizer, train), launch, *self._loader.blank())
        self._held_images = torch.from_numpy(np.array(prepared.held_out_images)).to(self.device)
        self._held_labels = torch.from_numpy(np.array(prepared.held_out_labels)).to(self.device)

    @property
    def total_steps(self) -> int:
        """Optimiser steps of the whole run."""
        return len(self._schedule.learning_rate)

    def epochs(self, on_step: Callable[[], None] = lambda: None) -> Iterator[Epoch]:
        """Train to the end, or until patience runs out, from wherever the run stands.

        Raises:
            UserError: the loss is no longer finite; weights are those before the failed step (batch norm's running
                statistics have seen its batch, but no snapshot of them can be taken).
        """
        state = self.state
        while state.seen or (state.step < self.total_steps and not self._out_of_patience()):
            if state.seen < self._loader.images_per_epoch:
                self._train_epoch(on_step)
            yield self._end_epoch()

    def kept_weights(self) -> tuple[int, dict[str, Tensor]]:
        """(epoch, state dict) that `train.keep` asks for."""
        if self._train.keep == "best" and self.state.best_weights is not None:
            return self.state.best_epoch, self.state.best_weights
        return self.state.history[-1].epoch, self.classifier.state_dict()

    def _train_epoch(self, on_step: Callable[[], None]) -> None:
        steps = self._loader.steps
        epoch, first_step = divmod(self.state.step, steps)
        self.classifier.train()
        for images, labels in self._loader.epoch(epoch, first_step):
            self._step(images, labels)
            on_step()

    def _step(self, images: Tensor, labels: Tensor) -> None:
        """One optimiser step."""
        momentum, state = self._schedule.momentum, self.state
        step = state.step
        rate = float(self._schedule.learning_rate[step])
        set_rate(self._optimizer, rate, None if momentum is None else float(momentum[step]))
        self._optimizer.zero_grad(set_to_none=True)
        total, loss, hits = self.objective(images, labels)
        self._finite.admit(step, total.detach())
        torch.autograd.backward(self._scaler.scale(total))
        self._scaler.step(self._optimizer)
        self._scaler.update()
        state.loss_sum += _like(state.loss_sum, loss.detach()) * len(labels)  # CUDA graphs forget that it was detached
        state.hits += _like(state.hits, hits)
        state.seen += len(labels)
        state.step += 1

    def _end_epoch(self) -> Epoch:
        self._finite.check()
        state = self.state
        held_out_loss, held_out_accuracy = self._look_at_held_out()
        momentum = self._schedule.momentum
        last = state.step - 1
        epoch = Epoch(
            epoch=state.step // self._loader.steps,
            learning_rate=float(self._schedule.learning_rate[last]),
            momentum=None if momentum is None else float(momentum[last]),
            train_loss=float(state.loss_sum) / state.seen,
            train_accuracy=int(state.hits) / state.seen,
            held_out_loss=held_out_loss,
            held_out_accuracy=held_out_accuracy,
        )
        best = max((row.held_out_accuracy for row in state.history), default=-1.0)
        state.history.append(epoch)
        if epoch.held_out_accuracy > best:
            state.best_epoch = epoch.epoch
            if self._train.keep == "best":
                state.best_weights = copy.deepcopy(self.classifier.state_dict())
        state.loss_sum, state.hits = _no_sums(self.device)
        state.seen = 0
        return epoch

    def _look_at_held_out(self) -> tuple[float, float]:
        """(loss, accuracy), means over the held-out images, in the precision of training."""
        self.classifier.eval()
        loss, hits = _no_sums(self.device)
        with torch.inference_mode():
            pairs = zip(
                torch.split(self._held_images, HELD_OUT_BATCH),
                torch.split(self._held_labels, HELD_OUT_BATCH),
                strict=True,
            )
            for images, labels in pairs:
                logits = self._logits(images)
                loss += _like(loss, F.cross_entropy(logits, labels, reduction="sum"))
                hits += _like(hits, (logits.argmax(dim=1) == labels).sum())
        return float(loss) / len(self._held_labels), int(hits) / len(self._held_labels)

    def _out_of_patience(self) -> bool:
        patience, state = self._train.early_stop_patience, self.state
        return bool(patience and state.history and state.history[-1].epoch - state.best_epoch >= patience)

    def snapshot(self) -> dict[str, Any]:
        """All that `restore` needs, as tensors, numbers, strings and what holds them (loads with weights_only=True).

        Tensors are copies on the CPU, which later steps do not change.

        Raises:
            UserError: the loss is no longer finite.
        """
        self._finite.check()
        state = self.state
        live = {
            "classifier": self.classifier.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "scaler": self._scaler.state_dict(),
            "step": state.step,
            "loss_sum": state.loss_sum,
            "hits": state.hits,
            "seen": state.seen,
            "history": [asdict(epoch) for epoch in state.history],
            "best_epoch": state.best_epoch,
            "best_weights": state.best_weights,
            "generators": generator_states(self.device),
        }
        return {name: _copied(value) for name, value in live.items()}

    def restore(self, snapshot: dict[str, Any]) -> None:
        """Stand where `snapshot` was taken."""
        self.classifier.load_state_dict(snapshot["classifier"])
        self._optimizer.load_state_dict(snapshot["optimizer"])
        self._scaler.load_state_dict(snapshot["scaler"])
        loss_sum, hits = _no_sums(self.device)
        self.state = State(
            step=snapshot["step"],
            loss_sum=snapshot["loss_sum"].to(loss_sum),
            hits=snapshot["hits"].to(hits),
            seen=snapshot["seen"],
            history=[Epoch(**epoch) for epoch in snapshot["history"]],
            best_epoch=snapshot["best_epoch"],
            best_weights=snapshot["best_weights"],
        )
        restore_generators(snapshot["generators"])


def _no_sums(device: torch.device) -> tuple[Tensor, Tensor]:
    """(loss sum, hits) of no images, on the device; mps has no float64, so there they live on the CPU."""
    place = torch.device("cpu") if device.type == "mps" else device
    return torch.zeros((), dtype=torch.float64, device=place), torch.zeros((), dtype=torch.int64, device=place)


def _like(sums: Tensor, value: Tensor) -> Tensor:
    """`value` where and of the type that `sums` are; moved first, since mps cannot even make a float64 on its way."""
    return value.to(sums.device).to(sums.dtype)


def _copied(value: Any) -> Any:
    """`value` with each tensor in it copied to the CPU."""
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        return {key: _copied(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_copied(each) for each in value]
    return value
