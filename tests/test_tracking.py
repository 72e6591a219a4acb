"""Tracking without a store: what a stage writes into its journal, and what that amounts to."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from conftest import PARAMS_FILE
from tracked_workspace import Workspace, finish, wait_for

from onecycle import paths
from onecycle.dvc_lock import fresh
from onecycle.errors import Stopped, UserError
from onecycle.params import Params, load
from onecycle.tracking import context, delivery, join
from onecycle.tracking.collect import collect
from onecycle.tracking.describe import description
from onecycle.tracking.execution import Execution, Process, dvc_arguments
from onecycle.tracking.journal import Entry, Journal, Sent, all_journals, root, sweep
from onecycle.tracking.redaction import without_secrets
from onecycle.tracking.relay import Relay
from onecycle.tracking.row_state import RowState
from onecycle.yaml_values import same, spelled

HISTORY = """epoch,learning_rate,momentum,train_loss,train_accuracy,validation_loss,validation_accuracy
1,0.1,0.9,2.0,0.25,2.1,0.2
2,0.05,,1.0,0.5,1.1,0.4
"""


MINIFIED = "".join(f'{{"u":"http://host{i}:80/a?n={i}"}},' for i in range(30_000)) + '"' + "me" * 1000 + '@example.com"'
"""A line of a million signs with addresses and nothing secret; to look from each to its end would take a minute."""


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Workspace]:
    """An empty workspace, in which the test also runs, that keeps to the journal."""
    workspace = Workspace(tmp_path / "work")
    monkeypatch.chdir(workspace.root)
    monkeypatch.setenv("ONECYCLE_TRACKING", "journal")
    yield workspace
    workspace.close()


@pytest.fixture
def params() -> Params:
    """The shipped params."""
    return load(PARAMS_FILE)


def lock_entry(workspace: Workspace, deps: list[str], outs: list[str], params: dict[str, object]) -> dict[str, object]:
    """What dvc.lock says of a stage that has just run."""
    import hashlib

    def listed(path: str) -> dict[str, object]:
        content = (workspace.root / path).read_bytes()
        return {"path": path, "hash": "md5", "md5": hashlib.md5(content).hexdigest(), "size": len(content)}

    return {"deps": [listed(d) for d in deps], "params": {"params.yaml": params}, "outs": [listed(o) for o in outs]}


# ------------------------------------------------------------------------------------------------ executions


@pytest.mark.parametrize(
    ("words", "arguments"),
    [
        (["/venv/bin/python", "/venv/bin/dvc", "exp", "run", "-S", "epochs=2"], ["exp", "run", "-S", "epochs=2"]),
        (["/venv/bin/python3.11", "-m", "dvc", "repro"], ["repro"]),
        (["/opt/dvc/dvc", "repro"], ["repro"]),
        (["sh", "-c", "dvc repro"], None),
        (["timeout", "9", "dvc", "repro"], None),
        (["make", "dvc"], None),
        ([], None),
    ],
)
def test_dvc_is_told_by_its_command_line(words: list[str], arguments: list[str] | None) -> None:
    assert dvc_arguments(words) == arguments


def test_a_process_is_alive_until_it_ended_and_its_successor_is_another() -> None:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    process = Process.of(child.pid)
    assert process.alive()
    assert not Process(process.host, process.pid, process.started + 1).alive()
    child.kill()
    wait_for(lambda: not process.alive())  # a zombie, since nobody has waited for it
    child.wait()
    assert not process.alive()
    child.stdin.close()  # type: ignore[union-attr]


def test_a_stage_ends_when_the_dvc_command_that_started_it_is_killed(workspace: Workspace) -> None:
    """Also where a shell stands between the two; `dvc` is a Python called so, since only its name matters here."""
    workspace.write("dvc", f"import subprocess; subprocess.run('{sys.executable} stage.py; true', shell=True)")
    workspace.write(
        "stage.py", "import time; from onecycle.stage import run; run('train', lambda p, r: time.sleep(60))"
    )
    dvc = workspace.python("dvc", "repro", ONECYCLE_TRACKING="journal")
    wait_for(lambda: workspace.journals)
    [opened, *_] = workspace.entries()
    stage = Process(**opened["process"])
    assert opened["execution"]["process"]["pid"] == dvc.pid
    assert opened["execution"]["command"] == "dvc repro"
    dvc.kill()
    dvc.communicate()
    wait_for(lambda: not stage.alive(), 10)
    assert workspace.entries()[-1]["status"] == "KILLED"


def test_experiment_variables_count_only_below_an_experiment(workspace: Workspace) -> None:
    """DVC passes stale ones on: `dvc repro` in a shell that was opened by an experiment is no experiment."""
    workspace.write("dvc", f"import subprocess; subprocess.run(['{sys.executable}', 'stage.py'])")
    workspace.write("stage.py", "from onecycle.stage import run; run('train', lambda p, r: None)")
    stale = {"DVC_EXP_NAME": "old-name", "DVC_EXP_BASELINE_REV": "0" * 40, "MLFLOW_RUN_ID": "1" * 32}
    for arguments in (["repro"], ["exp", "run", "-S", "epochs=9"], ["exp", "exec-run", "--infofile", "x"]):
        finish(workspace.python("dvc", *arguments, ONECYCLE_TRACKING="journal", **stale))
    executions = [entry["execution"] for entry in workspace.entries() if entry["event"] == "open"]
    by_command = {execution["command"]: execution["experiment"] for execution in executions}
    assert by_command == {
        "dvc repro": None,
        "dvc exp run -S epochs=9": "old-name",
        "dvc exp run --queue": "old-name",
    }


# ------------------------------------------------------------------------------------------------ the journal


def test_a_line_cut_short_is_left_out_and_harms_no_other(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.append("tags", stage="train", values={"a": "1"})
    with journal.file.open("a") as stream:
        stream.write('{"event": "tags", "val')
    [(_, end)] = journal.entries()  # the other is still being written, for all a reader knows
    journal.acknowledge(Sent(offset=end))
    assert journal.unsent() == 0  # and if it stays cut short, the journal can go
    journal.append("tags", stage="train", values={"a": "2"})
    entries = list(journal.entries())
    assert [entry["values"]["a"] for entry, _ in entries] == ["1", "2"]
    assert entries[-1][1] == journal.size()
    assert [entry["values"]["a"] for entry, _ in journal.entries(entries[0][1])] == ["2"]


def test_a_line_that_the_disk_has_no_room_for_is_told(tmp_path: Path) -> None:
    """Half of it fits, which `write` takes for a success."""
    code = f"""
