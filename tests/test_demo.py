"""`make demo`: in a workspace that was changed, and ended by a signal. The whole of it is what its user sees."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from pathlib import Path
from signal import SIGTERM

import yaml
from conftest import REPO, command, set_params
from ending import HANG_SECONDS

from onecycle.demo import SETTINGS
from onecycle.params import load

WAITING = """
stages:
  wait:
    cmd: touch {folder}/started; while [ ! -e {folder}/go ]; do sleep 0.1; done
    deps: [params.yaml]
"""


def test_a_workspace_with_few_images_and_none_held_out_is_no_obstacle(tmp_path: Path) -> None:
    params = tmp_path / "params.yaml"
    shutil.copy(REPO / "params.yaml", params)
    set_params(tmp_path, {"data.limit": 20, "data.validation_fraction": 0.0, "batch_size": 20})
    load(params)
    set_params(tmp_path, {key: yaml.safe_load(str(value)) for key, value in SETTINGS.items()})
    assert load(params).data.validation_fraction > 0  # the table shows its accuracy


def test_dvc_is_not_killed_by_a_signal_to_the_demo_alone(tmp_path: Path) -> None:
    """Killed while it has the workspace in a git stash, it would leave it there."""
    workspace, seen = tmp_path / "repo", tmp_path / "seen"
    workspace.mkdir()
    seen.mkdir()
    shutil.copy(REPO / "params.yaml", workspace)
    (workspace / "dvc.yaml").write_text(WAITING.format(folder=seen), encoding="utf-8")
    identity = "git config user.name test", "git config user.email test@example.com"
    for words in ("git init -q", *identity, "dvc init -q", "git add -A", "git commit -qm start"):
        command(workspace, *words.split())
    onecycle = Path(sys.executable).with_name("onecycle")
    demo = subprocess.Popen([onecycle, "demo"], cwd=workspace, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + HANG_SECONDS
    while not (seen / "started").exists():
        assert demo.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    demo.send_signal(SIGTERM)
    (seen / "go").touch()
    _, said = demo.communicate(timeout=HANG_SECONDS)
    assert (demo.returncode, said.splitlines()[-1]) == (128 + SIGTERM, "stopped by SIGTERM")
    assert "/demo\n" in command(workspace, "git", "for-each-ref", "refs/exps").stdout
