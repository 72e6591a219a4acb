"""Whether dvc.lock is the record of what dvc.yaml, params.yaml and the committed results say.

    onecycle check-lock [--strict]

It needs no data: what DVC keeps in its cache is not looked at, and may be missing. DVC itself reads dvc.yaml, compares
params and hashes files.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from onecycle import paths, yaml_values
from onecycle.dvc_lock import hashes, read_lock
from onecycle.errors import UserError
from onecycle.refusals import shown

if TYPE_CHECKING:
    from dvc.dependency import ParamsDependency
    from dvc.output import Output
    from dvc.stage import PipelineStage

REPRO = "run `dvc repro` and commit dvc.lock with the results"
ABSENT = object()
Made = Mapping[str, tuple[str, str]]
"""Path → the stage that wrote it, and the MD5 of what it wrote."""


class Mismatch(NamedTuple):
    """One thing that dvc.lock does not say as it is."""

    sentence: str
    wrong: bool
    """Else what a stage reads is newer than its results, which need not be worse for it."""


def mismatches() -> Iterator[Mismatch]:
    """Everything that dvc.lock does not say as it is, stage by stage.

    Raises:
        UserError: there is no dvc.lock, or DVC cannot read it or dvc.yaml.
    """
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    if not paths.DVC_LOCK.exists():
        raise UserError(f"{paths.DVC_LOCK} is missing; run `dvc repro` and commit it with the results")
    try:
        with Repo() as repo:
            stages = {stage.name: stage for stage in repo.index.stages if stage.path_in_repo == paths.DVC_YAML.name}
            lock = read_lock()
            made = {path: (name, md5) for name, entry in lock.items() for path, md5 in hashes(entry, "outs").items()}
            for name in (name for name in lock if name not in stages):
                yield Mismatch(f"{name} is a stage of dvc.lock and not of dvc.yaml; {REPRO}", True)
            for name, stage in stages.items():
                if name in lock:
                    yield from _stage(stage, lock[name], made)
                else:
                    yield Mismatch(f"{name} is a stage of dvc.yaml and not of dvc.lock; {REPRO}", True)
    except DvcException as error:
        raise UserError(f"DVC cannot read this workspace: {' '.join(str(error).split())}") from None


def _stage(stage: PipelineStage, entry: Mapping[str, Any], made: Made) -> Iterator[Mismatch]:
    from dvc.dependency import ParamsDependency

    name = str(stage.name)
    if stage.cmd != entry.get("cmd"):
        old, new = shown(entry.get("cmd")), shown(stage.cmd)
        yield Mismatch(f"{name}: cmd is {old} in dvc.lock and {new} in dvc.yaml; {REPRO}", True)
    recorded = hashes(entry, "deps")
    files = {dep.def_path: dep for dep in stage.deps if not isinstance(dep, ParamsDependency)}
    yield from _lists(name, "deps", files, recorded)
    written = hashes(entry, "outs")
    yield from _lists(name, "outs", [out.def_path for out in stage.outs], written)
    params = {dep.def_path: dep for dep in stage.deps if isinstance(dep, ParamsDependency)}
    ran_with = entry.get("params", {})
    for file in (file for file in ran_with if file not in params):
        yield from _lists(name, "params", (), ran_with[file])
    for file, dep in params.items():
        yield from _params(name, dep, ran_with.get(file, {}))
    for path, dep in files.items():
        if path in recorded and path != paths.PARAMS.name:  # of which each value is compared, by stage
            yield from _read(name, dep, recorded[path], made)
    for out in stage.outs:
        if not out.use_cache and out.def_path in written:
            yield from _kept_in_git(name, out)


def _lists(stage: str, section: str, defined: Collection[str], recorded: Collection[str]) -> Iterator[Mismatch]:
    """What dvc.yaml and dvc.lock list a stage to read or to write."""
    for path in sorted({*defined} ^ {*recorded}):
        there, missing = ("dvc.yaml", "dvc.lock") if path in defined else ("dvc.lock", "dvc.yaml")
        yield Mismatch(f"{stage}: {path} is among its {section} in {there} and not in {missing}; {REPRO}", True)


def _params(stage: str, dep: ParamsDependency, recorded: Mapping[str, Any]) -> Iterator[Mismatch]:
    """The values that a stage ran with, and those of now."""
    file = dep.def_path
    if dep.params:
        yield from _lists(stage, "params", dep.params, recorded)
    status = dep.workspace_status().get(file, {})
    if isinstance(status, str):
        if status == "deleted":
            yield Mismatch(f"{stage}: {file} is missing", True)
        return
    then, now = dep.hash_info.value or {}, dep.read_params()
    for key in (key for key in status if key in then):
        before, after = (yaml_values.flat({key: values[key]} if key in values else {}) for values in (then, now))
        differing = [leaf for leaf in {**before, **after} if before.get(leaf, ABSENT) != after.get(leaf, ABSENT)]
        for leaf in differing or [key]:
            old, new = (shown(values[leaf]) if leaf in values else "absent" for values in (before, after))
            yield Mismatch(f"{stage}: {leaf} is {old} in dvc.lock and {new} in {file}; {REPRO}", True)


def _read(stage: str, dep: Output, md5: str, made: Made) -> Iterator[Mismatch]:
    """What another stage wrote, by its record, since it may be data; anything else as it is now."""
    path = dep.def_path
    if path in made:
        maker, written = made[path]
        if md5 != written:
            yield Mismatch(f"{stage}: dvc.lock has another {path} here than where {maker} wrote it; {REPRO}", True)
    elif not any(path.startswith(f"{folder}/") for folder in made) and dep.workspace_status():
        yield Mismatch(f"{stage}: {path} is not what it ran with, so its results may be out of date; {REPRO}", False)


def _kept_in_git(stage: str, out: Output) -> Iterator[Mismatch]:
    """A small result, whose content belongs to the commit as dvc.lock does."""
    status = out.workspace_status().get(str(out))
    if status:
        what = "is missing" if status == "deleted" else "is not what dvc.lock records"
        yield Mismatch(f"{stage}: {out.def_path} {what}; {REPRO}", True)
