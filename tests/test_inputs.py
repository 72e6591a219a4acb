"""What is edited while a stage runs: DVC would record it as what made the results, so the stage refuses to end well."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import REPO, command, set_params
from tracked_workspace import Workspace, finish, wait_for

from onecycle import paths

EDIT = "from pathlib import Path; p = Path('{file}'); p.write_text(p.read_text().replace('{old}', '{new}'))"


@pytest.fixture
def code(tmp_path: Path) -> Iterator[Workspace]:
    """A workspace with the pipeline's dvc.yaml and code that `stats` and `report` depend on."""
    code = Workspace(tmp_path / "work")
    shutil.copy(REPO / "dvc.yaml", code.root)
    for name in ("src/onecycle/png.py", "src/onecycle/report/words.py", "stages/stats.py"):
        code.write(name, (REPO / name).read_text(encoding="utf-8"))
    code.write("results/lr_range/suggestion.json", {"accepted": True, "max_lr": 0.002})
    yield code
    code.close()


@pytest.mark.parametrize(
    ("stage", "edit", "words"),
    [
        (
            "lr_range",
            {"file": "params.yaml", "old": "batch_size: 512", "new": "batch_size: 256"},
            "edited while lr_range ran: batch_size in params.yaml is 256 and was 512; DVC would record that",
        ),
        (
            "stats",
            {"file": "src/onecycle/png.py", "old": "import", "new": "import os, "},
            "edited while stats ran: src/onecycle/png.py is another; DVC would record that",
        ),
        (
            "report",
            {"file": "src/onecycle/report/words.py", "old": "import", "new": "import os, "},
            "edited while report ran: src/onecycle/report/words.py is another; DVC would record that",
        ),
        (
            "train",
            {"file": "results/lr_range/suggestion.json", "old": "0.002", "new": "0.003"},
            "edited while train ran: results/lr_range/suggestion.json is another; DVC would record that",
        ),
        ("stats", {"file": "params.yaml", "old": "batch_size: 512", "new": "batch_size: 256"}, ""),
        ("lr_range", {"file": "params.yaml", "old": "floor: 0.9 ", "new": "floor: 0.8 "}, ""),
    ],
    ids=["a param", "code", "code in a folder", "a result", "a param of others", "a knob of no stage"],
)
def test_what_a_stage_reads_stays_as_it_was(code: Workspace, stage: str, edit: dict[str, str], words: str) -> None:
    process = code.stage(stage, EDIT.format(**edit), ONECYCLE_TRACKING="journal")
    said = finish(process, code=2 if words else 0)
    assert words in said and "Traceback" not in said
    [close] = [entry for entry in code.entries() if entry["event"] == "close"]
    assert close["status"] == ("FAILED" if words else "FINISHED")


def test_a_new_file_in_a_folder_counts_and_what_editors_lay_beside_it_does_not(code: Workspace) -> None:
    swap = "src/onecycle/report/.words.py.swp"
    code.write(swap, "of an editor that is closed meanwhile")
    body = f"from pathlib import Path; Path('{swap}').unlink(); Path('src/onecycle/report/more.py').touch()"
    said = finish(code.stage("report", body, ONECYCLE_TRACKING="journal"), code=2)
    assert "error: edited while report ran: src/onecycle/report/more.py is new; DVC would record that" in said


@pytest.mark.parametrize(
    ("meanwhile", "ends_with", "forgotten"),
    [
        ("pass", 0, True),
        ("p = Path('params.yaml'); p.write_text(p.read_text().replace('epochs: 24', 'epochs: 12'))", 2, False),
        ("Inputs.check_unchanged = lambda self: os.kill(os.getpid(), signal.SIGTERM)", 143, False),
    ],
    ids=["nothing", "an edit", "a signal while inputs are looked at"],
)
def test_what_a_stage_goes_on_from_is_forgotten_last(
    code: Workspace, meanwhile: str, ends_with: int, forgotten: bool
) -> None:
    """DVC takes nothing of a stage that fails."""
    body = f"import os, signal; from onecycle.inputs import Inputs\n{meanwhile}\nreturn lambda: print('forgotten')"
    said = finish(code.stage("train", body, ONECYCLE_TRACKING="journal"), code=ends_with)
    assert ("forgotten" in said) is forgotten


def test_a_training_that_is_done_waits_for_its_params_to_come_back(workspace: Path) -> None:
    """Put back, it has nothing left to train."""
    set_params(workspace, {"epochs": 12, "runtime.checkpoint_seconds": 0.05})
    train = [sys.executable, "-m", "stages.train"]
    with subprocess.Popen(train, cwd=workspace, stderr=subprocess.PIPE, text=True) as stage:
        wait_for(lambda: stage.poll() is not None or list((workspace / ".state/train").glob("*/step-*.ckpt")))
        set_params(workspace, {"epochs": 13})
        _, said = stage.communicate(timeout=300)
    assert stage.returncode == 2
    assert "error: edited while train ran: epochs in params.yaml is 13 and was 12; " in said
    set_params(workspace, {"epochs": 12})
    again = command(workspace, "python", "-m", "stages.train")
    assert "train: resuming after step 108 of 108" in again.stdout
    assert json.loads((workspace / paths.TRAIN_METRICS).read_text(encoding="utf-8"))["epochs"] == 12
