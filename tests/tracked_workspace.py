"""A workspace for tests of tracking: stages as real processes, rows read straight from the database."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

REPO = Path(__file__).resolve().parent.parent

STAGE = """
import sys, time
from pathlib import Path
from onecycle.stage import run

def main(params, row):
    {body}

run({stage!r}, main)
"""


@dataclass
class Run:
    """A row as the store has it."""

    run_id: str
    name: str
    status: str
    tags: dict[str, str]
    params: dict[str, str]
    metrics: dict[str, list[tuple[int, float]]]
    """Name → (step, value), by step."""
    artifacts: Path


class Workspace:
    """A folder that looks like the repo's: `.dvc`, params.yaml, and what a test puts there."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._processes: list[subprocess.Popen[str]] = []
        (root / ".dvc").mkdir(parents=True)
        shutil.copy(REPO / "tests/params.yaml", root)

    def stage(
        self, name: str, body: str = "pass", cwd: Path | None = None, under: Sequence[str] = (), **environment: str
    ) -> subprocess.Popen[str]:
        """Start a stage by hand, as `python -m stages.<name>` would be; `body` has `params` and `row`."""
        code = STAGE.format(stage=name, body=body.replace("\n", "\n    "))
        return self.python("-c", code, cwd=cwd, under=under, **environment)

    def python(
        self, *arguments: str, cwd: Path | None = None, under: Sequence[str] = (), **environment: str
    ) -> subprocess.Popen[str]:
        """Start Python here, by a command that changes its surroundings; its output can be read from the process."""
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(("MLFLOW_", "ONECYCLE_"))}
        process = subprocess.Popen(
            [*under, sys.executable, *arguments],
            cwd=cwd or self.root,
            env={**inherited, "PYTHONPATH": str(REPO / "src"), **environment},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._processes.append(process)
        return process

    def close(self) -> None:
        """End what a test that failed has left running."""
        for process in self._processes:
            if process.returncode is None:
                process.kill()
                process.communicate()

    def sync(self, **environment: str) -> subprocess.Popen[str]:
        """Start `onecycle sync`."""
        return self.python("-c", "from onecycle.cli import main; main(['sync'])", **environment)

    def write(self, path: str, content: object) -> None:
        """Write a file: text as it is, bytes as they are, anything else as JSON."""
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, bytes):
            file.write_bytes(content)
        else:
            file.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")

    @property
    def journals(self) -> list[Path]:
        """The journals that are still there."""
        return sorted((self.root / ".state/journal").glob("*/entries.jsonl"))

    def entries(self) -> list[dict[str, Any]]:
        """The entries of all journals."""
        return [json.loads(line) for file in self.journals for line in file.read_text(encoding="utf-8").splitlines()]

    def rows(self, database: str = "mlflow.db") -> list[Run]:
        """The rows in the store, oldest first."""
        if not (self.root / database).exists():
            return []
        with closing(sqlite3.connect(self.root / database)) as store:

            def pairs(table: str, run_id: str) -> dict[str, str]:
                return dict(store.execute(f"SELECT key, value FROM {table} WHERE run_uuid = ?", (run_id,)))

            found = store.execute(
                "SELECT run_uuid, name, status, artifact_uri FROM runs ORDER BY start_time"
            ).fetchall()
            rows = []
            for run_id, name, status, artifacts in found:
                metrics: dict[str, list[tuple[int, float]]] = {}
                query = "SELECT key, step, value FROM metrics WHERE run_uuid = ? ORDER BY key, step"
                for key, step, value in store.execute(query, (run_id,)):
                    metrics.setdefault(key, []).append((step, value))
                folder = Path.from_uri(artifacts) if hasattr(Path, "from_uri") else _path(artifacts)
                tags, params = pairs("tags", run_id), pairs("params", run_id)
                rows.append(Run(run_id, name, status, tags, params, metrics, folder))
            return rows


def _path(uri: str) -> Path:
    from urllib.parse import unquote, urlsplit

    return Path(unquote(urlsplit(uri).path))


def forget_stores() -> None:
    """Have MLflow open each store anew: it keeps them by address, and mlflow.db has the same in every workspace."""
    if "mlflow" not in sys.modules:
        return
    from mlflow.store.model_registry.sqlalchemy_store import SqlAlchemyStore as Models
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore as Rows
    from mlflow.tracking._model_registry.registry import ModelRegistryStoreRegistry
    from mlflow.tracking._tracking_service.registry import TrackingStoreRegistry

    for kind in (Models, Rows):
        while kind._engine_map:
            kind._engine_map.popitem()[1].dispose()
    for registry in (ModelRegistryStoreRegistry, TrackingStoreRegistry):
        registry._get_store_with_resolved_uri.cache_clear()


def wait_for(condition: Callable[[], object], seconds: float = 60) -> None:
    """Wait until `condition` holds; fail when it takes longer than `seconds`."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.1)


def finish(process: subprocess.Popen[str], code: int = 0) -> str:
    """Wait for a process, check its exit code, return its stdout and stderr."""
    out, err = process.communicate(timeout=120)
    assert process.returncode == code, out + err
    return out + err