import resource
from pathlib import Path
from onecycle.tracking.journal import Journal
resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
try: Journal(Path({str(tmp_path)!r})).append("close", durable=True, stage="x" * 200, status="FINISHED")
except OSError as error: print(error)
"""
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert said == f"[Errno 28] No space left on device: '{tmp_path / 'entries.jsonl'}'\n"
    assert (tmp_path / "entries.jsonl").stat().st_size == 100 and not list(Journal(tmp_path).entries())


def test_writers_at_the_same_time_lose_nothing(tmp_path: Path) -> None:
    code = f"""
from pathlib import Path
from onecycle.tracking.journal import Journal
for i in range(300): Journal(Path({str(tmp_path)!r})).append("metrics", stage="x" * 200, values={{}}, step=i)
"""
    writers = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(3)]
    assert [writer.wait() for writer in writers] == [0, 0, 0]
    steps = [entry["step"] for entry, _ in Journal(tmp_path).entries()]
    assert sorted(steps) == sorted(list(range(300)) * 3)


def test_journals_can_be_read_while_others_are_removed(workspace: Workspace) -> None:
    """As by the sender of one execution while another's looks for what there is to send."""
    code = """
from onecycle.tracking.journal import Journal, root
while True:
    journal = Journal(root() / "brief")
    journal.append("open", stage="train")
    journal.remove()
"""
    kept = Journal(root() / "kept")
    kept.append("tags", stage="train", values={})
    workspace.python("-c", code)
    wait_for((root() / "brief").exists)
    deadline = time.monotonic() + 2
    while time.monotonic() < deadline:
        found = all_journals()
        assert kept.folder in [journal.folder for journal in found]
        assert all(journal.unsent() >= 0 and len(list(journal.entries())) <= 1 for journal in found)


REMOVAL_CUT_SHORT = """
import os, signal, sys
from onecycle.tracking.journal import Journal, root

def at(event, arguments):
    if event in ("os.remove", "os.rmdir"):
        removed.append(event)
        if len(removed) == 2:
            os.kill(os.getpid(), signal.SIGKILL)

removed = []
sys.addaudithook(at)
Journal(root() / "one").remove()
"""


def test_a_journal_whose_removal_was_killed_is_none_any_more_and_goes_later(workspace: Workspace) -> None:
    """Half of one would be sent again, and lack files."""
    journal = Journal(root() / "one")
    journal.append("artifact", stage="", file=journal.keep(paths.PARAMS), folder="")
    journal.acknowledge(Sent())
    finish(workspace.python("-c", REMOVAL_CUT_SHORT), -signal.SIGKILL)
    assert all_journals() == []
    sweep()
    assert journal.folder.exists()  # for all that is known, it has just been begun
    os.utime(journal.folder, (0, 0))
    sweep()
    assert not journal.folder.exists()


