"""A range test that diverges at once (24) or never bends (25) says so, with advice, and suggests nothing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from conftest import set_params
from ending import stage

from onecycle import paths


@pytest.mark.parametrize(
    ("lowest", "highest", "reason", "advice"),
    [
        (1e10, 1e12, "blew up", "Lower lr_range.start_lr"),
        (0.00000001, 0.0000001, "too flat", "Raise lr_range.end_lr"),
    ],
    ids=["24-diverges", "25-never-bends"],
)
def test_nothing_is_suggested(workspace: Path, lowest: float, highest: float, reason: str, advice: str) -> None:
    set_params(workspace, {"lr_range.start_lr": lowest, "lr_range.end_lr": highest})
    said = stage(workspace, "lr_range").stdout
    suggestion = json.loads((workspace / paths.LR_RANGE_SUGGESTION).read_text(encoding="utf-8"))
    assert (suggestion["accepted"], suggestion["max_lr"]) == (False, None)
    assert reason in suggestion["reason"]
    assert advice in suggestion["advice"]
    assert "no rate suggested" in said
