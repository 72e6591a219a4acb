"""How well each recipe does over its seeds: mean, spread, interval, best, time.

onecycle summary                             # tables
onecycle summary --picture seeds.png         # and each run as a dot
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from onecycle.errors import UserError
from onecycle.executions import NamedRun
from onecycle.numbers import ABSENT, duration, interval, mean_and_deviation, percent
from onecycle.recipe import SEED, recipe_differing
from onecycle.results import RANGES, shared_metrics
from onecycle.revisions import REFERENCE, WORKSPACE
from onecycle.stats_tests import Mean, mean_of_runs
from onecycle.tables import Page, Table
from onecycle.yaml_values import spelled

HERE = (WORKSPACE, "HEAD")
"""The group that holds one of these is the one that the others are seen from."""


@dataclass(frozen=True)
class Group:
    """Executions whose params differ in nothing but the seed."""

    label: str
    """A recipe's name below results/reference, or how its params differ from those the others are seen from."""
    runs: tuple[NamedRun, ...]
    differs: str = ""
    """By what params, where the label is a name."""

    def values(self, metric: str) -> list[float]:
        """A metric of every run."""
        return [run.results.metrics[metric] for run in self.runs]

    @property
    def metrics(self) -> dict[str, Mean]:
        """Every metric that all runs have; no interval leaves its range."""
        shared = shared_metrics([run.results for run in self.runs])
        return {name: _within(RANGES[name], mean_of_runs(self.values(name))) for name in shared}

    @property
    def best(self) -> NamedRun:
        """The run of the highest accuracy, the first of several."""
        return max(self.runs, key=lambda run: run.results.metrics["accuracy"])

    @property
    def seconds(self) -> float | None:
        """Mean time of a training, over the runs of which it is known."""
        known = [run.seconds for run in self.runs if run.seconds is not None]
        return fmean(known) if known else None


def _within(values: tuple[float, float], mean: Mean) -> Mean:
    """Student's interval knows nothing of the values that a metric can have: a few runs near 100 % give more."""
    if mean.low is None or mean.high is None:
        return mean
    return mean._replace(low=max(values[0], mean.low), high=min(values[1], mean.high))


def groups(executions: Sequence[NamedRun]) -> list[Group]:
    """Put executions of one recipe, tested on the same data, together; the most accurate group first.

    Raises:
        UserError: there are none.
    """
    if not executions:
        raise UserError("there is no execution with results; run `dvc repro`, or `onecycle replicate` for several")
    gathered: list[list[NamedRun]] = []
    for execution in executions:
        for members in gathered:
            if _alike(members[0], execution):
                members.append(execution)
                break
        else:
            gathered.append([execution])
    base = next(
        (members for name in HERE for members in gathered if any(name in run.names for run in members)),
        max(gathered, key=len),
    )
    named = [_recipe(members) for members in gathered]
    found = []
    for members, name in zip(gathered, named, strict=True):
        label = _label(members, base)
        if members is not base and name and named.count(name) == 1:
            found.append(Group(name, tuple(members), label))
        else:
            found.append(Group(label, tuple(members)))
    return sorted(found, key=lambda group: fmean(group.values("accuracy")), reverse=True)


def _alike(one: NamedRun, other: NamedRun) -> bool:
    """Whether two are runs of one recipe; of one without params nobody can tell."""
    first, second = one.results, other.results
    known = bool(first.params) and bool(second.params)
    return known and first.digest == second.digest and not recipe_differing(first.params, second.params)


def _recipe(members: Sequence[NamedRun]) -> str | None:
    """The one folder of results/reference/<recipe>/seed-<n> that has runs of this group."""
    folders = [Path(name).parent for run in members for name in run.names]
    recipes = {folder.name for folder in folders if folder.parent == REFERENCE}
    return recipes.pop() if len(recipes) == 1 else None


def _label(members: Sequence[NamedRun], base: Sequence[NamedRun]) -> str:
    params, reference = members[0].results.params, base[0].results.params
    if not params:
        return f"{members[0].names[0]}, of unknown params"
    if members is base:
        named = [name for run in base for name in run.names]
        return f"as {next((name for name in HERE if name in named), named[0])}"
    changed = recipe_differing(params, reference)
    return " ".join(f"{key}={spelled(params.get(key, ABSENT))}" for key in changed) or (
        f"data set {members[0].results.digest[:7]}"
    )


# -------------------------------------------------------------------------------------------- for people and programs


def page(found: Sequence[Group], left_out: dict[str, str]) -> Page:
    """The summary for people."""
    columns = ("recipe", "runs", "accuracy", "95 % interval", "best", "training")
    parts: list[str | Table] = [Table("Recipes", columns, [_cells(group) for group in found])]
    runs = [
        (
            " = ".join(name.removeprefix(f"{REFERENCE.as_posix()}/") for name in run.names),
            group.label,
            spelled(run.results.params.get(SEED, ABSENT)),
            percent(run.results.metrics["accuracy"]),
            f"{run.results.metrics['loss']:.4f}",
            duration(run.seconds),
        )
        for group in found
        for run in group.runs
    ]
    parts.append(Table("Executions", ("execution", "recipe", "seed", "accuracy", "loss", "training"), runs))
    parts += [f"{group.label}: {group.differs}" for group in found if group.differs]
    parts.append("On the test set: mean ± standard deviation between runs, Student's t-interval, and the best run.")
    parts += [
        f"{group.label}: its runs come from {versions} versions of the code, which may be a difference, too."
        for group in found
        if (versions := len({run.code for run in group.runs if run.code})) > 1
    ]
    parts += [f"Left out: {name}: {why}" for name, why in left_out.items()]
    return parts


def document(found: Sequence[Group], left_out: dict[str, str]) -> dict[str, Any]:
    """The summary for `--json`."""
    return {
        "recipes": [
            {
                "recipe": group.label,
                "differs": group.differs,
                "params": {key: value for key, value in group.runs[0].results.params.items() if key != SEED},
                "dataset_digest": group.runs[0].results.digest,
                "n": len(group.runs),
                "metrics": {name: mean._asdict() for name, mean in group.metrics.items()},
                "best": group.best.names[0],
                "training_seconds": group.seconds,
                "code_versions": len({run.code for run in group.runs if run.code}),
                "executions": [_run_document(run) for run in group.runs],
            }
            for group in found
        ],
        "left_out": left_out,
    }


def _run_document(run: NamedRun) -> dict[str, Any]:
    return {
        "names": list(run.names),
        "commit": run.results.commit,
        "seed": run.results.params.get(SEED),
        "metrics": dict(run.results.metrics),
        "training_seconds": run.seconds,
    }


def _cells(group: Group) -> tuple[str, ...]:
    return (
        group.label,
        str(len(group.runs)),
        mean_and_deviation(group.metrics["accuracy"]),
        interval(group.metrics["accuracy"]),
        percent(group.best.results.metrics["accuracy"]),
        duration(group.seconds),
    )