@pytest.mark.parametrize("content", ["", "{", "[]", '{"sender": null}', '{"sender": {"host": "x"}}'])
def test_a_note_of_what_was_sent_that_a_power_cut_spoilt_counts_for_nothing(tmp_path: Path, content: str) -> None:
    (tmp_path / "sent.json").write_text(content, encoding="utf-8")
    assert Journal(tmp_path).sent() == Sent()


def test_a_kept_file_does_not_change_with_the_original(tmp_path: Path) -> None:
    journal, file = Journal(tmp_path / "journal"), tmp_path / "curve.png"
    file.write_bytes(b"first")
    first = journal.keep(file)
    file.write_bytes(b"second")
    second = journal.keep(file)
    file.unlink()
    assert [(journal.files / name).read_bytes() for name in (first, second)] == [b"first", b"second"]


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("at https://me:s3cret@host/x failed", "at https://host/x failed"),
        ("postgresql://u:p@ss/w@host/db", "postgresql://host/db"),
        ("value hunter22 seen", "value $MY_TOKEN seen"),
        ("epochs=2 in /home/me", "epochs=2 in /home/me"),
        ("train, by somebody: false", "train, by somebody: false"),
        (
            "git+ssh://git@example.com/x and https://token@example.com/x",
            "git+ssh://git@example.com/x and https://example.com/x",
        ),
        ("say sesame-open or sesame", "say $LONG_TOKEN or $A_TOKEN"),
        ("postgresql://db/x?user=me&password=a@b&sslmode=on", "postgresql://db/x?user=me&password=&sslmode=on"),
        ("postgresql://me:a?key=b@db/x", "postgresql://db/x"),
        ('f("https://db/x?sig=a%2Bb", n=1)', 'f("https://db/x?sig=", n=1)'),
        (MINIFIED, MINIFIED),
        ('f"http://{host}:{port}/{name}@{version}"', 'f"http://{host}:{port}/{name}@{version}"'),
        ('n//m@x, "http://h:5000","me@x.org"', 'n//m@x, "http://h:5000","me@x.org"'),
        ('f"https://x/?api_key={key}"', 'f"https://x/?api_key={key}"'),
        ("import subprocess", "import subprocess"),
        (f"+HF_TOKEN=hf_{'a1B2' * 8}\n+b", "+HF_TOKEN=$SECRET\n+b"),
        (f"ghp_{'a1B2' * 9} github_pat_{'a1_2' * 9} glpat-{'a1-2' * 5}", "$SECRET $SECRET $SECRET"),
        ("AKIAABCDEFGHIJKLMNOP and xoxb-1234567890-abc", "$SECRET and $SECRET"),
        ("https://hooks.slack.com/services/T0/B0/abc", "https://hooks.slack.com/services/$SECRET"),
        (f"'Authorization': 'Bearer {'a.B-' * 8}'", "'Authorization': 'Bearer $SECRET'"),
        ("+first line\n+second line", "+$DEPLOY_KEY\n+$DEPLOY_KEY"),
        ("of db-pass", "of $DB_PW"),
    ],
)
def test_secrets_are_taken_out(text: str, clean: str) -> None:
    environment = {"MY_TOKEN": "hunter22", "PASSWORD": "", "HOME": "/home/me", "KEY": "2"}
    environment |= {"A_TOKEN": "sesame", "LONG_TOKEN": "sesame-open"}
    environment |= {"PIP_KEYRING_PROVIDER": "import", "UV_KEYRING_PROVIDER": "subprocess", "DB_PW": "db-pass"}
    environment |= {"DEPLOY_KEY": "first line\nsecond line\n"}
    environment |= {"TOKENIZERS_PARALLELISM": "train", "GIT_AUTHOR_NAME": "somebody", "DISABLE_IMPLICIT_TOKEN": "false"}
    assert without_secrets(text, environment) == clean


def test_a_sender_that_died_is_told_at_once(tmp_path: Path) -> None:
    """As when there is no memory left for it; a stage would wait in vain."""
    journal = Journal(tmp_path)
    journal.append("tags", stage="train", values={})
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    process = Process.of(child.pid)
    assert delivery.wait(journal, process, 0.1) is None  # it may just be slow
    child.communicate()
    started = time.monotonic()
    assert "has ended" in str(delivery.wait(journal, process, 60))
    assert time.monotonic() - started < 30


# ------------------------------------------------------------------------------------------------ rows


def folded(workspace: Workspace) -> RowState:
    """The state of the only journal."""
    [file] = workspace.journals
    return RowState.of(Journal(file.parent))


