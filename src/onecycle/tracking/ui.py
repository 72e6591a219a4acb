"""`onecycle ui`: MLflow's pages on this machine only, and the address of the table of runs itself.

The table opens with the columns that tell runs apart, which a fresh browser does not show: MLflow keeps a view that
somebody shares in a tag of the experiment, and opens it where an address names it.
"""

from __future__ import annotations

import json
import os
import socket
import sys
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from onecycle.errors import UserError
from onecycle.tracking.errors import StoreError, guarded
from onecycle.tracking.redaction import without_secrets
from onecycle.tracking.store import current_uri, experiments, open_client

if TYPE_CHECKING:
    from mlflow import MlflowClient

VIEW = "onecycle"
VIEW_TAG = f"mlflow.sharedViewState.{VIEW}"
"""Of the experiment."""
COLUMNS = (
    "metrics.`test/accuracy`",
    "metrics.`test/loss`",
    "metrics.`validation/accuracy`",
    "metrics.`train/loss`",
    "metrics.`train/max_lr`",
    "tags.`params.changed`",
)


def serve(port: int) -> None:
    """Print where the runs are and, unless the store is a server of its own, become the MLflow server.

    Raises:
        UserError: the store cannot be read, or the port is taken.
    """
    uri = current_uri()
    remote = urlsplit(uri).scheme.startswith("http")
    try:
        client = open_client(uri)
        found = experiments(client)
    except StoreError as error:
        raise UserError(f"{error}; `make ui` needs a store that answers") from None
    base = without_secrets(uri.rstrip("/")) if remote else f"http://127.0.0.1:{port}"
    if not remote:
        _check_free(port)
    if not found:
        print(f"{base}: no rows yet; `dvc repro` makes one")
    for name, experiment_id in found:
        view = f"&viewStateShareKey={VIEW}" if _share_view(client, experiment_id) else ""
        print(f"{name}: {base}/#/experiments/{experiment_id}/runs?workflowType=machine_learning{view}")
    if remote:
        return
    print("ready in some ten seconds; Ctrl-C ends it", flush=True)
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    settings = {
        "MLFLOW_BACKEND_STORE_URI": uri,  # not on the command line, which everybody can read, with a password in it
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    }
    os.execve(sys.executable, command, {**os.environ, **settings})


def _share_view(client: MlflowClient, experiment_id: str) -> bool:
    """Whether the experiment has the view; a store that is only to be read may have none."""
    try:
        with guarded():
            client.set_experiment_tag(experiment_id, VIEW_TAG, json.dumps({"selectedColumns": COLUMNS}))
    except StoreError:
        return False
    return True


def _check_free(port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            advice = f"try `onecycle ui --port {port + 1 if port < 65_535 else port - 1}`"
            raise UserError(f"port {port} cannot be used ({error.strerror}); {advice}") from None
