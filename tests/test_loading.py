"""A registered model: ours as it was evaluated; another's only when whoever loads it trusts it."""

from __future__ import annotations

import os
import shutil
import zipfile
from collections.abc import Iterator
from pathlib import Path

import mlflow
import numpy as np
import pytest
import torch
from conftest import command
from mlflow import MlflowClient
from ruamel.yaml import YAML

from onecycle import paths
from onecycle.errors import UserError
from onecycle.tracking.loading import ALLOWED, registered_model

CANDIDATE = "models:/onecycle-digits@candidate"


class Payload:
    """What a pickle can do: here, make a folder."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.marker),)


def pickled(folder: Path, marker: Path) -> None:
    """The model as torch.save writes a whole object."""
    (folder / "data/model.pt2").unlink()
    (folder / "data/pickle_module_info.txt").write_text("mlflow.pytorch.pickle_module", encoding="utf-8")
    torch.save(Payload(marker), folder / "data/model.pth")


def hidden(folder: Path, marker: Path) -> None:
    """The exported program, whose example inputs torch.export would unpickle."""
    whole, crafted = folder / "data/model.pt2", folder / "crafted"
    torch.save(Payload(marker), folder / "payload")
    with zipfile.ZipFile(whole) as old, zipfile.ZipFile(crafted, "w") as new:
        records = {name: old.read(name) for name in old.namelist()}
        [examples] = [name for name in records if "sample_inputs" in name and not name.endswith("/")]
        for name, content in records.items():
            new.writestr(name, (folder / "payload").read_bytes() if name == examples else content)
    crafted.replace(whole)


def modules(folder: Path, marker: Path) -> None:
    """Modules that would come before the installed ones."""
    yaml = YAML()
    described = yaml.load((folder / "MLmodel").read_text(encoding="utf-8"))
    described["flavors"]["pytorch"]["code"] = "code"
    with (folder / "MLmodel").open("w", encoding="utf-8") as file:
        yaml.dump(described, file)
    (folder / "code").mkdir()
    for name in ("sympy", "torch", "tempfile"):
        (folder / "code" / f"{name}.py").write_text(f"import os; os.mkdir({str(marker)!r})", encoding="utf-8")


def nonsense(folder: Path, marker: Path) -> None:
    """A model that was cut off."""
    (folder / "data/model.pt2").write_bytes(b"PK\x03\x04")


CRAFTED = {make.__name__: make for make in (pickled, hidden, modules, nonsense)}


@pytest.fixture(scope="module")
def store(pipeline: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the pipeline's store in which each of CRAFTED is registered, too; marker: <name>.ran."""
    root = tmp_path_factory.mktemp("registry")
    for file in pipeline.glob("mlflow.db*"):
        shutil.copy(file, root)
    client = MlflowClient(f"sqlite:///{root / 'mlflow.db'}")
    [ours] = (pipeline / "mlartifacts").glob("models/*/artifacts")
    for name, make in CRAFTED.items():
        shutil.copytree(ours, root / name)
        make(root / name, root / f"{name}.ran")
        client.create_registered_model(name)
        client.create_model_version(name, (root / name).as_uri())
    return root


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What loading sets for its process is undone."""
    for name in (ALLOWED, "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    yield
    mlflow.set_tracking_uri(None)  # an empty one would stay, and mean a folder of files
    mlflow.set_registry_uri("")


@pytest.fixture
def chosen(store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """`store`, current."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{store / 'mlflow.db'}")
    return store


@pytest.mark.parametrize("address", [CANDIDATE, "models:/onecycle-digits/1"])
def test_ours_gives_the_evaluated_probabilities(pipeline: Path, chosen: Path, address: str) -> None:
    model = registered_model(address)
    images = np.load(pipeline / paths.DATASET / "test_images.npy")
    expected = np.load(pipeline / paths.PROBABILITIES)
    found = model.classify(images)
    assert model.classes == tuple("0123456789")
    assert found.dtype == np.float32
    assert np.abs(found - expected).max() <= 1e-5
    assert np.abs(model.classify(images[:1]) - expected[:1]).max() <= 1e-5


@pytest.mark.parametrize("name", ["pickled", "hidden", "modules"])
def test_what_could_run_code_is_not_loaded(chosen: Path, name: str) -> None:
    with pytest.raises(UserError, match=rf"models:/{name}/1 .*any code.* set {ALLOWED}=true"):
        registered_model(f"models:/{name}/1")
    assert not (chosen / f"{name}.ran").exists()


def test_it_is_once_the_user_says_so(chosen: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And the payload is one: it runs."""
    monkeypatch.setenv(ALLOWED, "true")
    with pytest.raises(UserError, match="models:/pickled/1 is damaged"):
        registered_model("models:/pickled/1")
    assert (chosen / "pickled.ran").is_dir()


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("models:/nonsense/1", "models:/nonsense/1 "),
        ("models:/absent@candidate", "models:/absent@candidate cannot be loaded: .*`onecycle ui` shows"),
        ("models:/onecycle-digits", "must be models:/<name>@<alias> or models:/<name>/<version>"),
        ("models:/onecycle-digits/../1", "must be models:/<name>@<alias>"),
    ],
)
def test_what_is_no_model_is_refused_in_a_sentence(chosen: Path, address: str, words: str) -> None:
    with pytest.raises(UserError, match=words) as refusal:
        registered_model(address)
    assert "\n" not in str(refusal.value)


def test_without_a_store_none_is_made(tmp_path: Path) -> None:
    (tmp_path / "a.png").touch()
    done = command(tmp_path, "onecycle", "predict", "--model", CANDIDATE, "a.png", check=False)
    assert done.returncode == 2
    assert "mlflow.db is missing" in done.stderr
    assert list(tmp_path.iterdir()) == [tmp_path / "a.png"]
