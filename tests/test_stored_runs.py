"""Runs in MLflow's store as sides of a comparison, and the champion that a pass makes of one."""

from __future__ import annotations

import hashlib
import json
import shutil
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import yaml
from conftest import Run, command
from crafted_run import errors, repository, write_run
from mlflow import MlflowClient

from onecycle import paths, yaml_values
from onecycle.errors import UserError
from onecycle.params import flatten, load
from onecycle.provenance import Recorded
from onecycle.results import differing_params, read
from onecycle.revisions import AbsentError, find
from onecycle.tracking.champion import promote
from onecycle.tracking.collect import collect
from onecycle.tracking.registry import MD5_TAG, VERSION_TAG
from onecycle.tracking.store import all_runs, connect

MODEL = "onecycle-cifar10"
CHAMPION = f"models:/{MODEL}@champion"
WRONG = {"first": errors(375, 225), "equal": errors(375, 225, 225), "worse": errors(375, 285, 225)}
"""Versions 1, 2 and 3: 6 % wrong, as many others, and 60 more."""


@dataclass
class Stored:
    """A workspace with a row for each of WRONG, one that has evaluated nothing, and one that is not this project's."""

    folder: Path
    client: MlflowClient
    runs: dict[str, str]

    @property
    def champion(self) -> str | None:
        aliases = self.client.get_registered_model(MODEL).aliases
        return str(aliases["champion"]) if "champion" in aliases else None

    def tags(self, version: str) -> dict[str, str]:
        """What the gate says of a version."""
        tags = self.client.get_model_version(MODEL, version).tags
        return {key: value for key, value in tags.items() if key.startswith("gate.")}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stored]:
    folder = tmp_path_factory.mktemp("stored") / "repo"
    (folder / ".dvc").mkdir(parents=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        into = connect(MODEL)
        runs = {}
        into.client.create_registered_model(MODEL)
        for name, wrong in WRONG.items():
            write_run(folder / name, wrong)
            runs[name] = into.create(name, 0)
            values = flatten(load(folder / name / paths.PARAMS))
            into.log(runs[name], params={key: yaml_values.spelled(value) for key, value in values.items()})
            for file, target in collect("evaluate", folder / name).artifacts:  # what a stage logs
                into.artifact(runs[name], file, target)
            made = into.client.create_model_version(
                MODEL, f"runs:/{runs[name]}/model", runs[name], {MD5_TAG: md5(name.encode())}
            )
            into.log(runs[name], tags={VERSION_TAG: f"{MODEL}/{made.version}"})
        runs["training"] = into.create("training", 0)
        runs["foreign"] = into.client.create_run(into.client.create_experiment("another")).info.run_id
        yield Stored(folder, into.client, runs)


@pytest.fixture
def stored(store: Stored, monkeypatch: pytest.MonkeyPatch) -> Stored:
    """The store, without a champion or tags of the gate's, and this folder."""
    monkeypatch.chdir(store.folder)
    store.client.delete_registered_model_alias(MODEL, "champion")
    for version in "123":
        for key in store.tags(version):
            store.client.delete_model_version_tag(MODEL, version, key)
    return store


def md5(content: bytes) -> str:
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


def write_lock(folder: Path, model: str) -> None:
    """The part of a dvc.lock that says which model the results in `folder` are of."""
    outs = [{"path": str(path), "md5": md5((folder / path).read_bytes())} for path in EVALUATED]
    evaluate = {"deps": [{"path": str(paths.MODEL), "md5": md5(model.encode())}], "outs": outs}
    (folder / paths.DVC_LOCK).write_text(yaml.safe_dump({"stages": {"evaluate": evaluate}}), encoding="utf-8")


EVALUATED = (paths.EVALUATE_METRICS, paths.PREDICTIONS)


def test_a_row_says_what_the_workspace_it_was_made_in_says(stored: Stored) -> None:
    stored.client.set_registered_model_alias(MODEL, "champion", "3")
    expected = read(find("worse"))
    for name in (stored.runs["worse"], f"models:/{MODEL}/3", CHAMPION):
        run = read(find(name))
        assert (run.predictions == expected.predictions).all() and (run.confidence == expected.confidence).all()
        assert (run.metrics, run.digest, run.classes) == (expected.metrics, expected.digest, expected.classes)
        assert len(run.params) == len(expected.params) and differing_params(run, expected) == []
        assert run.described == name
        assert run.place.row and run.place.row.version == (MODEL, "3")


def test_rows_are_sides_of_a_comparison(stored: Stored, onecycle: Run) -> None:
    code, output, _ = onecycle(stored.folder, "compare", stored.runs["first"], f"models:/{MODEL}/3", "equal", "--json")
    assert code == 0
    assert [document["verdict"] for document in json.loads(output)] == ["worse", "no evidence"]
    assert json.loads(output)[0]["params"] == {}


@pytest.mark.parametrize("name", ["models:/onecycle-cifar10@nobody", CHAMPION, "models:/other@champion", "0" * 32])
def test_a_champion_or_run_that_is_not_there_is_an_absent_baseline(stored: Stored, onecycle: Run, name: str) -> None:
    arguments = ("gate", "--baseline", name, "--candidate", "equal")
    write_run(stored.folder, WRONG["first"])  # for its params.yaml
    code, output, said = onecycle(stored.folder, *arguments)
    assert (code, output) == (2, "")
    assert said.startswith(f"error: there is no {name} in MLflow's store; or pass --allow-no-baseline")
    code, output, _ = onecycle(stored.folder, *arguments, "--allow-no-baseline")
    assert code == 0 and "only the floor judges" in output


def test_what_cannot_be_a_side(stored: Stored) -> None:
    with pytest.raises(AbsentError, match=r"metrics\.json of [0-9a-f]{32} is missing; give a run that has evaluated"):
        read(find(stored.runs["training"]))
    with pytest.raises(UserError, match="is of the experiment another, which this project does not write"):
        find(stored.runs["foreign"])
    for name in ("models:/", "models:/x", "models:/x@", "models:/x/0", "models:/x@y/1"):
        with pytest.raises(UserError, match=r"names no model; give models:/<name>@<alias> or") as refusal:
            find(name)
        assert not isinstance(refusal.value, AbsentError)


def test_no_store_is_made_by_looking(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in (CHAMPION, "0" * 32):
        with pytest.raises(AbsentError, match="there is no"):
            find(name)
    assert not list(tmp_path.glob("mlflow.db*"))


def test_a_store_that_cannot_be_asked(stored: Stored, onecycle: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is not taken for one without a champion, so --allow-no-baseline does not help."""
    (stored.folder / "broken.db").write_bytes(b"no database " * 1000)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{stored.folder / 'broken.db'}")
    write_run(stored.folder, WRONG["first"])
    code, output, said = onecycle(stored.folder, "gate", "--baseline", CHAMPION, "--allow-no-baseline")
    assert (code, output) == (2, "")
    assert said.startswith("error: MLflow cannot be asked: broken.db: file is not a database") and said.count("\n") == 1


def test_a_reference_run_goes_by_its_short_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_run(tmp_path / "results/reference/default/seed-0", np.arange(30), images=500)
    monkeypatch.chdir(repository(tmp_path))
    assert read(find("default/seed-0")).metrics["wrong"] == 30
    with pytest.raises(AbsentError):
        find("default/seed-1")


# ------------------------------------------------------------------------------------------------ the champion


def gate(stored: Stored, onecycle: Run, candidate: str, *more: str) -> tuple[int, list[str], str]:
    """`onecycle gate --baseline <the champion> --promote`; exit code, lines, stderr."""
    write_run(stored.folder, WRONG["equal"])
    arguments = ("gate", "--baseline", CHAMPION, "--candidate", candidate, "--promote", "--markdown")
    code, output, said = onecycle(stored.folder, *arguments, *more)
    return code, output.splitlines(), said


def test_a_pass_makes_the_first_champion_and_the_next(stored: Stored, onecycle: Run) -> None:
    code, lines, _ = gate(stored, onecycle, f"models:/{MODEL}/1", "--allow-no-baseline")
    assert (code, lines[-1], stored.champion) == (0, f"{CHAMPION} is version 1 now.", "1")
    assert stored.tags("1")["gate.replaces"] == "none"

    code, lines, _ = gate(stored, onecycle, stored.runs["equal"])
    assert (code, lines[0]) == (0, "**Gate: pass**")
    assert (lines[-1], stored.champion) == (f"{CHAMPION} is version 2 now, before it was 1.", "2")
    new, old = stored.tags("2"), stored.tags("1")
    assert (new["gate.verdict"], new["gate.baseline"], new["gate.replaces"]) == ("pass", CHAMPION, "1")
    assert old["gate.replaced_by"] == "2" and old["gate.demoted"] == new["gate.promoted"]

    code, lines, _ = gate(stored, onecycle, stored.runs["equal"])
    assert (code, lines[-1]) == (0, f"{CHAMPION} is version 2 already.")

    code, lines, _ = gate(stored, onecycle, f"models:/{MODEL}/1")  # back again
    assert (code, stored.champion) == (0, "1")
    assert (
        stored.tags("1")["gate.demoted"] == stored.tags("1")["gate.replaced_by"] == ""
        and stored.tags("2")["gate.replaced_by"] == "1"
    )


def test_what_does_not_pass_is_not_promoted(stored: Stored, onecycle: Run) -> None:
    stored.client.set_registered_model_alias(MODEL, "champion", "1")
    code, lines, _ = gate(stored, onecycle, f"models:/{MODEL}/3")
    assert (code, lines[0], lines[-1]) == (1, "**Gate: regression**", "Not promoted: the verdict is regression.")
    assert stored.champion == "1" and stored.tags("1") == stored.tags("3") == {}


def test_the_workspace_is_promoted_by_the_model_that_its_dvc_lock_names(stored: Stored, onecycle: Run) -> None:
    write_run(stored.folder, WRONG["equal"])
    write_lock(stored.folder, model="equal")
    code, output, said = onecycle(stored.folder, "gate", "--baseline", stored.runs["first"], "--promote", "--json")
    assert (code, json.loads(output)["verdict"], stored.champion) == (0, "pass", "2")
    assert said == f"{CHAMPION} is version 2 now.\n"
    assert stored.tags("2")["gate.baseline"] == stored.runs["first"]


def test_a_candidate_without_a_version_is_refused_after_the_verdict(stored: Stored, onecycle: Run) -> None:
    stored.client.set_registered_model_alias(MODEL, "champion", "1")
    write_lock(stored.folder / "equal", model="of another hand")
    code, lines, said = gate(stored, onecycle, "equal")
    assert (code, lines[0]) == (2, "**Gate: pass**")
    assert said.startswith("error: the model of equal has no version in MLflow's registry, so it is not promoted")
    (stored.folder / "equal" / paths.DVC_LOCK).unlink()
    code, lines, said = gate(stored, onecycle, "equal")
    assert (code, lines[0]) == (2, "**Gate: pass**")
    assert said.startswith("error: dvc.lock of equal is missing, so which model its results are of is unknown")
    write_lock(stored.folder / "worse", model="equal")
    shutil.copy(stored.folder / "worse" / paths.DVC_LOCK, stored.folder / "equal")
    code, lines, said = gate(stored, onecycle, "equal")
    assert (code, lines[0]) == (2, "**Gate: pass**")
    assert said.startswith("error: results/evaluate/metrics.json of equal is not what dvc.lock beside it records")
    (stored.folder / "equal" / paths.DVC_LOCK).write_text("stages: [train]\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"dvc\.lock of equal: holds no stages as DVC writes them"):
        read(find("equal"))
    assert stored.champion == "1" and stored.tags("2") == {}


def test_one_model_is_promoted_and_not_several(stored: Stored, onecycle: Run) -> None:
    code, lines, said = gate(stored, onecycle, f"{stored.runs['first']},{stored.runs['equal']}")
    assert (code, lines, said) == (
        2,
        [],
        "error: --promote makes one model the champion; give one run as --candidate\n",
    )


def test_a_row_promotes_the_version_of_its_model_whatever_number_that_has_now(stored: Stored) -> None:
    """Versions are counted anew once a registered model was deleted."""
    candidate = read(find(stored.runs["worse"]))
    assert candidate.place.row and candidate.place.row.version == (MODEL, "3")
    own = Recorded(outputs={paths.MODEL.as_posix(): md5(b"equal")})
    assert promote(replace(candidate, made=own), "main", None).endswith("@champion is version 2 now.")
    other = Recorded(outputs={paths.MODEL.as_posix(): md5(b"of a version that is gone")})
    with pytest.raises(UserError, match="has no version in MLflow's registry"):
        promote(replace(candidate, made=other), "main", None)


def test_a_version_whose_run_is_gone_is_no_absent_baseline(stored: Stored) -> None:
    """Else the floor alone would judge."""
    run = stored.client.create_run(stored.client.get_run(stored.runs["first"]).info.experiment_id).info.run_id
    made = stored.client.create_model_version(MODEL, f"runs:/{run}/model", run)
    with sqlite3.connect(stored.folder / "mlflow.db") as database:  # as `mlflow gc` leaves it
        database.execute("DELETE FROM tags WHERE run_uuid = ?", (run,))
        database.execute("DELETE FROM runs WHERE run_uuid = ?", (run,))
    try:
        with pytest.raises(UserError, match=f"the run that made models:/{MODEL}/{made.version} is gone from MLflow"):
            find(f"models:/{MODEL}/{made.version}")
    finally:
        stored.client.delete_model_version(MODEL, made.version)


def test_a_champion_that_changed_since_it_judged_is_not_replaced(stored: Stored) -> None:
    stored.client.set_registered_model_alias(MODEL, "champion", "1")
    judged = read(find(CHAMPION))
    stored.client.set_registered_model_alias(MODEL, "champion", "3")
    for before, words in ((judged, "version 1"), (None, "none")):
        with pytest.raises(UserError, match=f"{CHAMPION} was {words} when it judged .*, and is version 3 now; run the"):
            promote(read(find(stored.runs["equal"])), CHAMPION, before)
    assert stored.champion == "3" and stored.tags("2") == {}


def test_a_moved_workspace_is_told_so(stored: Stored, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its rows list no files, which must not look like a run that has evaluated nothing."""
    moved = tmp_path / "moved"
    (moved / ".dvc").mkdir(parents=True)
    for file in stored.folder.glob("mlflow.db*"):
        shutil.copy(file, moved)
    monkeypatch.chdir(moved)
    with pytest.raises(UserError, match=r"was moved or copied; `onecycle sync --relocate` mends it"):
        find(stored.runs["first"])


def test_the_command_needs_no_mlflow_for_other_names(stored: Stored) -> None:
    code = "import sys; from onecycle.revisions import find; find('equal'); print('mlflow' in sys.modules)"
    assert command(stored.folder, "python", "-c", code).stdout == "False\n"


def test_rows_beyond_mlflows_first_page_are_seen(store: Stored, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a thousand; here of two."""
    monkeypatch.setattr(store.client, "search_runs", partial(store.client.search_runs, max_results=2))
    ids = [experiment.experiment_id for experiment in store.client.search_experiments()]
    assert len(store.client.search_runs(ids, "")) == 2
    assert {run.info.run_id for run in all_runs(store.client, ids, "")} >= set(store.runs.values())
