"""A device that is not there is refused by name; `auto` takes the CPU and says so."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from conftest import REPO, set_params
from ending import stage

from onecycle import paths
from onecycle.device import select_device
from onecycle.errors import UserError
from onecycle.params import load


@pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device is there")
def test_cuda_without_one(workspace: Path) -> None:
    model = (workspace / paths.MODEL).read_bytes()
    set_params(workspace, {"train.device": "cuda"})
    done = stage(workspace, "train", 2)
    assert done.stderr == "error: train.device is cuda, but torch sees no such device here; set it to auto or cpu\n"
    assert (workspace / paths.MODEL).read_bytes() == model


def test_deterministic_kernels_where_there_are_none(monkeypatch: pytest.MonkeyPatch) -> None:
    train = load(REPO / paths.PARAMS).train
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    with pytest.raises(UserError, match=r"^train\.deterministic is not for mps, .*; set it to false$"):
        select_device(train.model_copy(update={"device": "mps", "deterministic": True}))
