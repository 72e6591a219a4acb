"""A tracking server for tests: a real `mlflow server`, which can be killed and comes back at the same address."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

from mlflow import MlflowClient
from mlflow.entities import Run
from tracked_workspace import wait_for


class Server:
    """`mlflow server` with its rows in a database and the artifacts that go through it in a folder."""

    def __init__(self, database_uri: str, artifacts: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self._port = free.getsockname()[1]
        self.address = f"http://127.0.0.1:{self._port}"
        self._database_uri, self._artifacts = database_uri, artifacts
        self._process: subprocess.Popen[bytes] | None = None

    def login(self, password: str) -> str:
        """Its address with a name and a password in it, which it does not ask for."""
        return self.address.replace("//", f"//me:{password}@")

    def start(self) -> None:
        """Start it, and wait until it answers."""
        words = ["server", "--backend-store-uri", self._database_uri, "--artifacts-destination", str(self._artifacts)]
        settings = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "mlflow", *words, "--host", "127.0.0.1", "--port", str(self._port), "--workers=1"],
            env={**os.environ, **settings},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # a group of processes, to be killed together
        )
        wait_for(self._answers, 300)

    def kill(self) -> None:
        """Kill it, and the workers it has started; doing so again does nothing."""
        if self._process is not None:
            with suppress(ProcessLookupError):  # it ended by itself
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None

    def rows(self) -> list[Run]:
        """All rows there, oldest first."""
        client = MlflowClient(self.address)
        experiments = [experiment.experiment_id for experiment in client.search_experiments()]
        return list(client.search_runs(experiments, order_by=["attributes.start_time ASC"]))

    def _answers(self) -> bool:
        assert self._process is not None and self._process.poll() is None, "the server has ended"
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self._port)) == 0
