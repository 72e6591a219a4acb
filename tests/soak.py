"""A queue of experiments whose processes are killed at random: nothing of it may be lost, or left lying about.

    make soak                                       # 20 experiments, two workers, at most 30 minutes
    python tests/soak.py --experiments 4 --seed 7

Once in each experiment its stage, the `dvc` command that runs it or the sender of its row gets SIGKILL or SIGTERM,
some seconds after a stage has begun; which of all that is drawn. DVC's own queue workers are left alone. An experiment
that failed for it is queued again, as a person would, and must then go on from its checkpoint to its end. A machine too
slow for all of them begins none after two thirds of the time.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import json
import random
import re
import sqlite3
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path
from signal import SIGKILL, SIGTERM, Signals
from threading import Event, Thread
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

import psutil
from conftest import clone, command
from ruamel.yaml import YAML
from test_queue import statuses

WORKERS = 2
MOST_SECONDS = 8.0
"""Between the begin of a stage and the kill; longer than some stages take, so that the next, or none, is hit."""
ARTIFACTS = {
    "stats": "stats.json",
    "lr_range": "curve.csv",
    "train": "history.csv",
    "evaluate": "metrics.json",
    "report": "index.html",
}
"""A file of each stage that a row has."""
TEMPORARY = re.compile(r"^\..+\.tmp$|\.tmp$|\.part$|-journal$")


def main() -> None:
    """Run it in a temporary folder; print what happened; exit 1 if anything is not as it should be."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--experiments", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0, help="of the kills (default: %(default)s)")
    parser.add_argument("--minutes", type=float, default=30, help="be done in (default: %(default)g)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="onecycle-soak-") as folder:
        workspace = Path(folder).resolve() / "repo"
        try:
            problems = soak(workspace, options.experiments, random.Random(options.seed), 60 * options.minutes)
        finally:
            for process, _ in processes(workspace):
                with suppress(psutil.NoSuchProcess):
                    process.kill()
    for problem in problems:
        print(f"PROBLEM  {problem}")
    sys.exit(1 if problems else 0)


def soak(workspace: Path, experiments: int, chance: random.Random, seconds: float) -> list[str]:
    """Queue, kill, queue again until all have succeeded; what is wrong then, a line each."""
    started = time.monotonic()
    begin_by, deadline = started + seconds * 2 / 3, started + seconds
    clone(workspace)
    command(workspace, "dvc", "repro")
    command(workspace, "git", "add", "-A")
    command(workspace, "git", "commit", "-qm", "results")
    todo = [Kill.drawn(f"soak-{number}", chance) for number in range(experiments, 0, -1)]
    names, again, over = set[str](), Counter[str](), Event()
    killed = Counter[str]()
    Thread(target=kill_each_once, args=(workspace, todo.copy(), killed, over), daemon=True).start()
    states: dict[str, str] = {}
    refused = ""
    while todo or set(states.values()) != {"success"}:
        if time.monotonic() > deadline:
            over.set()
            return [f"not done in time: {states}; killed: {dict(killed)}; again: {dict(again)}; {refused}"]
        states = statuses(workspace, names)
        for name in [name for name, state in states.items() if state == "failed"]:
            removed = command(workspace, "dvc", "queue", "remove", name, check=False)
            if removed.returncode != 0:  # one of DVC's workers has git's lock on the list of failed ones: later
                refused = removed.stderr.strip()
                continue
            queue(workspace, name)
            again[name] += 1
        if time.monotonic() > begin_by:
            todo.clear()
        if todo and sum(state != "success" for state in states.values()) < 2 * WORKERS:
            name = todo.pop().experiment
            queue(workspace, name)
            names.add(name)
            states[name] = "queued"
        working = sum("queue-worker" in line for _, line in processes(workspace))
        if working < WORKERS and {"queued", "failed"} & set(states.values()):
            command(workspace, "dvc", "queue", "start", "--jobs", str(WORKERS))
        time.sleep(5)  # asking DVC keeps a processor busy for seconds
    over.set()
    while processes(workspace) and time.monotonic() < deadline:  # senders and workers end by themselves
        time.sleep(1)
    command(workspace, "onecycle", "sync")

    hashes = list(cached(workspace))
    rows = stored(workspace)
    print(f"{len(names)} of {experiments} experiments in {time.monotonic() - started:.0f} s, {WORKERS} workers")
    print(f"killed   {killed.total()}: {', '.join(f'{number} × {what}' for what, number in sorted(killed.items()))}")
    print(f"again    {again.total()} times, {len(again)} experiments")
    print(f"rows     {len(rows)}: {dict(Counter(row.status for row in rows))}")
    print(f"hashes   {len(hashes)} claimed by committed locks")
    return [
        *(f"process {process.pid} is still there: {line}" for process, line in processes(workspace)),
        *(f"the row of {row.name} is RUNNING" for row in rows if row.status == "RUNNING"),
        *missing_artifacts(rows),
        *without_whole_row(rows, names),
        *missing_models(workspace),
        *integrity(workspace),
        *(f"{path} is held" for path in workspace.rglob("*lock") if path.is_file() and held(path)),
        *leftovers(workspace),
        *(f"{path} of {revision[:7]}: {trouble}" for revision, path, trouble in hashes if trouble),
    ]


def queue(workspace: Path, name: str) -> None:
    """Queue an experiment: a range test, training, and what follows, with another seed and split."""
    seed = name.removeprefix("soak-")
    command(
        workspace, "dvc", "exp", "run", "--queue", "--name", name, "-S", f"seed={seed}", "-S", f"data.split_seed={seed}"
    )


def processes(workspace: Path) -> list[tuple[psutil.Process, str]]:
    """What runs in the workspace, or in an experiment's folder in it, and its command line."""
    return [
        (process, " ".join(process.info["cmdline"] or ()))
        for process in psutil.process_iter(["cmdline", "cwd", "status"])
        if process.info["status"] != psutil.STATUS_ZOMBIE and Path(process.info["cwd"] or "/").is_relative_to(workspace)
    ]


class Kill(NamedTuple):
    """What befalls an experiment."""

    experiment: str
    stage: str
    seconds: float
    """After that stage has begun."""
    victim: str
    signal: Signals

    @classmethod
    def drawn(cls, experiment: str, chance: random.Random) -> Kill:
        """By chance."""
        stage, victim = chance.choice(("lr_range", "train", "evaluate", "report")), chance.choice(tuple(VICTIMS))
        return cls(experiment, stage, chance.uniform(0, MOST_SECONDS), victim, chance.choice((SIGKILL, SIGTERM)))


def kill_each_once(workspace: Path, kills: list[Kill], killed: Counter[str], over: Event) -> None:
    """Wait for the stages at which experiments are to be hit, and do so; `killed` counts what there was to kill."""
    waiting = {kill.experiment: kill for kill in kills}
    due: list[tuple[float, Kill, psutil.Process]] = []
    while not over.wait(0.5):
        for process, line in processes(workspace):
            with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                kill = waiting.get(process.environ().get("DVC_EXP_NAME", "")) if "-m stages." in line else None
                if kill and line.endswith(f"stages.{kill.stage}"):
                    del waiting[kill.experiment]
                    due.append((time.monotonic() + kill.seconds, kill, process.parent()))
        for entry in [entry for entry in due if time.monotonic() >= entry[0]]:
            due.remove(entry)
            _, kill, dvc = entry
            for victim in VICTIMS[kill.victim](workspace, dvc)[:1]:
                with suppress(psutil.NoSuchProcess):
                    victim.send_signal(kill.signal)
                    killed[f"{kill.signal.name} to {kill.victim}"] += 1


def stage_of(_workspace: Path, dvc: psutil.Process) -> list[psutil.Process]:
    """The stage that a `dvc` command runs now, unless it is between two."""
    with suppress(psutil.NoSuchProcess):
        return [process for process in dvc.children() if "stages." in " ".join(process.cmdline())]
    return []


def sender_of(workspace: Path, dvc: psutil.Process) -> list[psutil.Process]:
    """The sender of its row."""
    return [
        process
        for process, line in processes(workspace)
        if "onecycle.tracking.sender" in line and f"-{dvc.pid}-" in line
    ]


VICTIMS: dict[str, Callable[[Path, psutil.Process], list[psutil.Process]]] = {
    "stage": stage_of,
    "dvc": lambda _workspace, dvc: [dvc],
    "sender": sender_of,
}
"""What may be killed, and how it is found by the `dvc` command that runs an experiment."""


class Row(NamedTuple):
    """What the store says of an execution."""

    name: str
    status: str
    stages: str
    """Like "stats cached, train ran"."""
    artifacts: Path


def stored(workspace: Path) -> list[Row]:
    """All rows."""
    query = (
        "SELECT name, status, coalesce(value, ''), artifact_uri FROM runs "
        "LEFT JOIN tags ON tags.run_uuid = runs.run_uuid AND key = 'dvc.stages'"
    )
    with closing(sqlite3.connect(workspace / "mlflow.db")) as store:
        found = store.execute(query).fetchall()
    return [Row(name, status, stages, Path(unquote(urlsplit(uri).path))) for name, status, stages, uri in found]


def missing_artifacts(rows: list[Row]) -> Iterator[str]:
    """Files that are not there of a stage that a row says it has, be it from an attempt that failed later."""
    for row in rows:
        for stage, file in ARTIFACTS.items():
            if re.search(rf"\b{stage} (ran|cached)\b", row.stages) and not (row.artifacts / stage / file).is_file():
                yield f"{stage}/{file} of {row.name} is not there, whose stages are: {row.stages}"


def without_whole_row(rows: list[Row], names: set[str]) -> Iterator[str]:
    """Experiments of which no row went to its end, and rows said to have done so that lack a stage."""
    finished = [row for row in rows if row.status == "FINISHED"]
    yield from (f"{name} has no row that finished" for name in sorted(names - {row.name for row in finished}))
    for row in finished:
        for stage in ARTIFACTS:
            if not re.search(rf"\b{stage} (ran|cached)\b", row.stages):
                yield f"a row of {row.name} is FINISHED without {stage}: {row.stages}"


def missing_models(workspace: Path) -> Iterator[str]:
    """Logged models whose files are not there, and versions of what is no logged model."""
    with closing(sqlite3.connect(workspace / "mlflow.db")) as store:
        models = store.execute("SELECT model_id, artifact_location FROM logged_models").fetchall()
        versions = store.execute("SELECT version, source FROM model_versions").fetchall()
    for model, uri in models:
        if not (Path(unquote(urlsplit(uri).path)) / "MLmodel").is_file():
            yield f"the logged model {model} has no files"
    known = {f"models:/{model}" for model, _ in models}
    yield from (f"version {version} names {source}" for version, source in versions if source not in known)


def integrity(workspace: Path) -> Iterator[str]:
    """What SQLite says of the store."""
    with closing(sqlite3.connect(workspace / "mlflow.db")) as store:
        for (verdict,) in store.execute("PRAGMA integrity_check"):
            if verdict != "ok":
                yield f"mlflow.db: {verdict}"


def held(path: Path) -> bool:
    """Whether a process holds the lock in this file, of either kind."""
    with path.open("r+b") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return True
    return False


def leftovers(workspace: Path) -> Iterator[str]:
    """Temporary files, experiments' folders, states of training and journals: all of these have had their end."""
    for path in workspace.rglob("*"):
        inside = path.relative_to(workspace)
        if TEMPORARY.search(path.name) and path.is_file():
            yield f"{inside} is left"
    state, experiments = workspace / ".state", workspace / ".dvc" / "tmp" / "exps"
    yield from (f"{path.name} of DVC's experiments is left" for path in experiments.glob("tmp*") if path.is_dir())
    yield from (f"the state {path.name} is left" for path in (state / "train").glob("*/"))
    yield from (f"the journal {path.name} is left" for path in (state / "journal").glob("*/"))
    cache = workspace / ".dvc" / "cache" / "files" / "md5"
    for path in cache.glob("*/*"):
        if not re.fullmatch(r"[0-9a-f]{30}(\.dir)?", path.name):
            yield f"{path.relative_to(workspace)} is left"


def cached(workspace: Path) -> Iterator[tuple[str, str, str | None]]:
    """(commit, path, what is wrong with it or None) of each output that a committed dvc.lock says is in the cache."""
    yaml = YAML(typ="safe", pure=True)
    listed = command(workspace, "git", "for-each-ref", "--format=%(objectname)", "refs/heads", "refs/exps").stdout
    for revision in sorted(set(listed.split())):
        shown = command(workspace, "git", "show", f"{revision}:dvc.lock", check=False)
        if shown.returncode:
            continue
        graph = yaml.load(command(workspace, "git", "show", f"{revision}:dvc.yaml").stdout)["stages"]
        for name, stage in yaml.load(shown.stdout)["stages"].items():
            entries = [out for key in ("outs", "metrics", "plots") for out in graph[name].get(key, ())]
            in_git = {
                path
                for out in entries
                if isinstance(out, dict)
                for path, how in out.items()
                if not how.get("cache", True)
            }
            for out in stage.get("outs", ()):
                if out["path"] not in in_git:
                    yield revision, out["path"], wrong(workspace, out["md5"])


def wrong(workspace: Path, md5: str) -> str | None:
    """What is wrong with an object of the cache, and with those that it lists if it is a folder."""
    path = workspace / ".dvc" / "cache" / "files" / "md5" / md5[:2] / md5[2:]
    if not path.is_file():
        return f"{md5} is not in the cache"
    content = path.read_bytes()
    if hashlib.md5(content).hexdigest() != md5.removesuffix(".dir"):
        return f"{md5} is damaged in the cache"
    if md5.endswith(".dir"):
        return next(filter(None, (wrong(workspace, entry["md5"]) for entry in json.loads(content))), None)
    return None


if __name__ == "__main__":
    main()
