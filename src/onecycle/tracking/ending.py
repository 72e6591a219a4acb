"""How a `dvc` command ended. No process learns how one that it did not start did, so it is read off what DVC leaves."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import suppress
from pathlib import Path

from onecycle import paths
from onecycle.dvc_lock import Lock, hashes, md5, parse_graph, parse_lock, undone
from onecycle.tracking.collect import STAGES
from onecycle.tracking.execution import Execution
from onecycle.tracking.git import git

COMMITS = 50
"""Of the newest that changed dvc.lock, how many are looked through."""
_ASKING = {"-i", "--interactive", "--dry"}


def left_undone(lock: str, workspace: Path, ran: Collection[str], params: Mapping[str, str]) -> list[str]:
    """The stages that DVC would run next in what a command has left.

    Args:
        lock: the dvc.lock that it left.
        ran: the stages that it did run.
        params: dotted key → value, as the row has them.
    """
    graph = _graph(workspace) or _graph(paths.original_root())
    others = {stage: graph[stage] for stage in STAGES if stage in graph and stage not in ran}
    return undone(others, parse_lock(lock.encode()), params)


def unrecorded(
    lock: str, ran: Collection[str], params: Mapping[str, str], copies: Iterable[tuple[str, Path]]
) -> list[str]:
    """The stages of which dvc.lock does not hold what the command left: a later command wrote it, or DVC ended before
    it did, or what comes before them was not run on purpose.

    Args:
        lock: what the workspace has now.
        ran: the stages that the command ran.
        params: as for `left_undone`.
        copies: (stage, copy of one of its results), taken when the stage ended.
    """
    stages = parse_lock(lock.encode())
    found = dict.fromkeys(undone({stage: {} for stage in ran}, stages, params))
    outs = {(stage, Path(path).name): md5 for stage in stages for path, md5 in hashes(stages[stage], "outs").items()}
    for stage, copy in copies:
        if outs.get((stage, copy.name), "") not in ("", md5(copy)):
            found[stage] = None
    return list(found)


def cut_short(execution: Execution, workspace: Path) -> bool | None:
    """Whether a command that has left stages undone was to run them; None when DVC has still to show it.

    DVC makes a commit of an experiment that came to its end, and only then removes its temporary folder. Elsewhere it
    was to run them if no stage was named on its command line.
    """
    if execution.experiment and execution.baseline:
        if experiment_commit(execution.experiment, execution.baseline):
            return False
        return None if temporary(workspace) and workspace.exists() else True
    command, *words = (execution.command or "").split()[1:] or [""]
    return command == "repro" and all(word.startswith("-") for word in words) and _ASKING.isdisjoint(words)


def final_lock(workspace: Path, experiment: str | None, baseline: str | None) -> str:
    """The dvc.lock that a command left which has ended; empty when there is none (yet).

    A temporary experiment's folder goes after its end; DVC has then made a commit of it.
    """
    with suppress(FileNotFoundError, NotADirectoryError):
        return (workspace / paths.DVC_LOCK).read_text(encoding="utf-8")
    commit = experiment_commit(experiment, baseline) if experiment and baseline else ""
    return git("-C", str(paths.original_root()), "show", f"{commit}:./{paths.DVC_LOCK}", strip=False) if commit else ""


def committed_lock(workspace: Path, is_it: Callable[[str], bool]) -> str:
    """The dvc.lock that a command left and that was committed or stashed before it was read; empty when none is."""
    here = ("-C", str(workspace))
    newest = ("log", "--all", "--reflog", f"--max-count={COMMITS}", "--format=%H", "--", paths.DVC_LOCK.name)
    for commit in git(*here, *newest).split():
        lock = git(*here, "show", f"{commit}:./{paths.DVC_LOCK}", strip=False)
        with suppress(ValueError):
            if lock and is_it(lock):
                return lock
    return ""


def experiment_commit(experiment: str, baseline: str) -> str:
    """The commit that DVC made of an experiment which started from the commit `baseline`; empty when there is none."""
    reference = f"refs/exps/{baseline[:2]}/{baseline[2:]}/{experiment}"
    return git("-C", str(paths.original_root()), "rev-parse", "--verify", "--quiet", reference)


def temporary(workspace: Path) -> bool:
    """Whether it is the folder of a temporary or queued experiment, which DVC removes after the experiment's end."""
    return "/.dvc/tmp/exps/" in workspace.as_posix()


def _graph(folder: Path) -> Lock:
    """The stages in a folder's dvc.yaml; none where that is not there (any more), or half edited."""
    with suppress(FileNotFoundError, ValueError):
        return parse_graph((folder / paths.DVC_YAML).read_bytes())
    return {}
