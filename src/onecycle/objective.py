"""What a training step computes of a batch, and how that is launched: kernel by kernel, as CUDA graphs, or compiled."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from onecycle.device import InPrecision
from onecycle.generators import generator_states, restore_generators
from onecycle.optimizer import l1_penalty
from onecycle.params import OptimizerParams, TrainParams

Launch = Literal["plain", "graphs", "compiled"]
Step = Callable[[Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]

COMPILING_PAYS = 10_000_000
"""Images from which on `auto` compiles: 20 to 28 s once, against 2.5 µs an image (H200, width 64)."""


class Objective(nn.Module):
    """All that a step computes of a batch, as one module, so that `torch.compile` covers it whole."""

    def __init__(self, logits: InPrecision, optimizer: OptimizerParams, train: TrainParams) -> None:
        super().__init__()
        self._logits, self._optimizer, self._label_smoothing = logits, optimizer, train.label_smoothing

    def forward(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(what is minimised, the mean cross entropy without smoothing, how many of the (N,) `labels` are right)."""
        logits = self._logits(images)
        total = F.cross_entropy(logits, labels, label_smoothing=self._label_smoothing)
        # The held-out images' loss is not smoothed, and the two are read beside each other.
        loss = F.cross_entropy(logits.detach(), labels) if self._label_smoothing else total.detach()
        penalty = l1_penalty(self._logits.classifier, self._optimizer)
        hits = (logits.detach().argmax(dim=1) == labels).sum()
        return total if penalty is None else total + penalty, loss, hits


def launch_of(train: TrainParams, device: torch.device, images: int) -> Launch:
    """How `train.compile` has a training on so many images, epochs times those of one, launched.

    `auto` takes CUDA graphs, and compiles where training is long enough to win the time back. Not on a CPU, where
    compiling makes bf16 slower.
    """
    if train.compile == "auto" and device.type == "cuda":
        return "compiled" if images >= COMPILING_PAYS else "graphs"
    return "compiled" if train.compile is True else "plain"


def launched(objective: Objective, how: Launch, images: Tensor, labels: Tensor) -> Step:
    """`objective` to be called in training, with batches like this one, whose values do not matter."""
    if how == "graphs":
        return _captured(objective, images, labels)
    # "reduce-overhead" means CUDA graphs; "max-autotune" spends a minute on Triton convolutions, and keeps cuDNN's
    return cast(Step, torch.compile(objective, mode="reduce-overhead") if how == "compiled" else objective)


def _captured(objective: Objective, images: Tensor, labels: Tensor) -> Step:
    """`objective`, forward and backward recorded as CUDA graphs: the same kernels, and bits, at one launch each.

    A network this small is done with a kernel before the processor has launched the next one.
    """
    state = {name: value.clone() for name, value in objective.state_dict().items()}
    generators = generator_states(images.device)
    objective.train()
    captured = torch.cuda.make_graphed_callables(objective, (images, labels))
    # It is recorded on a stream of its own, to which autograd then sees the weights belong.
    torch.autograd.graph.set_warn_on_accumulate_grad_stream_mismatch(False)
    objective.load_state_dict(state)  # the passes that warm up count in batch norm's statistics, and draw dropout
    restore_generators(generators)
    return cast(Step, captured)
