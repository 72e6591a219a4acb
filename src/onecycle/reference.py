"""`onecycle record`: keep a run below results/reference, in git, where every reader of results finds it.

    onecycle record exp-name --recipe page

What is kept is small: params, metrics, curves, predictions, the MD5 of every output, and what it was trained on where a
row tells. One folder a seed; the seeds of a recipe differ in nothing else.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from onecycle import paths, provenance, signals
from onecycle.differences import recipes
from onecycle.dvc_lock import CODE, md5_of
from onecycle.errors import UserError
from onecycle.executions import same_run
from onecycle.numbers import duration, percent
from onecycle.provenance import Environment, Recorded
from onecycle.recipe import SEED, recipe_differing
from onecycle.results import Results, read
from onecycle.revisions import REFERENCE, Place, find_one
from onecycle.tracking.errors import StoreError
from onecycle.tracking.times import Training, trainings
from onecycle.yaml_values import spelled

MOST_BYTES = 65_536
"""A file that is kept may have."""
NAME = re.compile(r"[a-z0-9][a-z0-9._-]*")


def record(name: str, recipe: str) -> str:
    """Keep the run `name` as one of `recipe`; returns what is to be said of it.

    Raises:
        UserError: it is no whole run, or none of this recipe, or another run is kept in its place.
    """
    if not NAME.fullmatch(recipe):
        raise UserError(f"--recipe must be lower-case letters, digits, `.`, `_` and `-`, got {recipe!r}")
    place = find_one(name)
    results = read(place)
    made = results.made
    provenance.check_current(place, results.params, made)
    target = REFERENCE / recipe / f"seed-{_seed(results)}"
    _check_fits(results, target)
    files = {path: _content(place, path, made) for path in provenance.KEPT}
    files[paths.PARAMS] = _params(place)
    outputs = {path.as_posix(): md5_of(files[path]) for path in provenance.KEPT}
    known, trouble = _trainings()
    trained = provenance.environment(place, made.model, known)
    if trained.training_seconds is None:  # no row tells all: what one told when it was recorded before
        kept = provenance.kept_environment(Place.at(target))
        trained = trained if kept == Environment() else kept
    files[provenance.ENVIRONMENT] = _json(asdict(trained))
    files[provenance.HASHES] = _json({"outputs": outputs | dict(made.outputs), "code": made.code})
    _write(target, files)
    return f"{target.as_posix()}: {_told(results, trained, trouble)}"


def _seed(results: Results) -> int:
    seed = spelled(results.params.get(SEED, ""))
    if not re.fullmatch(r"[0-9]+", seed):
        raise UserError(f"{paths.PARAMS.name} of {results.name} has no seed, and a recipe's runs are kept by theirs")
    return int(seed)


def _check_fits(results: Results, target: Path) -> None:
    known = recipes()
    for recipe, places in known.items():
        kept = read(places[0])
        same = kept.digest == results.digest and not recipe_differing(kept.params, results.params)
        if same and recipe != target.parent.name:
            raise UserError(f"{results.name} is of a recipe that is kept as {recipe}; give `--recipe {recipe}`")
    for place in known.get(target.parent.name, ()):
        kept = read(place)
        changed = recipe_differing(kept.params, results.params)
        if changed:
            there, here = (spelled(run.params.get(changed[0], "absent")) for run in (kept, results))
            raise UserError(
                f"{place.name} is of another recipe: {changed[0]} is {there} there and {here} in {results.name}; "
                "give another --recipe"
            )
        if kept.digest != results.digest:
            raise UserError(f"{place.name} was tested on another data set than {results.name}; give another --recipe")
        if place.folder == target and not same_run(kept, results):
            raise UserError(f"{place.name} is another run of that seed; keep it, or `git rm -r` it first")


def _content(place: Place, path: Path, made: Recorded) -> bytes:
    """A small file of the run, as its dvc.lock says it is."""
    content = place.need(path)
    if len(content) > MOST_BYTES:
        raise UserError(f"{place.of(path)} has {len(content):,} bytes; a reference takes up to {MOST_BYTES:,} a file")
    wanted = made.outputs.get(path.as_posix())
    if wanted not in (None, md5_of(content)):
        raise UserError(f"{place.of(path)} is not what dvc.lock records; run `dvc repro`")
    return content


def _params(place: Place) -> bytes:
    """params.yaml as it is; of a row, which has them by dotted key, written anew."""
    path = paths.PARAMS
    content = place.need(path)
    if place.row is None:
        return content
    tree: dict[str, Any] = {}
    for key, value in json.loads(content).items():
        section, _, last = key.rpartition(".")
        (tree.setdefault(section, {}) if section else tree)[last] = value
    lines = [f"{key}: {value}" for key, value in tree.items() if not isinstance(value, Mapping)]
    for section, values in tree.items():
        if isinstance(values, Mapping):
            lines += ["", f"{section}:", *(f"  {key}: {value}" for key, value in values.items())]
    return ("\n".join(lines) + "\n").encode()


def _trainings() -> tuple[Mapping[str, Training], str]:
    """What rows tell, and why they do not."""
    try:
        return trainings(), "no row in MLflow has its training"
    except StoreError as error:
        return {}, str(error)


def _write(target: Path, files: Mapping[Path, bytes]) -> None:
    """Put the files into place, all or none; read back first, as every command will."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=".recording-", dir=target.parent) as temporary:  # the same disk, as a rename needs
        folder, replaced = Path(temporary) / "new", Path(temporary) / "replaced"
        for path, content in files.items():
            file = folder.joinpath(*(path.parts[1:] if path.parts[0] == "results" else path.parts))
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content)
        read(Place(target.as_posix(), folder=folder))
        with signals.deferred() as asked:  # between the two, neither run would be in its place
            if target.exists():  # a folder can only be renamed onto an empty one
                target.rename(replaced)
            folder.rename(target)
    asked.obey()


def _json(tree: object) -> bytes:
    return (json.dumps(tree, indent=2) + "\n").encode()


def _told(results: Results, trained: Environment, trouble: str) -> str:
    accuracy = f"test accuracy {percent(results.metrics['accuracy'])}"
    if trained.hardware is None:
        return f"{accuracy}; time and hardware unknown: {trouble}"
    uncommitted = [file for file in (trained.changed or "").split(", ") if file.startswith(CODE)]
    lacks = f"; commit {str(trained.commit)[:12]} lacks what it changed of {', '.join(uncommitted)}"
    seconds = trained.training_seconds
    taken = "trained" if seconds is None else f"trained in {duration(seconds)}"
    told = f"{accuracy}, {taken} on {trained.hardware}"
    return told + (lacks if uncommitted else "")
