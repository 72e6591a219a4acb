"""Grad-CAM (Selvaraju et al. 2016, arXiv:1610.02391): where in an image a layer finds evidence for a class.

Own, because the library for it takes ten seconds to import and stretches each map to the image and down to 0.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from onecycle.errors import UserError
from onecycle.model import Classifier

SMALLEST_MAP = 8
"""Pixels a side. A coarser map says little more than "somewhere here"."""


def gradcam(
    classifier: Classifier,
    images: NDArray[np.uint8],
    targets: Sequence[NDArray[np.int64]],
    layer: str,
    device: torch.device,
) -> list[NDArray[np.float32]]:
    """Maps of `images` (N, H, W, 3) for each of `targets`, a class an image (N,), on `layer` of the network.

    A map is ReLU(Σ_k α_k A_k) over the layer's channels A_k, with α_k the mean over pixels of the logit's
    gradient, divided by its highest value; it stays 0 where nothing speaks for the class.

    Returns:
        For each of `targets` (N, h, w) float32 in [0, 1], h and w those of the layer.

    Raises:
        UserError: the layer's map is smaller than 8×8.
    """
    assert not classifier.training
    kept: list[Tensor] = []

    def keep(_module: nn.Module, _inputs: object, output: Tensor) -> Tensor:
        kept.append(output.detach().requires_grad_())
        return kept[-1].clone()  # which what follows may change in place

    with classifier.network.get_submodule(layer).register_forward_hook(keep):
        logits = classifier.logits(torch.from_numpy(np.array(images, order="C")).to(device))
    (activation,) = kept
    height, width = activation.shape[2:]
    if min(height, width) < SMALLEST_MAP:
        raise UserError(
            f"evaluate.gradcam_layer must have a map of at least {SMALLEST_MAP}×{SMALLEST_MAP}, {layer}'s is "
            f"{height}×{width}; take an earlier layer"
        )
    maps = []
    for classes in targets:
        score = logits.gather(1, torch.from_numpy(classes).to(device)[:, None]).sum()  # images do not mix in eval mode
        (gradient,) = torch.autograd.grad(score, activation, retain_graph=True)
        maps.append(_weighted(activation.detach().float(), gradient.float()).cpu().numpy())  # bf16 under autocast
    return maps


def _weighted(activation: Tensor, gradient: Tensor) -> Tensor:
    """(N, channels, h, w) activation and gradient → (N, h, w) maps in [0, 1]."""
    evidence = (gradient.mean(dim=(2, 3), keepdim=True) * activation).sum(dim=1).relu()
    highest = evidence.amax(dim=(1, 2), keepdim=True)
    return evidence / torch.where(highest > 0, highest, 1)
