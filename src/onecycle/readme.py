"""The README's table of recipes: made from results/reference, so that no figure in it is typed by hand.

onecycle summary --readme
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from textwrap import wrap
from typing import Any

from onecycle import provenance
from onecycle.differences import recipes
from onecycle.errors import UserError
from onecycle.git_command import git_says
from onecycle.numbers import ABSENT, duration, mean_and_deviation
from onecycle.recipe import recipe_differing, with_added
from onecycle.results import Results, read
from onecycle.revisions import REFERENCE, WORKSPACE, Place, find
from onecycle.stats_tests import Mean, mean_of_runs
from onecycle.yaml_values import spelled

README = Path("README.md")
BEGIN = "<!-- from results/reference, by `onecycle summary --readme` -->"
END = "<!-- end of the table -->"
NONE = "No reference run is recorded yet; `onecycle record` will fill the table that belongs here."
COLUMNS = ("recipe", "n", "test accuracy", "training", "hardware")
WIDTH = 120
"""Characters of a line of a command."""


def rewrite() -> str:
    """Put the table between its marks in README.md; what is to be said of it.

    Raises:
        UserError: the README has no such marks, or a reference run cannot be read.
    """
    try:
        text = README.read_text(encoding="utf-8") if README.exists() else ""
    except UnicodeDecodeError:
        raise UserError(f"{README} is not UTF-8 text") from None
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise UserError(f"{README} lacks the lines `{BEGIN}` and `{END}`, between which the table goes")
    new = f"{before}{BEGIN}\n{table()}{END}{after}"
    if new == text:
        return f"{README}: its table is up to date"
    README.write_text(new, encoding="utf-8")
    return f"{README}: its table is new; commit it with {REFERENCE}"


def table() -> str:
    """Markdown: a line a recipe, mean ± standard deviation over its seeds, the best first; then their commands.

    Raises:
        UserError: a reference run cannot be read.
    """
    # of HEAD, since an experiment may have left its own in the workspace
    committed = find("HEAD").params() if git_says("rev-parse", "HEAD") else {}
    here = committed or find(WORKSPACE).params()
    known = {recipe: (runs, [read(place) for place in runs]) for recipe, runs in recipes().items()}
    if not known:
        return f"{NONE}\n"
    best_first = dict(sorted(known.items(), key=lambda one: -_accuracy(one[1][1]).value))
    lines = [_cells(recipe, *one) for recipe, one in best_first.items()]
    marks = ("---", "---:", "---:", "---:", "---")
    rows = "".join(f"| {' | '.join(cells)} |\n" for cells in (COLUMNS, marks, *lines))
    commands = {recipe: _command(results[0].params, here) for recipe, (_, results) in best_first.items()}
    given = "".join(f"{command}    # {recipe}\n" for recipe, command in commands.items() if command)
    return f"{rows}\n```sh\n{given}```\n" if given else rows


def _accuracy(results: Sequence[Results]) -> Mean:
    return mean_of_runs([run.metrics["accuracy"] for run in results])


def _cells(recipe: str, runs: Sequence[Place], results: Sequence[Results]) -> Iterator[str]:
    trained = [provenance.kept_environment(place) for place in runs]
    seconds = [one.training_seconds for one in trained if one.training_seconds is not None]
    yield f"[{recipe}]({(REFERENCE / recipe).as_posix()})"
    yield str(len(runs))
    yield mean_and_deviation(_accuracy(results))
    yield duration(fmean(seconds) if seconds else None)
    yield "; ".join(dict.fromkeys(one.hardware or ABSENT for one in trained))


def _command(params: Mapping[str, Any], here: Mapping[str, Any]) -> str | None:
    """What runs a recipe with the committed params.yaml; None where that has other knobs than the recipe had."""
    params = with_added(params)
    changed = recipe_differing(here, params)
    if any(key not in here or key not in params for key in changed):
        return None
    if not changed:
        return "dvc repro"
    overrides = " ".join(f"-S\0{key}={spelled(params[key])}" for key in changed)  # \0: no line ends there
    lines = wrap(f"dvc exp run {overrides}", WIDTH, break_long_words=False, break_on_hyphens=False)
    return " \\\n  ".join(lines).replace("\0", " ")
