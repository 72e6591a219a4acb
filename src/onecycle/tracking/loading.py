"""A registered model, loaded without trusting who registered it: nothing that came with it is run.

MLflow can log a model as a pickle, which runs what it likes when it is loaded, or with modules of its own, which come
before the installed ones. Ours is a program of torch.export and needs neither (see `export`); another's may, once
whoever loads it says so.
"""

from __future__ import annotations

import os
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from numpy.typing import NDArray

from onecycle.errors import UserError
from onecycle.predict import BATCH, SIDE, Model
from onecycle.tracking.errors import StoreError, guarded
from onecycle.tracking.lookup import MODEL_ADDRESS
from onecycle.tracking.store import current_uri, missing_file, open_client

ALLOWED = "MLFLOW_ALLOW_PICKLE_DESERIALIZATION"
"""MLflow's own switch; unless somebody sets it, it is off here."""


def registered_model(address: str) -> Model:
    """The model at `models:/<name>@<alias>` or `models:/<name>/<version>` in the current store, on the CPU.

    Raises:
        UserError: the store does not answer, or has no such model; or it takes other pictures than this project's; or
            it must be trusted to be loaded.
    """
    if not MODEL_ADDRESS.fullmatch(address):
        raise UserError(f"{address} must be models:/<name>@<alias> or models:/<name>/<version>")
    os.environ.setdefault(ALLOWED, "false")
    with TemporaryDirectory(prefix="onecycle-") as folder:
        try:
            if missing := missing_file():
                raise StoreError(f"{missing.name} is missing")
            uri = current_uri()
            open_client(uri)  # which brings an older database up to date
            with guarded():
                copy = _download(address, uri, folder)
            return _load(address, copy)
        except StoreError as error:
            raise UserError(f"{address} cannot be loaded: {error}; `onecycle ui` shows the models there are") from None
        except UserError:
            raise
        except Exception as error:  # a damaged model raises what it likes
            raise UserError(f"{address} is damaged: {type(error).__name__}; register it anew") from error


def _download(address: str, uri: str, folder: str) -> Path:
    import mlflow

    mlflow.set_tracking_uri(uri)
    mlflow.set_registry_uri(uri)
    return Path(mlflow.artifacts.download_artifacts(artifact_uri=address, dst_path=folder))


def _load(address: str, folder: Path) -> Model:
    """The model in `folder`, a copy that nobody changes between the look at it and the loading."""
    import mlflow.pytorch
    import torch
    from mlflow.exceptions import MlflowException
    from mlflow.models import Model as Described

    described = Described.load(str(folder))
    flavour = described.flavors.get("pytorch", {})
    if flavour.get("code") and os.environ[ALLOWED].lower() not in ("true", "1"):
        raise _untrusted(address, "brings modules of its own")
    inputs = described.signature.inputs.inputs if described.signature and described.signature.inputs else []
    shape = tuple(getattr(inputs[0], "shape", ())) if len(inputs) == 1 else ()
    classes = tuple(map(str, (described.metadata or {}).get("classes", ())))
    if shape != (-1, SIDE, SIDE, 3) or not classes:
        raise UserError(f"{address} must take uint8 pictures (-1, {SIDE}, {SIDE}, 3) and name its classes, as ours do")
    try:
        module = mlflow.pytorch.load_model(str(folder))
    except MlflowException as error:
        if "pickle is disallowed" in str(error):
            raise _untrusted(address, "holds a pickle") from None
        raise

    def classify(images: NDArray[np.uint8]) -> NDArray[np.float32]:
        with torch.inference_mode():
            batches = [
                module(torch.from_numpy(images[start : start + BATCH])) for start in range(0, len(images), BATCH)
            ]
        probabilities: NDArray[np.float32] = torch.cat(batches).numpy()
        if probabilities.shape != (len(images), len(classes)) or not np.isfinite(probabilities).all():
            raise UserError(f"{address} gives no probabilities of its {len(classes)} classes")
        return probabilities

    return Model(address, classes, classify)


def _untrusted(address: str, what: str) -> UserError:
    return UserError(
        f"{address} {what}, which can run any code on this machine; "
        f"if you trust whoever registered it, set {ALLOWED}=true"
    )
