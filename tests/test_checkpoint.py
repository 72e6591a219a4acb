"""Training state on disk: whole or not at all, checked when read, and only ever taken by the run it belongs to."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import REPO

from onecycle import checkpoint
from onecycle.checkpoint import Checkpoints, InBackground, code_of, identity, write_whole
from onecycle.errors import UserError
from onecycle.params import Params, flatten

IDENTITY = {"epochs": "3", "learning rate": "0.01"}


def state(step: int) -> dict[str, Any]:
    return {"step": step, "weights": torch.full((4,), float(step)), "history": [{"epoch": 1, "loss": 0.5}]}


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    """The two files that are left of steps 1 to 3."""
    with Checkpoints(tmp_path, IDENTITY) as checkpoints:
        written = [checkpoints.save(state(step)) for step in (1, 2, 3)]
    assert [path.exists() for path in written] == [False, True, True]
    return written[1:]


def loaded(folder: Path, identity: dict[str, str] = IDENTITY) -> tuple[int | None, list[str]]:
    with Checkpoints(folder, identity) as checkpoints:
        found, notices = checkpoints.load()
    if found is None:
        return None, notices
    assert torch.equal(found["weights"], torch.full((4,), float(found["step"])))
    return found["step"], notices


def test_the_newest_of_two_is_taken(files: list[Path], tmp_path: Path) -> None:
    assert sorted(tmp_path.glob("*/step-*")) == files
    assert loaded(tmp_path) == (3, [])


def test_nothing_there_is_nothing_to_say(tmp_path: Path) -> None:
    assert loaded(tmp_path) == (None, [])


def flip_a_byte(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


@pytest.mark.parametrize(
    "damage",
    [
        flip_a_byte,
        lambda content: flip_a_byte(content[:200]) + content[200:],  # in the first 200 bytes: the checksum's own end
        lambda content: content[:-1],
        lambda content: content[: len(content) // 2],
        lambda content: content + b"\0",
        lambda content: b"",
    ],
    ids=["flipped", "flipped-early", "a-byte-short", "half", "a-byte-long", "empty"],
)
def test_a_damaged_file_is_told_and_the_one_before_is_taken(
    files: list[Path], tmp_path: Path, damage: Callable[[bytes], bytes]
) -> None:
    before, newest = files
    newest.write_bytes(damage(newest.read_bytes()))
    assert loaded(tmp_path) == (2, [f"{newest.name} is damaged and not used"])
    before.write_bytes(damage(before.read_bytes()))
    newest.write_bytes(b"no checkpoint")
    assert loaded(tmp_path) == (None, [f"{path.name} is damaged and not used" for path in (newest, before)])
    with Checkpoints(tmp_path, IDENTITY) as checkpoints:
        checkpoints.save(state(1))
    assert loaded(tmp_path) == (1, [])


def test_a_state_of_another_run_is_named_and_left_alone(files: list[Path], tmp_path: Path) -> None:
    other = {**IDENTITY, "learning rate": "0.02"}
    notice = "an interrupted run is kept but differs in learning rate; starting afresh"
    assert loaded(tmp_path, other) == (None, [notice])
    with Checkpoints(tmp_path, other) as checkpoints:
        checkpoints.save(state(7))
    assert loaded(tmp_path, other) == (7, [])
    assert loaded(tmp_path) == (3, [])


def test_a_run_that_goes_on_is_not_called_interrupted(files: list[Path], tmp_path: Path) -> None:
    with Checkpoints(tmp_path, IDENTITY):
        assert loaded(tmp_path, {"epochs": "9"}) == (None, [])


def test_killed_before_its_first_state_there_is_nothing_to_say(files: list[Path], tmp_path: Path) -> None:
    for path in files:
        path.unlink()
    assert loaded(tmp_path) == (None, [])


def test_forgotten_when_done(files: list[Path], tmp_path: Path) -> None:
    with Checkpoints(tmp_path, IDENTITY) as checkpoints:
        checkpoints.clear()
    assert loaded(tmp_path) == (None, [])
    assert loaded(tmp_path, {"epochs": "9"}) == (None, [])


def test_a_signal_while_it_is_forgotten_comes_too_late(
    files: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its results are written; half a state would be neither taken up nor told from one of a run that was stopped."""
    remove = shutil.rmtree

    def interrupted(folder: Path, **options: Any) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        remove(folder, **options)

    monkeypatch.setattr(shutil, "rmtree", interrupted)
    with Checkpoints(tmp_path, IDENTITY) as checkpoints:
        checkpoints.clear()
    assert not files[0].parent.exists()


