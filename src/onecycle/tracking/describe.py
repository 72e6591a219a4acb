"""A row in words: its headline numbers and the commands that make it again, as Markdown for MLflow's description."""

from __future__ import annotations

from collections.abc import Mapping

from onecycle import paths
from onecycle.tracking.summary import Summary

_HEADLINES = (
    ("test/accuracy", "test accuracy", "{:.2%}"),
    ("test/loss", "test loss", "{:.4f}"),
    ("validation/accuracy", "validation accuracy, last epoch", "{:.2%}"),
    ("train/accuracy", "training accuracy, last epoch", "{:.2%}"),
    ("train/max_lr", "peak learning rate", "{:.3g}"),
    ("train/epochs", "epochs", "{:.0f}"),
    ("train/parameters", "parameters", "{:,.0f}"),
)


def description(summary: Summary) -> str:
    """The row's description so far."""
    rows = [
        f"| {words} | {form.format(summary.metrics[name])} |"
        for name, words, form in _HEADLINES
        if name in summary.metrics
    ]
    table = ["| | |", "|---|---|", *rows, ""] if rows else []
    return "\n".join([*table, *_again(summary.tags)])


def _again(tags: Mapping[str, str]) -> list[str]:
    """The commands that make the row again."""
    commit, overrides = tags.get("git.commit"), tags.get("params.changed")
    if commit is None:
        return ["Made outside a git commit, so no command makes it again."]
    run = f"dvc exp run {overrides}" if overrides else "dvc repro"
    lines = ["To make it again:", "", f"    git checkout {commit}", f"    {run}"]
    others = [name for name in tags.get("git.changed", "").split(", ") if name and name != paths.PARAMS.name]
    if others and "dvc.exp_name" in tags:
        lines += ["", f"or, since the commit lacks changes to {', '.join(others)}:", ""]
        lines += [f"    dvc exp apply {tags['dvc.exp_name']}", "    dvc repro"]
    elif others:
        lines += ["", f"with the changes since then to {', '.join(others)}, which are in no commit."]
    return lines
