"""Rows in MLflow: `join` gives a stage the row of its execution. The only package that imports mlflow.

A stage only writes a journal, in the original workspace (`journal`); a process beside it sends that to the store
(`sender`), so nothing a store does can fail or stall a stage. Of the environment,

    MLFLOW_TRACKING_URI           a store other than mlflow.db in the workspace
    ONECYCLE_TRACKING=journal     keeps to the journal: no mlflow, no process; `onecycle sync` sends it later
    ONECYCLE_TRACKING=off         leaves no row
"""

from onecycle.tracking.row import Row, join

__all__ = ["Row", "join"]