def test_an_experiment_waits_for_the_same_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As of two in DVC's queue that differ in what comes after it; in the workspace itself it is refused."""
    monkeypatch.setattr(checkpoint, "PATIENCE_SECONDS", 0.05)
    experiment = tmp_path / ".dvc/tmp/exps/tmp1"
    experiment.mkdir(parents=True)
    held, done = threading.Event(), threading.Event()

    def train() -> None:
        with Checkpoints(tmp_path, IDENTITY):
            held.set()
            done.wait(60)

    first = threading.Thread(target=train)
    first.start()
    held.wait(60)
    monkeypatch.chdir(tmp_path)
    with (
        pytest.raises(UserError, match=r"runs the same training already .* let it end first"),
        Checkpoints(tmp_path, IDENTITY),
    ):
        pass
    threading.Timer(0.3, done.set).start()
    monkeypatch.chdir(experiment)
    with Checkpoints(tmp_path, IDENTITY):
        assert done.is_set()
    first.join()
    assert capsys.readouterr().out.endswith("; waiting for it\n")


def test_what_nobody_took_up_for_a_month_is_forgotten_when_another_run_ends_well(tmp_path: Path) -> None:
    month_ago = time.time() - (checkpoint.ABANDONED_DAYS + 1) * 86_400
    identities = {name: {"run": name} for name in ("old", "recent", "going on", "ended")}
    for name, decides in identities.items():
        with Checkpoints(tmp_path, decides) as checkpoints:
            folder = checkpoints.save(state(1)).parent
        if name != "recent":
            os.utime(folder, (month_ago, month_ago))
    with Checkpoints(tmp_path, identities["going on"]), Checkpoints(tmp_path, identities["ended"]) as checkpoints:
        checkpoints.clear()
    kept = [json.loads(path.read_text(encoding="utf-8"))["run"] for path in tmp_path.glob("*/identity.json")]
    assert sorted(kept) == ["going on", "recent"]


def test_only_tensors_and_plain_values_are_read(tmp_path: Path) -> None:
    """A file with a good checksum is still not trusted with code."""
    with Checkpoints(tmp_path, IDENTITY) as checkpoints:
        checkpoints.save({"step": 1, "weights": Path("not a plain value")})
        with pytest.raises(Exception, match="Weights only load failed"):
            checkpoints.load()


HOLD = """
import sys
from pathlib import Path
from onecycle.checkpoint import Checkpoints

with Checkpoints(Path(sys.argv[1]), {"epochs": "3", "learning rate": "0.01"}):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_one_process_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "PATIENCE_SECONDS", 0)
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with holder:
        assert holder.stdin is not None
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(UserError, match=f"process {holder.pid} runs the same training already"):
            loaded(tmp_path)
        assert loaded(tmp_path, {"epochs": "9"}) == (None, [])
        holder.kill()  # the lock goes with the process
    assert loaded(tmp_path) == (None, [])


def test_written_whole_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "file"
    write_whole(target, b"old")
    write_whole(target, b"new")
    assert target.read_bytes() == b"new"
    with pytest.raises(TypeError):
        write_whole(target, "no bytes")  # type: ignore[arg-type]
    assert (target.read_bytes(), list(tmp_path.iterdir())) == (b"new", [target])


def test_on_disk_before_it_takes_the_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a power cut could leave a new name with nothing behind it."""
    target, done = tmp_path / "file", []
    fsync, rename = os.fsync, Path.replace

    def noted_fsync(file: int) -> None:
        done.append((os.fstat(file).st_size, target.exists()))
        fsync(file)

    def noted_rename(path: Path, to: Path) -> Path:
        done.append(("renamed", to.name))
        return rename(path, to)

    monkeypatch.setattr(os, "fsync", noted_fsync)
    monkeypatch.setattr(Path, "replace", noted_rename)
    write_whole(target, b"state")
    assert done == [(5, False), ("renamed", "file")]


KILLED = """
import os, signal, sys
from pathlib import Path
import torch
from onecycle.checkpoint import Checkpoints

def end_before_renaming(event, arguments):
    if event == "os.rename" and "step-00000004" in str(arguments[1]):
        os.kill(os.getpid(), signal.SIGKILL)

sys.addaudithook(end_before_renaming)
with Checkpoints(Path(sys.argv[1]), {"epochs": "3", "learning rate": "0.01"}) as checkpoints:
    checkpoints.save({"step": 4, "weights": torch.zeros(4)})
"""


