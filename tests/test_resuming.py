"""Training carried to its end in one process: asked to end at an awkward moment, it ends, and goes on from there."""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest
from test_training import assert_equal, make_run

from onecycle import checkpoint
from onecycle.checkpoint import Checkpoints
from onecycle.data import Dataset
from onecycle.errors import Stopped
from onecycle.loader import Batch
from onecycle.params import Params
from onecycle.progress import TrainingProgress
from onecycle.resuming import train_to_end
from onecycle.training import Epoch, Run


def carry(run: Run, params: Params, folder: Path, stop_after: int = 0, in_background: bool | None = None) -> list[int]:
    """Train to the end, or to a SIGTERM that comes when epoch `stop_after` is logged; the epochs that were logged."""
    logged = []

    def log(_values: Mapping[str, float], epoch: int) -> None:
        logged.append(epoch)
        if epoch == stop_after:
            os.kill(os.getpid(), signal.SIGTERM)

    with Checkpoints(folder, {"run": "one"}) as checkpoints:
        train_to_end(run, checkpoints, params, "validation", log, in_background)
    return logged


@pytest.mark.parametrize("in_background", [False, True])
@pytest.mark.parametrize("epoch", [1, 3])
def test_a_signal_between_epochs_or_after_the_last_is_obeyed(
    small_params: Callable[..., Params],
    digits: Dataset,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    epoch: int,
    in_background: bool,
) -> None:
    """Above all in the last epoch: a stage whose dvc is gone must not go on to write its results.

    In the background, as on a GPU, a state after every step overtakes the disk by far; the last one is still there.
    """
    params = small_params(**{"runtime.checkpoint_seconds": 0.0001 if in_background else 3600})
    handler = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Stopped) as stopped:
        carry(make_run(params, digits), params, tmp_path, epoch, in_background)
    assert stopped.value.signal_number == signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) is handler

    resumed = make_run(params, digits)
    assert carry(resumed, params, tmp_path, in_background=in_background) == list(range(epoch + 1, 4))
    assert f"train: resuming after step {9 * epoch} of 27" in capsys.readouterr().out
    uninterrupted = make_run(params, digits)
    assert carry(uninterrupted, params, tmp_path / "other") == [1, 2, 3]
    assert resumed.state.history == uninterrupted.state.history
    assert_equal(resumed.classifier.state_dict(), uninterrupted.classifier.state_dict())


@pytest.mark.parametrize("in_background", [False, True])
def test_a_full_disk_ends_training(
    small_params: Callable[..., Params],
    digits: Dataset,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    in_background: bool,
) -> None:
    params = small_params(**{"runtime.checkpoint_seconds": 0.0001 if in_background else 60})
    run = make_run(params, digits)

    def no_room(_path: Path, _content: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoint, "write_whole", no_room)
    with pytest.raises(OSError, match="No space left"):
        carry(run, params, tmp_path, in_background=in_background)
    assert in_background or len(run.state.history) == 1


def test_an_epoch_that_another_process_began_has_no_time(capsys: pytest.CaptureFixture[str]) -> None:
    """Its seconds would be those of the steps that were left, and go into a table as a whole epoch's."""
    begun = TrainingProgress(epochs=3, steps=30, done=7, batch_size=8, held_out="validation")
    logged = []
    for epoch, steps in ((1, 3), (2, 10)):
        for _ in range(steps):
            begun.step()
        logged.append(begun.epoch(Epoch(epoch, 0.1, None, 1.0, 0.5, 1.0, 0.5)))
    assert [set(values) for values in logged] == [set(), {"train/epoch_seconds", "train/images_per_second"}]
    assert capsys.readouterr().err.count("epoch ") == 2


@pytest.mark.parametrize("asked", [True, False])
def test_what_loads_may_be_gone_before_it_has_handed_over_its_batch(
    small_params: Callable[..., Params],
    digits: Dataset,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    asked: bool,
) -> None:
    """A signal to all processes ends those that load at once, and this one asks them for a file that they hold."""
    params = small_params(**{"runtime.checkpoint_seconds": 3600})
    run = make_run(params, digits)
    batches = run._loader.epoch

    def cut_off(epoch: int, first_step: int = 0) -> Iterator[Batch]:
        for step, batch in enumerate(batches(epoch, first_step)):
            if step == 4:
                if asked:
                    os.kill(os.getpid(), signal.SIGTERM)
                raise ConnectionResetError(errno.ECONNRESET, os.strerror(errno.ECONNRESET))
            yield batch

    monkeypatch.setattr(run._loader, "epoch", cut_off)
    with pytest.raises(Stopped if asked else ConnectionResetError):
        carry(run, params, tmp_path)
    assert [path.name for path in tmp_path.glob("*/step-*")] == ["step-00000004.ckpt"] * asked
    resumed, whole = make_run(params, digits), make_run(params, digits)
    carry(resumed, params, tmp_path)
    carry(whole, params, tmp_path / "whole")
    assert_equal(resumed.classifier.state_dict(), whole.classifier.state_dict())
