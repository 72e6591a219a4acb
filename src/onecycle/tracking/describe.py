"""A row in words: Markdown for MLflow's description, and what the report's copy says of one execution."""

from __future__ import annotations

from collections.abc import Mapping

from onecycle.tracking import patch, source
from onecycle.tracking.row_state import RowState

_HEADLINES = (
    ("test/accuracy", "test accuracy", "{:.2%}"),
    ("test/loss", "test loss", "{:.4f}"),
    ("validation/accuracy", "validation accuracy, last epoch", "{:.2%}"),
    ("train/accuracy", "training accuracy, last epoch", "{:.2%}"),
    ("train/max_lr", "peak learning rate", "{:.3g}"),
    ("train/epochs", "epochs", "{:.0f}"),
    ("train/parameters", "parameters", "{:,.0f}"),
)

_MACHINE = {
    "device": "device",
    "processor": "hardware.cpu",
    "cores": "hardware.cores",
    "memory, GiB": "hardware.memory_gib",
    "host": "hardware.host",
    "system": "os",
}
_SOURCE = {
    "command": "mlflow.source.name",
    "experiment": "dvc.exp_name",
    "commit": "git.commit",
    "branch": "git.branch",
    "changed since": "git.changed",
}


def description(state: RowState, run_id: str) -> str:
    """The row's description so far; `run_id` is the row's in its store."""
    rows = [
        f"| {words} | {form.format(state.metrics[name])} |" for name, words, form in _HEADLINES if name in state.metrics
    ]
    table = ["| | |", "|---|---|", *rows, ""] if rows else []
    return "\n".join([*table, *again(state.tags, run_id)])


def execution(state: RowState) -> dict[str, dict[str, str]]:
    """What is true of one execution only, as heading → name → value: where the seconds went, how fast, on what."""
    seconds = {stage: f"{value:,.1f}" for stage, value in state.seconds.items() if state.stages[stage] == "ran"}
    kept = {stage: "kept by DVC" for stage, end in state.stages.items() if end == "cached"}
    speed = {
        words: f"{state.metrics[name]:,.{digits}f}"
        for words, name, digits in (
            ("images a second", "train/images_per_second", 0),
            ("seconds an epoch", "train/epoch_seconds", 1),
        )
        if name in state.metrics
    }
    told = {
        "seconds": {**kept, **seconds},
        "training, last epoch": speed,
        "machine": {words: state.tags[name] for words, name in _MACHINE.items() if name in state.tags},
        "made from": {words: state.tags[name] for words, name in _SOURCE.items() if name in state.tags},
    }
    return {heading: values for heading, values in told.items() if values}


def again(tags: Mapping[str, str], run_id: str) -> list[str]:
    """The commands that make the row again, as Markdown."""
    commit, overrides = tags.get("git.commit"), tags.get("params.changed")
    if commit is None:
        return ["Made outside a git commit, so no command makes it again."]
    run = f"dvc exp run {overrides}" if overrides else "dvc repro"
    lines = []
    if "params.edited" in tags:
        edited = tags["params.edited"]
        lines += [f"params.yaml was edited, and what reads it did not all run again: {edited}.", ""]
    if source.LOCK_TAG in tags:
        lines += ["To make it again beside the workspace, and have it compared with this row:", ""]
        lines += [f"    onecycle reproduce {run_id}", "", "By hand:", ""]
    else:
        lines += ["To make it again:", ""]
    lines += [f"    git checkout {commit}", f"    {run}"]
    others = source.changed_besides_params(tags)
    if others and "dvc.exp_name" in tags:
        lines += ["", f"or, since the commit lacks changes to {', '.join(others)}:", ""]
        lines += [f"    dvc exp apply {tags['dvc.exp_name']}", "    dvc repro"]
    elif others:
        kept = f"; this row has them in {source.PATCH}" if tags.get("git.patch", "").startswith(patch.KEPT) else ""
        lines += ["", f"with the changes since then to {', '.join(others)}, which are in no commit{kept}."]
    return lines
