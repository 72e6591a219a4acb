"""Changed files, a shallow clone, no git at all: stages run, and the row says which of it was so."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from conftest import command
from ending import stage


def tags(workspace: Path) -> dict[str, str]:
    """Run the quickest stage that has a row; the row's tags."""
    stage(workspace, "stats")
    [journal] = (workspace / ".state" / "journal").glob("*/entries.jsonl")
    entries = map(json.loads, journal.read_text(encoding="utf-8").splitlines())
    found = {name: value for entry in entries if entry["event"] == "tags" for name, value in entry["values"].items()}
    shutil.rmtree(workspace / ".state")
    return found


def test_stages_run_and_the_row_says_so(workspace: Path, tmp_path: Path) -> None:
    commit = command(workspace, "git", "rev-parse", "HEAD").stdout.strip()
    clean = tags(workspace)
    assert (clean["git.commit"], clean["git.dirty"]) == (commit, "false")

    code = workspace / "stages" / "stats.py"
    code.write_text(code.read_text(encoding="utf-8") + "# changed\n", encoding="utf-8")
    dirty = tags(workspace)
    assert (dirty["git.dirty"], dirty["git.changed"]) == ("true", "stages/stats.py")

    shallow = tmp_path / "shallow"
    command(tmp_path, "git", "clone", "--quiet", "--depth", "1", workspace.as_uri(), str(shallow))
    shutil.copytree(workspace / "data", shallow / "data", dirs_exist_ok=True)
    assert tags(shallow)["git.commit"] == commit

    first = command(workspace, "git", "rev-parse", "HEAD~").stdout.strip()
    gate = command(shallow, "onecycle", "gate", "--baseline", first, check=False)
    assert gate.returncode == 2
    assert gate.stderr.startswith(f"error: {first} is not in this shallow clone; fetch the whole history")

    shutil.rmtree(workspace / ".git")
    gate = command(workspace, "onecycle", "gate", "--baseline", "main", check=False)
    assert gate.returncode == 2
    assert gate.stderr.startswith("error: main is no folder, and git cannot be asked for it")
    without = tags(workspace)
    assert not {name for name in without if name.startswith("git.")}
    command(workspace, "dvc", "config", "--local", "core.no_scm", "true")  # what dvc itself asks for then
    command(workspace, "dvc", "repro", "--force", "--single-item", "stats", ONECYCLE_TRACKING="journal")
