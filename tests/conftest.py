"""What tests share: digits as arrays, the shipped params shrunk to seconds."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read once, at the first product on a GPU
for stale in (
    *("MLFLOW_RUN_ID", "MLFLOW_TRACKING_URI", "ONECYCLE_TRACKING", "ONECYCLE_DEBUG"),
    *("DVC_EXP_NAME", "DVC_EXP_BASELINE_REV", "DVC_STAGE", "DVC_ROOT"),
):
    os.environ.pop(stale, None)
signal.signal(signal.SIGINT, signal.default_int_handler)  # also in the background, or what tests start would ignore it
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # also under nohup

import pytest
import torch
from filelock import FileLock
from ruamel.yaml import YAML
from tracked_workspace import forget_stores

from onecycle import download
from onecycle.cli import main
from onecycle.data import Dataset, fewer
from onecycle.params import Params, load

torch.set_num_threads(1)  # tests run side by side, and nothing in them is large

REPO = Path(__file__).resolve().parent.parent
PARAMS_FILE = REPO / "tests" / "params.yaml"
"""What tests take for the shipped params.yaml."""

Run = Callable[..., tuple[int, str, str]]

SMALL = {
    "epochs": 3,
    "batch_size": 32,
    "data.dataset": "digits",
    "data.limit": 320,
    "augment.flip_probability": 0.0,
    "model.width": 4,
    "one_cycle.max_at_epoch": 1,
    "one_cycle.max_lr": 0.01,
    "lr_range.iterations": 20,
    "lr_range.sweeps": 2,
    "train.device": "cpu",
    "train.precision": "fp32",
    "train.threads": 1,
}
"""Changes to `PARAMS_FILE` that make the whole pipeline run in seconds."""


@pytest.fixture(scope="session")
def small_params() -> Callable[..., Params]:
    """`small_params(**{"train.keep": "best"})`: the shipped params, shrunk by SMALL, then changed as asked."""
    shipped = load(PARAMS_FILE).model_dump()

    def changed(**changes: Any) -> Params:
        tree = {key: dict(value) if isinstance(value, dict) else value for key, value in shipped.items()}
        for key, value in {**SMALL, **changes}.items():
            section, _, last = key.rpartition(".")
            (tree[section] if section else tree)[last] = value
        return Params.model_validate(tree)

    return changed


@pytest.fixture(scope="session")
def digits() -> Dataset:
    """320 training and 320 test images of scikit-learn's digits."""
    return fewer(download.digits(), 320, 0)


def set_params(workspace: Path, changes: dict[str, Any]) -> None:
    """Set dotted keys in a workspace's params.yaml, keeping its comments."""
    yaml = YAML()
    path = workspace / "params.yaml"
    tree = yaml.load(path.read_text(encoding="utf-8"))
    for key, value in changes.items():
        section, _, last = key.rpartition(".")
        (tree[section] if section else tree)[last] = value
    with path.open("w", encoding="utf-8") as file:
        yaml.dump(tree, file)


def command(workspace: Path, *words: str, check: bool = True, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run `words` in a workspace as a user with the environment activated; on failure show what it said.

    Files take that, since what it leaves running, as `dvc queue start` does, would hold a pipe open.
    """
    binaries = Path(sys.executable).parent
    path = f"{binaries}{os.pathsep}{os.environ['PATH']}"
    with TemporaryFile("w+") as out, TemporaryFile("w+") as error:
        done = subprocess.run(
            words,
            cwd=workspace,
            env={**os.environ, "PATH": path, **environment},
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=error,
            check=False,
        )
        out.seek(0)
        error.seek(0)
        said = subprocess.CompletedProcess(words, done.returncode, out.read(), error.read())
    if check:
        assert said.returncode == 0, f"{' '.join(words)}: exit {said.returncode}\n{said.stdout}\n{said.stderr}"
    return said


def clone(target: Path) -> Path:
    """A git and DVC repository of its own with the project's tracked and new files, small params, nothing run yet."""
    listed = command(REPO, "git", "ls-files", "-z", "--cached", "--others", "--exclude-standard").stdout
    for name in filter(None, listed.split("\0")):
        if name.startswith("results/") or name == "dvc.lock" or not (REPO / name).exists():
            continue
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(REPO / name, target / name)
    shutil.copy(PARAMS_FILE, target)
    set_params(target, SMALL)
    for words in (("init", "-q", "-b", "main"), ("add", "-A"), ("commit", "-qm", "start")):
        command(target, "git", "-c", "user.name=test", "-c", "user.email=test@example.com", *words)
    for key, value in (("user.name", "test"), ("user.email", "test@example.com")):
        command(target, "git", "config", key, value)
    return target


@pytest.fixture(scope="session")
def pipeline(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Path:
    """A repository in which the whole small pipeline has run once. Look at it, never write to it.

    Of pytest-xdist's workers the first to ask makes it for all.
    """
    folder = tmp_path_factory.getbasetemp()
    workspace = (folder if worker_id == "master" else folder.parent) / "pipeline" / "repo"
    log = workspace / ".git" / "repro.log"
    workspace.parent.mkdir(exist_ok=True)
    with FileLock(workspace.parent / "lock"):
        if not log.exists():
            shutil.rmtree(workspace, ignore_errors=True)  # another worker's that failed
            clone(workspace)
            started = command(workspace, "dvc", "repro")
            command(workspace, "onecycle", "sync")  # the sender may still be at it, and would write into copies
            command(workspace, "git", "add", "-A")
            command(workspace, "git", "commit", "-qm", "results")
            log.write_text(started.stdout + started.stderr, encoding="utf-8")
    return workspace


@pytest.fixture
def workspace(pipeline: Path, tmp_path: Path) -> Path:
    """A copy of `pipeline` to change and rerun stages in, with a cache of its own and nothing tracked yet."""
    target = tmp_path / "repo"
    tracked = shutil.ignore_patterns("mlflow.db*", "mlartifacts", ".state")
    shutil.copytree(pipeline, target, symlinks=True, ignore=tracked)
    return target


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests of the shared run first: while one worker makes it, the other starts from the second half."""
    items.sort(key=lambda item: "pipeline" not in getattr(item, "fixturenames", ()))


@pytest.fixture
def onecycle(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Run]:
    """`onecycle(folder, "gate", …)`: the command in this process, a second or ten less; exit code, stdout, stderr."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}

    def run(folder: Path, *arguments: str) -> tuple[int, str, str]:
        monkeypatch.chdir(folder)
        forget_stores()
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        code = ended.value.code
        assert isinstance(code, int)
        return (code, *capsys.readouterr())

    yield run
    forget_stores()
    for number, handler in before.items():
        signal.signal(number, handler)
