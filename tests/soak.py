"""A queue of experiments whose processes are killed at random: nothing of it may be lost, or left lying about.

    make soak                                       # 20 experiments, two workers, at most 30 minutes
    python tests/soak.py --experiments 4 --seed 7

Stages, the `dvc` commands that run them and the senders of their rows get SIGKILL or SIGTERM at seeded random times, as
many of them as there are experiments. DVC's own queue workers are left alone. An experiment that failed for it is
queued again, as a person would, and must then go on from its checkpoint to its end. On a machine too slow for all of
them, those that have not begun in the first two thirds of the time are taken out of the queue.
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
from collections.abc import Iterator
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
PAUSE_SECONDS = (5.0, 35.0)
"""Between two kills, drawn evenly."""
VICTIMS = {"stages.": "stage", "exec-run": "dvc", "onecycle.tracking.sender": "sender"}
"""A word in the command line of those that may be killed, and what they are called here."""
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
    if options.experiments < 2:
        parser.error("--experiments must be 2 or more")
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
    names = {f"soak-{seed}": str(seed) for seed in range(1, experiments + 1)}
    queue(workspace, "soak", ",".join(names.values()))  # one by one, each would take DVC as long
    killed, again = Counter[str](), Counter[str]()
    over = Event()
    kills = (workspace, experiments, chance, killed, begin_by, over)
    Thread(target=kill_now_and_then, args=kills, daemon=True).start()
    states: dict[str, str] = {}
    while {states.get(name) for name in names} != {"success"}:
        if time.monotonic() > deadline:
            over.set()
            return [f"not done in time: {states}; killed: {dict(killed)}; again: {dict(again)}"]
        states = statuses(workspace, set(names))
        for name in [name for name, state in states.items() if state == "failed"]:
            command(workspace, "dvc", "queue", "remove", name)
            queue(workspace, name, names[name])
            again[name] += 1
        working = sum("queue-worker" in line for _, line in processes(workspace))
        if "queued" in states.values() and working < WORKERS:
            command(workspace, "dvc", "queue", "start", "--jobs", str(WORKERS))
        late = [name for name, state in states.items() if state == "queued" and name not in again]
        if late and time.monotonic() > begin_by:
            refused = command(workspace, "dvc", "queue", "remove", *late, check=False).returncode  # one has just begun
            names = {name: seed for name, seed in names.items() if refused or name not in late}
        time.sleep(10)  # asking DVC keeps a processor busy for seconds
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
        *without_whole_row(rows, set(names)),
        *missing_models(workspace),
        *integrity(workspace),
        *(f"{path} is held" for path in workspace.rglob("*lock") if path.is_file() and held(path)),
        *leftovers(workspace),
        *(f"{path} of {revision[:7]}: {trouble}" for revision, path, trouble in hashes if trouble),
    ]


def queue(workspace: Path, name: str, seeds: str) -> None:
    """Queue an experiment: training, and what follows, with another seed; with several, name-1 and so on."""
    command(workspace, "dvc", "exp", "run", "--queue", "--name", name, "-S", f"seed={seeds}")


def processes(workspace: Path) -> list[tuple[psutil.Process, str]]:
    """What runs in the workspace, or in an experiment's folder in it, and its command line."""
    return [
        (process, " ".join(process.info["cmdline"] or ()))
        for process in psutil.process_iter(["cmdline", "cwd", "status"])
        if process.info["status"] != psutil.STATUS_ZOMBIE and Path(process.info["cwd"] or "/").is_relative_to(workspace)
    ]


def kill_now_and_then(
    workspace: Path, times: int, chance: random.Random, killed: Counter[str], end: float, over: Event
) -> None:
    """Kill so many times, unless it is over before, or `end` is reached; `killed` counts them."""
    while killed.total() < times and not over.wait(chance.uniform(*PAUSE_SECONDS)) and time.monotonic() < end:
        killed.update(kill_one(workspace, chance))


def kill_one(workspace: Path, chance: random.Random) -> Iterator[str]:
    """Kill one of those that may be, if there is one; yields how and what."""
    candidates = [
        (what, process) for process, line in processes(workspace) for word, what in VICTIMS.items() if word in line
    ]
    if candidates:
        what = chance.choice(sorted({what for what, _ in candidates}))
        number: Signals = chance.choice((SIGKILL, SIGTERM))
        with suppress(psutil.NoSuchProcess):
            chance.choice([process for kind, process in candidates if kind == what]).send_signal(number)
            yield f"{number.name} to {what}"


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