def test_a_row_holds_params_tags_metrics_and_how_the_stage_ended(workspace: Workspace, params: Params) -> None:
    with join("train", params) as row:
        assert folded(workspace).status == "RUNNING"
        row.metrics({"train/loss": 1.5, "test/top@5": 0.5}, step=1)
        row.tags({"device": "cpu"})
    state = folded(workspace)
    assert state.status == "FINISHED"
    assert state.stages == {"train": "ran"}
    assert state.params["optimizer.weight_decay"] == "0.001"
    assert state.params["data.limit"] == "null"
    assert state.params["one_cycle.cycle_momentum"] == "true"
    assert state.metrics == {"train/loss": 1.5, "test/top_5": 0.5}  # MLflow takes no @ in a name
    assert state.tags["device"] == "cpu"
    assert state.tags["version.mlflow"]


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (RuntimeError("out of luck"), "FAILED"),
        (UserError("bad input"), "FAILED"),
        (Stopped(signal.SIGTERM), "KILLED"),
        (KeyboardInterrupt(), "KILLED"),
        (SystemExit(0), "FINISHED"),
        (SystemExit(3), "FAILED"),
    ],
)
def test_status_tells_how_the_stage_ended(
    workspace: Workspace, params: Params, error: BaseException, status: str
) -> None:
    with pytest.raises(type(error)), join("train", params):
        raise error
    assert folded(workspace).status == status
    if type(error) is RuntimeError:
        assert folded(workspace).tags["error"] == "train: RuntimeError: out of luck"


def test_a_failed_stage_is_not_forgotten_when_another_goes_well(workspace: Workspace, params: Params) -> None:
    """`dvc repro --keep-going` runs the other branch of the graph after a failure."""
    with pytest.raises(RuntimeError), join("stats", params):
        raise RuntimeError
    with join("train", params):
        assert folded(workspace).status == "RUNNING"
    assert folded(workspace).status == "FAILED"


def test_stages_of_one_execution_share_a_journal(workspace: Workspace, params: Params) -> None:
    for stage in ("stats", "train"):
        with join(stage, params):
            pass
    opened = [entry for entry in workspace.entries() if entry["event"] == "open"]
    assert len(workspace.journals) == 1
    assert len({entry["row"] for entry in opened}) == 1
    assert opened[0]["params"] and not opened[1]["params"]  # said once
    assert folded(workspace).stages == {"stats": "ran", "train": "ran"}


def test_params_edited_while_the_command_runs_are_told(workspace: Workspace, params: Params) -> None:
    with join("stats", params):
        pass
    with join("train", params.model_copy(update={"epochs": 7})):
        pass
    assert folded(workspace).params["epochs"] == "24"
    assert folded(workspace).tags["params.changed_at_train"] == "epochs=7"


def test_live_values_are_not_logged_twice(workspace: Workspace, params: Params) -> None:
    workspace.write("results/train/history.csv", HISTORY)
    workspace.write("results/train/metrics.json", {"epochs": 2, "train_loss": 1.0, "parameters": 10})
    with join("train", params) as row:
        row.metrics(
            {"train/loss": 2.0, "train/accuracy": 0.25}, step=1
        )  # epoch 2 was before, in a run that was stopped
    logged = [
        (name, step)
        for entry in workspace.entries()
        for step, values in (entry.get("points") or [(entry.get("step"), entry.get("values", {}))])
        if entry["event"] in ("metrics", "series")
        for name in values
    ]
    assert len(logged) == len(set(logged))
    assert {("train/loss", 1), ("train/loss", 2), ("validation/accuracy", 1), ("train/epochs", None)} <= set(logged)
    assert ("train/momentum", 1) in logged and ("train/momentum", 2) not in logged  # an empty cell is no value


def test_what_is_true_of_one_execution_only(workspace: Workspace, params: Params) -> None:
    with join("train", params) as row:
        row.metrics({"train/images_per_second": 1234.4, "train/epoch_seconds": 3.14}, step=1)
        row.tags({"device": "cpu, bfloat16", "git.commit": "c0ffee"})
    with join("report", params) as row:
        told = row.this_execution()
    assert list(told) == ["seconds", "training, last epoch", "machine", "made from"]
    assert "c0ffee" in told["made from"].values()
    assert list(told["seconds"]) == ["train"], "the report's own are not over"
    assert 0 <= float(told["seconds"]["train"]) < 600
    assert told["training, last epoch"] == {"images a second": "1,234", "seconds an epoch": "3.1"}
    assert told["machine"]["device"] == "cpu, bfloat16"
    assert {"processor", "cores", "host"} <= set(told["machine"])


def test_a_copy_logged_by_the_stage_stands_for_its_file(workspace: Workspace, params: Params, tmp_path: Path) -> None:
    """The report's copy in MLflow knows the execution; the file that DVC holds does not."""
    (tmp_path / "index.html").write_text("<p>this execution", encoding="utf-8")
    workspace.write("results/report/index.html", "<p>")
    workspace.write("results/report/figures/curves.png", b"png")
    with join("report", params) as row:
        row.artifact(tmp_path / "index.html")
    logged = [(entry["folder"], Path(entry["file"])) for entry in workspace.entries() if entry["event"] == "artifact"]
    assert sorted(file.name for _, file in logged) == ["curves.png", "index.html"]
    [kept] = workspace.journals[0].parent.glob("files/*/index.html")
    assert kept.read_text(encoding="utf-8") == "<p>this execution"


