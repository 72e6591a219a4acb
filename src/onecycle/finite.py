"""A loss that is NaN or infinite: no step is taken from it, and it is told with step, rate and advice.

On a CPU each loss is looked at before its step. On a GPU that would make the processor wait for the device at every
step, and the device for the processor; there the look is left to the device: from the first bad loss on, the optimiser
skips every step, and `check` tells of it when the run next waits anyway, before anything of it is shown or saved.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.optim import Optimizer

from onecycle.errors import UserError


class FiniteLoss:
    """The guard before an optimiser's steps: `admit` each loss, `check` before the outcome is used."""

    def __init__(
        self,
        optimizer: Optimizer,
        learning_rate: NDArray[np.float64],
        steps_per_epoch: int,
        device: torch.device,
        ahead: bool,
    ) -> None:
        """Take every step's rate, and whether steps go `ahead` without waiting; `optimizer` is then a fused one."""
        self._learning_rate, self._steps_per_epoch, self._ahead = learning_rate, steps_per_epoch, ahead
        if ahead:
            assert optimizer.defaults["fused"], "only fused optimisers skip steps on the device"
            self._losses = torch.zeros(len(learning_rate), device=device)
            self._bad = torch.zeros((), device=device)  # 1 after a bad loss
            optimizer.register_step_pre_hook(self._skip_if_bad)

    def admit(self, step: int, loss: Tensor) -> None:
        """Look at the loss of `step` before the optimiser takes it, or have the device look.

        Raises:
            UserError: it is not finite.
        """
        if self._ahead:
            self._losses[step] = loss
            self._bad.masked_fill_(~torch.isfinite(loss), 1.0)
        elif not bool(torch.isfinite(loss)):
            raise self._refused(step, loss)

    def check(self) -> None:
        """Wait for the device.

        Raises:
            UserError: a loss was not finite; no step was taken from it on.
        """
        if self._ahead and bool(self._bad):
            step = int((~torch.isfinite(self._losses)).nonzero()[0])
            raise self._refused(step, self._losses[step])

    def _skip_if_bad(self, optimizer: Any, _args: object, _kwargs: object) -> None:
        """Fused optimisers change nothing where `found_inf` is 1; a GradScaler, where one is used, sets it first."""
        optimizer.found_inf = torch.maximum(self._bad, getattr(optimizer, "found_inf", self._bad))

    def _refused(self, step: int, loss: Tensor) -> UserError:
        if step == 0:
            advice = "no step was taken, so no rate is to blame: look at model.logit_scale, optimizer.l1 and the images"
        else:
            advice = "lower one_cycle.max_lr or raise one_cycle.div_factor"
        return UserError(
            f"the training loss is {loss.item()} at step {step} (epoch {step // self._steps_per_epoch + 1}, "
            f"learning rate {self._learning_rate[step]:.3g}); {advice}"
        )
