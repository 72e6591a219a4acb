"""Every random generator of this process: seeded, and kept in a form that plain tensors and values are enough for."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch


def seed_everything(seed: int) -> None:
    """Seed torch's, numpy's and Python's global generators (initial weights and dropout draw from torch's)."""
    random.seed(seed)
    np.random.seed(seed)  # a library may still draw from the global generator
    torch.manual_seed(seed)


def generator_states(device: torch.device) -> dict[str, Any]:
    """Where Python's, numpy's and torch's global generators stand, on the CPU and on `device`."""
    name, keys, *rest = np.random.get_state(legacy=True)
    states = {
        "python": random.getstate(),
        "numpy": (name, np.asarray(keys).tolist(), *rest),
        "torch": torch.get_rng_state(),
    }
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    elif device.type == "mps":
        states["mps"] = torch.mps.get_rng_state()
    return states


def restore_generators(states: dict[str, Any]) -> None:
    """Let every generator go on from where `generator_states` found it."""
    random.setstate(states["python"])
    np.random.set_state(states["numpy"])
    torch.set_rng_state(states["torch"])
    if "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"])
    if "mps" in states:
        torch.mps.set_rng_state(states["mps"])
