"""How busy the machine is while a stage runs: MLflow's own system metrics, taken by the sender, not by the stage."""

from __future__ import annotations

import time
from contextlib import suppress
from typing import Any

EVERY_SECONDS = 10.0


class SystemMetrics:
    """Samples of processor, memory, disk, network and, where there is one, NVIDIA GPU."""

    def __init__(self) -> None:
        from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
        from mlflow.system_metrics.metrics.disk_monitor import DiskMonitor
        from mlflow.system_metrics.metrics.gpu_monitor import GPUMonitor
        from mlflow.system_metrics.metrics.network_monitor import NetworkMonitor

        kinds: list[Any] = [CPUMonitor, DiskMonitor, NetworkMonitor, GPUMonitor]
        self._monitors = []
        for kind in kinds:
            with suppress(ImportError, RuntimeError):  # no nvidia-ml-py, or no GPU
                self._monitors.append(kind())
        self._due = 0.0

    def sample(self) -> dict[str, float]:
        """The values under MLflow's names ("system/cpu_utilization_percentage"), or nothing before they are due."""
        if time.monotonic() < self._due:
            return {}
        self._due = time.monotonic() + EVERY_SECONDS
        values: dict[str, float] = {}
        for monitor in list(self._monitors):
            try:
                monitor.collect_metrics()
                values |= {f"system/{name}": float(value) for name, value in monitor.aggregate_metrics().items()}
                monitor.clear_metrics()
            except Exception:  # noqa: BLE001 - a driver's, of whatever type; the row goes on without what it cannot tell
                self._monitors.remove(monitor)
        return values
