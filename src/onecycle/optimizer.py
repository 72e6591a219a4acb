"""The optimiser that params ask for, and the penalty it does not do itself."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from onecycle.params import OptimizerParams


def build_optimizer(
    network: nn.Module,
    optimizer: OptimizerParams,
    learning_rate: float,
    momentum: float | None = None,
    fused: bool | None = None,
) -> torch.optim.Optimizer:
    """Adam, AdamW or SGD with Nesterov momentum; weight decay on the weights only, unless asked.

    `momentum` takes the place of `optimizer.momentum`. `fused` is one kernel for all weights, with other last bits;
    None: on CUDA.
    """
    if momentum is None:
        momentum = optimizer.momentum
    decayed, spared = _groups(network, optimizer)
    groups = [
        {"params": decayed, "weight_decay": optimizer.weight_decay},
        {"params": spared, "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if fused is None:
        fused = next(network.parameters()).device.type == "cuda"
    if optimizer.name == "sgd":
        sgd = torch.optim.SGD(groups, learning_rate, momentum, nesterov=momentum > 0, fused=fused)
        if fused:  # torch allocates buffers at the first step, and leaves them unset where a GradScaler skips that one
            sgd.state.update({weight: {"momentum_buffer": torch.zeros_like(weight)} for weight in network.parameters()})
        return sgd
    kind = torch.optim.Adam if optimizer.name == "adam" else torch.optim.AdamW
    betas = (momentum, optimizer.beta2)
    return kind(groups, learning_rate, betas, optimizer.epsilon, fused=fused)


def set_rate(optimizer: torch.optim.Optimizer, learning_rate: float, momentum: float | None) -> None:
    """Give every group this step's rate and, where it cycles, momentum (β1 of Adam and AdamW)."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate
        if momentum is None:
            continue
        if "betas" in group:
            group["betas"] = (momentum, group["betas"][1])
        else:
            group["momentum"] = momentum


def l1_penalty(network: nn.Module, optimizer: OptimizerParams) -> Tensor | None:
    """`optimizer.l1` × Σ|w| over the decayed weights, or None when it is 0."""
    if optimizer.l1 == 0:
        return None
    decayed, _ = _groups(network, optimizer)
    return optimizer.l1 * torch.stack([weight.abs().sum() for weight in decayed]).sum()


def _groups(network: nn.Module, optimizer: OptimizerParams) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """(decayed, spared): norms' scales and shifts and all biases are one-dimensional, weights are not."""
    parameters = list(network.parameters())
    if optimizer.decay_norms_and_biases:
        return parameters, []
    return [p for p in parameters if p.ndim > 1], [p for p in parameters if p.ndim <= 1]
