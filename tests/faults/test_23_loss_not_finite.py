"""A loss that is no number stops training in one sentence, before the step, with the row FAILED and the state kept."""

from __future__ import annotations

import json
import re
from pathlib import Path

from conftest import set_params
from ending import stage

from onecycle import paths


def test_it_stops_and_keeps_the_last_good_state(workspace: Path) -> None:
    model = (workspace / paths.MODEL).read_bytes()
    changes = {"one_cycle.max_lr": 1e20, "one_cycle.div_factor": 1, "optimizer.name": "sgd"}
    set_params(workspace, {**changes, "runtime.checkpoint_seconds": 0.001})
    done = stage(workspace, "train", 2)
    [sentence] = done.stderr.splitlines()
    found = re.match(r"error: the training loss is (nan|inf) at step (\d+) .*lower one_cycle\.max_lr", sentence)
    assert found, sentence
    kept = sorted(path.stem for path in (workspace / ".state" / "train").glob("*/step-*.ckpt"))
    assert kept[-1] == f"step-{int(found[2]):08d}"
    assert (workspace / paths.MODEL).read_bytes() == model
    [journal] = (workspace / ".state" / "journal").glob("*/entries.jsonl")
    last = json.loads(journal.read_text(encoding="utf-8").splitlines()[-1])
    assert (last["event"], last["status"]) == ("close", "FAILED")
