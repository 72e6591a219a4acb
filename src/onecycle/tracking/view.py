"""How MLflow's table of runs opens: with the columns that tell runs apart, which a fresh browser does not show.

MLflow keeps a view that somebody shares in a tag of the experiment, and opens it where an address names it.
"""

from __future__ import annotations

import json

_NAME = "onecycle"
_COLUMNS = (
    "metrics.`test/accuracy`",
    "metrics.`test/loss`",
    "metrics.`validation/accuracy`",
    "metrics.`train/loss`",
    "metrics.`train/max_lr`",
    "tags.`params.changed`",
)

TAG = f"mlflow.sharedViewState.{_NAME}"
"""Of the experiment."""
STATE = json.dumps({"selectedColumns": _COLUMNS})
"""The tag's value."""


def address(server: str, experiment_id: str, shared: bool) -> str:
    """Where a server shows the runs; in this view when the experiment has the tag."""
    view = f"&viewStateShareKey={_NAME}" if shared else ""
    return f"{server}/#/experiments/{experiment_id}/runs?workflowType=machine_learning{view}"