def test_killed_while_writing(files: list[Path], tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], check=False)
    assert done.returncode == -signal.SIGKILL
    assert len(list(tmp_path.glob("*/.step-00000004*.tmp"))) == 1
    assert loaded(tmp_path) == (3, [])
    assert list(tmp_path.glob("*/.*")) == [], "what a killed process left is cleared away"


FULL = """
import resource, sys
from pathlib import Path
import torch
from onecycle.checkpoint import Checkpoints
from onecycle.exits import exit_with

def save():
    with Checkpoints(Path(sys.argv[1]), {"epochs": "3", "learning rate": "0.01"}) as checkpoints:
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
        checkpoints.save({"step": 4, "weights": torch.zeros(100_000)})

exit_with(save)
"""


def test_a_full_disk_is_one_sentence_and_costs_nothing(files: list[Path], tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", FULL, str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        f"error: no room left to write {files[0].with_name('step-00000004.ckpt')}; free some and run again"
    ]
    assert sorted(tmp_path.glob("*/step-*")) == files
    assert loaded(tmp_path) == (3, [])


def test_identity_is_what_decides_the_result(
    small_params: Callable[..., Params], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy(REPO / "dvc.yaml", tmp_path)
    monkeypatch.chdir(tmp_path)
    code = Path("training.py")
    code.write_text("step()", encoding="utf-8")

    def ours(changes: dict[str, Any] | None = None, **inputs: object) -> dict[str, str]:
        inputs = {"data": "digest", "learning rate": 0.01, "threads": 1} | inputs
        return identity(flatten(small_params(**(changes or {}))), [code], **inputs)

    first = ours()
    for irrelevant in (
        {"runtime.checkpoint_seconds": 5, "runtime.workers": 2, "runtime.allocator": False},
        {"evaluate.batch_size": 10},
        {"lr_range.method": "valley"},
    ):
        assert ours(irrelevant) == first
    for relevant in ({"seed": 1}, {"epochs": 4}, {"augment.pad": 3}, {"train.keep": "best"}, {"data.split_seed": 1}):
        differing = {key for key, value in ours(relevant).items() if first[key] != value}
        assert differing == set(relevant)
    for inputs in ({"data": "other"}, {"learning rate": 0.02}, {"threads": 2}):
        assert {key for key, value in ours(**inputs).items() if first[key] != value} == set(inputs)
    code.write_text("step() or step()", encoding="utf-8")
    assert {key for key, value in ours().items() if first[key] != value} == {"training.py"}
    monkeypatch.setattr(checkpoint, "version", lambda name: "0.1" if name == "albumentations" else version(name))
    code.write_text("step()", encoding="utf-8")
    assert {key for key, value in ours().items() if first[key] != value} == {"albumentations version"}
    assert first["torch version"] == torch.__version__.partition("+")[0] or first["torch version"] == torch.__version__
    json.dumps(first)


def test_the_code_is_what_dvc_takes_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPO)
    code = {path.as_posix() for path in code_of("train")}
    assert {"stages/train.py", "src/onecycle/training.py", "src/onecycle/augment.py"} <= code
    assert all((REPO / path).is_file() for path in code)


def test_in_the_background_the_newest_state_wins() -> None:
    """While the first is being written two more come: the second is left out, the end waits for the third."""
    begun, go_on, written = threading.Event(), threading.Event(), []

    def save(state: Mapping[str, Any]) -> None:
        begun.set()
        assert go_on.wait(60)
        written.append(state["step"])

    with InBackground(save) as background:
        background({"step": 1})
        assert begun.wait(60)
        background({"step": 2})
        background({"step": 3})
        assert written == []
        go_on.set()
    assert written == [1, 3]


def test_an_error_in_the_background_is_raised_at_the_end() -> None:
    called = threading.Event()

    def fail_once_called(_state: Mapping[str, Any]) -> None:
        assert called.wait(60)
        raise OSError("no room")

    with pytest.raises(OSError, match="no room"), InBackground(fail_once_called) as background:
        background({"step": 1})
        called.set()


def test_an_error_in_the_background_is_raised_by_a_later_call() -> None:
    """Not only at the end: training does not go on for hours with nothing saved."""

    def fail(_state: Mapping[str, Any]) -> None:
        raise OSError("no room")

    with pytest.raises(OSError, match="no room"), InBackground(fail) as background:
        while True:  # the test's own time limit ends it
            background({"step": 1})
            time.sleep(0.001)