def test_a_journal_that_cannot_be_written_is_told_and_fails_nothing(
    workspace: Workspace, params: Params, capsys: pytest.CaptureFixture[str]
) -> None:
    workspace.write(".state", "a file where the folder should be")
    with join("train", params) as row:
        row.metrics({"train/loss": 1.0}, step=1)
        row.artifact(paths.PARAMS)
    assert capsys.readouterr().err.count("tracking: train's row is incomplete") == 1


def test_a_journal_that_the_code_does_not_know_any_more_fails_nothing(
    workspace: Workspace, params: Params, capsys: pytest.CaptureFixture[str]
) -> None:
    """As when new code is pulled while `dvc repro` runs."""
    with join("stats", params):
        pass
    [file] = workspace.journals
    with file.open("a", encoding="utf-8") as stream:
        stream.write('{"event": "open", "stage": "lr_range", "what": "another version wrote"}\n')
    with join("train", params) as row:
        assert row.this_execution() == {}
    said = capsys.readouterr().err
    assert said.count("tracking: train's row is incomplete") == 1 and "another version wrote it" in said


def test_an_unknown_mode_is_refused(workspace: Workspace, params: Params, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONECYCLE_TRACKING", "offf")
    with pytest.raises(UserError, match="on, journal, off"), join("train", params):
        pass


def test_off_leaves_nothing(workspace: Workspace, params: Params, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONECYCLE_TRACKING", "off")
    with join("train", params) as row:
        row.metrics({"train/loss": 1.0})
        row.artifact(paths.PARAMS)
        assert row.this_execution() == {}
    assert not (workspace.root / ".state").exists()


def test_a_stage_imports_neither_mlflow_nor_torch_for_tracking(workspace: Workspace) -> None:
    body = "print(sorted({'mlflow', 'torch', 'numpy', 'sqlalchemy'} & set(sys.modules)))"
    for mode in ("journal", "on"):
        assert "[]" in finish(workspace.stage("train", body, ONECYCLE_TRACKING=mode))


# ------------------------------------------------------------------------------------------------ collected files


def test_every_stage_of_the_pipeline_is_collected(workspace: Workspace) -> None:
    import numpy as np

    workspace.write("data/arrays/dataset.json", {"name": "digits", "classes": ["0", "1"], "digest": "ab" * 32})
    for split, images in (("train", 5), ("test", 3)):
        np.save(workspace.root / f"data/arrays/{split}_labels.npy", np.zeros(images, np.int64))
    workspace.write("results/stats/stats.json", {"images": 5, "mean": {"red": 0.5}, "std": {"red": 0.25}})
    workspace.write("results/stats/samples.png", b"png")
    workspace.write(
        "results/lr_range/curve.csv", "iteration,learning_rate,loss,accuracy,smoothed_loss\n0,0.1,2.3,0.1,2\n"
    )
    workspace.write("results/lr_range/suggestion.json", {"accepted": False, "max_lr": None, "reason": "flat"})
    workspace.write("results/train/history.csv", HISTORY.replace("validation", "test"))
    workspace.write("results/train/metrics.json", {"epochs": 2, "test_loss": 1.1})
    workspace.write("results/evaluate/metrics.json", {"accuracy": 0.9, "dataset_digest": "ab", "n": 3})
    workspace.write("results/report/index.html", "<html>")
    workspace.write("results/report/figures/curves.png", b"png")

    dataset = collect("download").dataset
    assert dataset and dataset["name"] == "digits" and dataset["digest"] == "ab" * 16
    assert json.loads(dataset["profile"]) == {"train_images": 5, "test_images": 3, "classes": 2}
    stats = collect("stats")
    assert stats.metrics == {"stats/mean_red": 0.5, "stats/std_red": 0.25}
    assert [path.name for path, _ in stats.artifacts] == ["stats.json", "samples.png"]
    lr_range = collect("lr_range")
    assert lr_range.metrics == {}
    assert lr_range.series == [(0, {"lr_range/learning_rate": 0.1, "lr_range/loss": 2.3, "lr_range/accuracy": 0.1})]
    train = collect("train")
    assert train.metrics == {"train/epochs": 2.0}
    assert train.series[0][1]["test_epoch/loss"] == 2.1  # a curve on the test set is not its final figure
    assert collect("evaluate").metrics == {"test/accuracy": 0.9, "test/n": 3.0}
    assert [folder for _, folder in collect("report").artifacts] == ["report", "report/figures"]


def test_an_empty_array_as_a_full_disk_leaves_it_is_told(workspace: Workspace) -> None:
    workspace.write("data/arrays/dataset.json", {"name": "digits", "digest": "d", "classes": ["0"]})
    workspace.write("data/arrays/train_labels.npy", b"")
    with pytest.raises(ValueError, match="what download wrote is not as it writes it"):
        collect("download")


def test_upstream_results_are_filled_in_when_they_are_what_dvc_recorded(workspace: Workspace, params: Params) -> None:
    workspace.write("results/stats/stats.json", {"mean": {"red": 0.5}})
    workspace.write("results/train/history.csv", HISTORY)
    workspace.write("code.py", "pass")
    locked = {
        "stats": lock_entry(workspace, ["code.py"], ["results/stats/stats.json"], {"data.limit": None}),
        "train": lock_entry(
            workspace,
            ["results/stats/stats.json"],
            ["results/train/history.csv"],
            {"seed": 0, "augment": {"pad": 4}},
        ),
    }
    workspace.write("dvc.lock", {"stages": locked})
    workspace.write("results/train/history.csv", HISTORY.replace("0.25", "0.26"))  # not what was recorded
    with join("evaluate", params):
        pass
    state = folded(workspace)
    assert state.stages == {"stats": "cached", "evaluate": "ran"}
    assert state.metrics == {"stats/mean_red": 0.5}
    with join("report", params):
        pass
    assert len([entry for entry in workspace.entries() if entry["event"] == "cached"]) == 1  # once an execution


def test_a_row_has_the_params_of_the_results_it_holds(workspace: Workspace, params: Params) -> None:
    """As after an edit of params.yaml and `dvc repro -s evaluate`: the model is still that of before."""
    workspace.write("results/train/history.csv", HISTORY)
    locked = {
        "train": lock_entry(workspace, [], ["results/train/history.csv"], {"epochs": 8, "seed": 1, "train.threads": 2}),
        "evaluate": {"params": {"params.yaml": {"train.threads": 0}}},
    }
    workspace.write("dvc.lock", {"stages": locked})
    with join("evaluate", params):
        pass
    assert "train" not in folded(workspace).stages, "threads are not what it was trained with, and evaluate has them"

    shutil.rmtree(workspace.root / ".state")
    locked["train"]["params"]["params.yaml"].pop("train.threads")
    workspace.write("dvc.lock", {"stages": locked})
    for stage in ("evaluate", "report"):
        with join(stage, params):
            pass
    state = folded(workspace)
    assert state.stages == {"train": "cached", "evaluate": "ran", "report": "ran"}
    assert (state.params["epochs"], state.params["seed"], state.params["train.threads"]) == ("8", "1", "0")
    assert state.tags["params.edited"] == "epochs=24, kept 8, seed=0, kept 1"
    assert not any(tag.startswith("params.changed_at") for tag in state.tags)
    edited = {"git.commit": "abc", "params.edited": "epochs=2, kept 8", "params.changed": "-S epochs=8"}
    text = description(RowState(tags=edited), "r")
    assert text.startswith("params.yaml was edited, and what reads it did not all run again: epochs=2, kept 8.\n")
    assert "    dvc exp run -S epochs=8" in text

    shutil.rmtree(workspace.root / ".state")
    locked["report"] = {"params": {"params.yaml": {"epochs": 8}}}
    workspace.write("dvc.lock", {"stages": locked})
    with join("report", params):
        pass
    assert folded(workspace).params["epochs"] == "8", "the report tells of params and computes nothing with them"


@pytest.mark.parametrize("change", ["nothing", "param", "code", "out", "upstream", "missing"])
def test_results_are_fresh_only_when_nothing_they_stand_on_changed(workspace: Workspace, change: str) -> None:
    workspace.write("results/stats/stats.json", {"mean": 1})
    workspace.write("results/train/history.csv", HISTORY)
    workspace.write("code.py", "pass")
    stats = lock_entry(workspace, [], ["results/stats/stats.json"], {})
    lock = {
        "stats": stats,
        "train": lock_entry(
            workspace,
            ["code.py", "results/stats/stats.json"],
            ["results/train/history.csv"],
            {"seed": 0, "model": {"width": 64.0}, "rate": "1e-05"},
        ),
    }
    values = {"seed": "0", "model.width": "64", "rate": "0.00001"}
    match change:
        case "param":
            values["model.width"] = "32"
        case "code":
            workspace.write("code.py", "pas")
        case "out":
            workspace.write("results/train/history.csv", HISTORY.replace("0.25", "0.26"))
        case "upstream":
            workspace.write("results/stats/stats.json", {"mean": 2})
            lock["stats"] = lock_entry(workspace, [], ["results/stats/stats.json"], {})
        case "missing":
            (workspace.root / "results/train/history.csv").unlink()
    assert fresh("train", lock, values) == (change == "nothing")  # type: ignore[arg-type]
    assert not fresh("evaluate", lock, values)  # type: ignore[arg-type]


@pytest.mark.parametrize(("one", "other"), [(10, "10.0"), ("1e-05", "0.00001"), (None, "null"), (True, "true")])
def test_values_are_compared_as_values(one: object, other: str) -> None:
    assert same(one, other)
    assert not same(one, other + "1")
    assert spelled(one).lower() == str(one if one is not None else "null").lower()


def test_no_number_is_spelled_so_that_a_reader_of_yaml_takes_it_for_text() -> None:
    spellings = {1e-08: "0.00000001", 0.0005: "0.0005", 0.0: "0.0", 5.0: "5.0", 2e16: "20000000000000000"}
    assert {value: spelled(value) for value in spellings} == spellings
    long = 16**5000 - 1
    assert spelled(long) == "0x" + 5000 * "f" and same(long, long) and not same(long, long - 1)


# ------------------------------------------------------------------------------------------------ where it comes from


def git(*arguments: str) -> str:
    """Run git here, as a person who is set up."""
    person = ("-c", "user.name=a", "-c", "user.email=a@b.c")
    return subprocess.run(["git", *person, *arguments], check=True, capture_output=True, text=True).stdout.strip()


def test_tags_tell_commit_branch_changes_and_params_but_no_remote(workspace: Workspace) -> None:
    Path(".gitignore").write_text(".state\n", encoding="utf-8")
    workspace.write("code.py", "pass")
    workspace.write("results/stats/stats.json", {})
    git("init", "-q", "-b", "work")
    git("remote", "add", "origin", "https://me:s3cret-of-git@example.org/x.git")
    git("add", "-A")
    git("commit", "-qm", "first")
    commit, here = git("rev-parse", "HEAD"), Execution(Process.current())
    values = {"epochs": "24", "seed": "0"}
    tags = context.tags(here, values)
    assert (tags["git.commit"], tags["git.branch"], tags["git.dirty"]) == (commit, "work", "false")
    assert tags["mlflow.runName"] == f"work {commit[:7]}"

    workspace.write("results/stats/stats.json", {"what the pipeline": "writes"})
    assert context.tags(here, values)["git.dirty"] == "false"
    workspace.write("params.yaml", PARAMS_FILE.read_text(encoding="utf-8").replace("epochs: 24", "epochs: 2"))
    workspace.write("code.py", "changed")
    git("checkout", "-q", "--detach")  # as in an experiment
    tags = context.tags(Execution(here.process, "dvc exp run", "odd-name", commit), {"epochs": "2", "seed": "0"})
    assert (tags["git.dirty"], tags["git.changed"]) == ("true", "code.py, params.yaml")
    assert tags["params.changed"] == "-S epochs=2"
    assert (tags["git.branch"], tags["mlflow.runName"], tags["dvc.baseline"]) == ("work", "odd-name", commit)
    assert "s3cret" not in json.dumps(tags)

    for setting in (("status.showUntrackedFiles", "no"), ("status.renames", "true")):
        git("config", *setting)
    workspace.write("neu und schön.py", "pass")
    git("mv", "-f", "code.py", "moved.py")
    tags = context.tags(here, values)
    assert set(tags["git.changed"].split(", ")) == {"code.py", "moved.py", "neu und schön.py", "params.yaml"}
    git("rm", "-q", "--cached", "params.yaml")
    git("commit", "-qm", "without params")
    assert "params.changed" not in context.tags(here, values), "no commit's to differ from"


def test_changes_are_named_as_seen_from_a_workspace_in_a_larger_repository(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(workspace.root.parent)
    git("init", "-q")
    git("add", f"{workspace.root.name}/params.yaml")
    git("commit", "-qm", "first")
    monkeypatch.chdir(workspace.root)
    workspace.write("src/onecycle/code.py", "pass")
    git("add", "src")
    assert "src/onecycle/code.py" in context.tags(Execution(Process.current()), {})["git.changed"].split(", ")


def test_a_git_that_takes_too_long_is_not_waited_for_and_nothing_is_made_up(
    workspace: Workspace, params: Params, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a network's disk: the commit is known at once, what was changed is not, so no tag says "not dirty"."""
    git("init", "-q")
    git("add", "-A")
    git("commit", "-qm", "first")
    slow = tmp_path / "git"
    slow.write_text(f'#!/bin/sh\n[ $1 = status ] && exec sleep 60\nexec {shutil.which("git")} "$@"\n', "utf-8")
    slow.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    started = time.monotonic()
    with join("train", params):
        assert 3 <= time.monotonic() - started < 10
    tags = folded(workspace).tags
    assert len(tags["git.commit"]) == 40
    assert not {"git.dirty", "git.changed"} & set(tags)


def test_tags_without_git(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(workspace.root.parent))
    tags = context.tags(Execution(Process.current()), {})
    assert not [name for name in tags if name.startswith("git.")]
    monkeypatch.setenv("PATH", os.devnull)
    assert context.tags(Execution(Process.current()), {})["mlflow.runName"] == "work"


def test_the_summary_of_entries_added_twice_is_the_same(workspace: Workspace, params: Params) -> None:
    with join("train", params) as row:
        row.metrics({"train/loss": 1.0}, step=1)
    entries = workspace.entries()
    assert RowState().add(entries) == RowState().add(entries).add(entries[2:])


def test_a_stage_that_closes_its_row_while_that_is_read_was_not_killed(workspace: Workspace) -> None:
    class Held(Journal):
        """Whose reader is held up at the end of the file until the stage has ended."""

        def entries(self, start: int = 0) -> Iterator[tuple[Entry, int]]:
            yield from super().entries(start)
            if stage.returncode is None:
                finish(stage)

    stage = workspace.stage("train", "sys.stdin.readline()", ONECYCLE_TRACKING="journal")
    wait_for(lambda: workspace.journals)
    relay = Relay(Held(workspace.journals[0].parent))
    relay.read()
    assert relay.state.status == "FINISHED"
    assert [entry["status"] for entry in workspace.entries() if entry["event"] == "close"] == ["FINISHED"]


def test_a_resumed_trainings_last_epoch_is_the_last(workspace: Workspace, params: Params) -> None:
    """Those before it was interrupted are told when it ends."""
    workspace.write("results/train/history.csv", "epoch,train_accuracy\n1,0.1\n2,0.2\n3,0.3\n4,0.4\n")
    with join("train", params) as row:
        for epoch in (3, 4):
            row.metrics({"train/accuracy": epoch / 10}, step=epoch)
    state = folded(workspace)
    assert state.metrics["train/accuracy"] == 0.4
    assert "| training accuracy, last epoch | 40.00% |" in description(state, "r")


def test_the_late_note_that_a_stage_was_killed_ends_no_other(workspace: Workspace, params: Params) -> None:
    with join("stats", params):
        began = workspace.entries()
    with join("train", params):
        opened = next(entry for entry in reversed(workspace.entries()) if entry["event"] == "open")
    state = RowState().add([*began, opened, {"event": "close", "stage": "stats", "status": "KILLED", "at": 0}])
    assert (state.status, state.stages) == ("RUNNING", {"stats": "killed", "train": "running"})


@pytest.mark.parametrize(
    ("tags", "commands"),
    [
        ({"git.commit": "abc"}, ["git checkout abc", "dvc repro"]),
        (
            {"git.commit": "abc", "params.changed": "-S epochs=2", "git.changed": "params.yaml"},
            ["git checkout abc", "dvc exp run -S epochs=2"],
        ),
        (
            {"git.commit": "abc", "git.changed": "a.py, params.yaml", "dvc.exp_name": "odd-name"},
            ["git checkout abc", "dvc repro", "dvc exp apply odd-name", "dvc repro"],
        ),
        ({"git.commit": "abc", "git.changed": "a.py"}, ["git checkout abc", "dvc repro"]),
        ({"git.commit": "abc", "dvc.lock": "d1"}, ["onecycle reproduce 3f2a", "git checkout abc", "dvc repro"]),
        ({"git.commit": "abc", "git.changed": "a.py", "git.patch": "kept"}, ["git checkout abc", "dvc repro"]),
        ({}, []),
    ],
)
def test_the_description_has_the_numbers_and_the_commands_that_make_the_row_again(
    tags: dict[str, str], commands: list[str]
) -> None:
    metrics = {"test/accuracy": 0.93456, "train/parameters": 6573130.0, "x": 1.0}
    text = description(RowState(tags=tags, metrics=metrics), "3f2a")
    lines = text.splitlines()
    assert [line for line in lines if line.startswith("| ")][1:] == [
        "| test accuracy | 93.46% |",
        "| parameters | 6,573,130 |",
    ]
    assert [line.strip() for line in lines if line.startswith("    ")] == commands
    if tags.get("git.changed") == "a.py":
        assert "a.py, which are in no commit" in text  # `git checkout` does not bring those back, and the row says so
        assert ("; this row has them in source/changes.patch." in text) == ("git.patch" in tags)
    if not tags:
        assert "no command makes it again" in text


def test_many_executions_have_many_journals(workspace: Workspace) -> None:
    with ThreadPoolExecutor() as pool:
        stages = [workspace.stage("train", ONECYCLE_TRACKING="journal") for _ in range(4)]
        list(pool.map(finish, stages))
    assert len(workspace.journals) == 4
