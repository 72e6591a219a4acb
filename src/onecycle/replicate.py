"""The same recipe with other seeds, as experiments from DVC's queue.

    onecycle replicate -n 5               # main-seed-1 … main-seed-5, one after another
    onecycle replicate -n 5 --jobs 2      # two at a time
    onecycle replicate -n 5               # five more: main-seed-6 …

The recipe is what the workspace holds now, with its uncommitted changes; what changes there later changes no experiment
that is queued. DVC's workers run in the background, so nothing here has to live until they are done.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import count, islice
from typing import Any

import psutil
from rich.console import Console

from onecycle import experiments, yaml_values
from onecycle.differences import recipes
from onecycle.dvc_command import complaint, dvc
from onecycle.dvc_lock import CODE
from onecycle.errors import Stopped, UserError
from onecycle.experiments import Task
from onecycle.git_command import git_says
from onecycle.numbers import duration
from onecycle.recipe import NO_RECIPE, SEED, recipe_differing
from onecycle.revisions import Place
from onecycle.tracking import context

Show = Callable[[str], object]
"""Shows a line in the place of the one before."""

POLL_SECONDS = 4.0
ASK_SECONDS = 60.0
"""How often git is asked which experiments are done, and at least how often DVC how the others do, which computes."""
START_SECONDS = 30.0
"""How long a worker may take to be there, before others are started."""
LOST_SECONDS = 120.0
"""How long an experiment that DVC calls running may be without a process, until DVC's workers are looked for."""
PATIENCE = 5
"""Times in a row that DVC may fail to answer."""
LONGEST_STEM = 60
DONE = ("success", "failed", "lost")


def replicate(runs: int, jobs: int, params: Mapping[str, Any]) -> int:
    """Queue `runs` experiments that differ from the workspace in `seed` alone, run them, and say how they ended.

    Args:
        jobs: how many run at a time.
        params: of the workspace, with dotted keys.

    Returns:
        The exit code: 0 if all succeeded, else 1.

    Raises:
        UserError: there is no commit to start from, or DVC refuses.
    """
    for option, value in (("-n", runs), ("--jobs", jobs)):
        if value < 1:
            raise UserError(f"{option} must be ≥ 1, got {value}")
    baseline = git_says("rev-parse", "HEAD")
    if not baseline:
        raise UserError("replicate needs a commit that DVC's experiments can start from; run `git commit` first")
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    for name in git_says("ls-files", "--others", "--exclude-standard", "--", *CODE).splitlines():
        console.print(f"note: {name} is unknown to git, so the experiments go without it; `git add` takes it along")
    in_queue = experiments.tasks(baseline)
    seeds = list(islice(free_seeds(params, in_queue), runs))
    names = experiment_names(params, seeds, [*(task.name for task in in_queue), *_finished_names()])
    queued: list[str] = []
    try:
        with _progress(console) as show:
            for name, seed in zip(names, seeds, strict=True):
                show(f"queueing {name}, {len(queued) + 1} of {runs}")
                _queue(name, seed, queued)
            ended = _run(names, baseline, jobs, show)
    except Stopped:
        if queued:
            told = f"what is queued stays queued ({', '.join(queued)}): `dvc queue status` shows it"
            console.print(f"{told}, `dvc queue start` runs what waits, `dvc queue stop --kill` ends what runs")
        raise
    for line in account(ended):
        print(line)
    return 0 if all(task.state == "success" for task in ended) else 1


def free_seeds(params: Mapping[str, Any], in_queue: Collection[Task]) -> Iterator[int]:
    """The successors of the current seed that no experiment or reference run of this recipe has or waits for."""
    commits = {task.commit for task in in_queue if task.state in ("queued", "running")}
    commits |= {experiment.commit for experiment in experiments.finished()}
    known = [Place(commit, commit) for commit in sorted(commits)]
    known += [place for places in recipes().values() for place in places]
    taken = {str(theirs.get(SEED)) for theirs in map(_params_of, known) if not recipe_differing(params, theirs)}
    return (seed for seed in count(int(params[SEED]) + 1) if str(seed) not in taken)


def experiment_names(params: Mapping[str, Any], seeds: Sequence[int], taken: Collection[str]) -> list[str]:
    """A name for each seed that says what it is a run of: "main-seed-1", "main-epochs-12-seed-1"."""
    recipe = {key: value for key, value in params.items() if key != SEED and not key.startswith(NO_RECIPE)}
    changed = context.overrides({key: yaml_values.spelled(value) for key, value in recipe.items()})
    branch = git_says("branch", "--show-current") or git_says("rev-parse", "--short", "HEAD")
    stem = _slug(" ".join([branch, *changed.replace("=", " ").split("-S ")]))
    if len(stem) > LONGEST_STEM:
        stem = _slug(f"{branch} changed")
    for number in count(1):
        names = [f"{stem}{f'-{number}' if number > 1 else ''}-seed-{seed}" for seed in seeds]
        if not set(names) & set(taken):
            break
    return names


def _slug(text: str) -> str:
    """Letters, digits, dots and dashes: what git takes for part of a reference's name."""
    return re.sub(r"\.{2,}", ".", re.sub(r"[^\w.]+", "-", text)).strip("-.")


def _finished_names() -> list[str]:
    return [experiment.name for experiment in experiments.finished()]


def _params_of(place: Place) -> dict[str, Any]:
    try:
        return place.params()
    except UserError:  # no recipe of anybody's
        return {}


def _queue(name: str, seed: int, queued: list[str]) -> None:
    queued.append(name)  # before it is, since an interruption comes after
    said = dvc("exp", "run", "--queue", "--name", name, "--set-param", f"{SEED}={seed}")
    if said.returncode:
        queued.remove(name)
        others = f"; {', '.join(queued)} wait already, `dvc queue start` runs them" if queued else ""
        raise UserError(f"{name} cannot be queued: {complaint(said)}{others}")


# ------------------------------------------------------------------------------------------------ until all have ended


def _run(names: Sequence[str], baseline: str, jobs: int, show: Show) -> list[Task]:
    """Keep DVC's workers at it until each of `names` has ended."""
    watch, began = Watch(names, baseline), time.monotonic()
    started: float | None = None
    while True:
        asked = time.monotonic()
        now_tasks = watch.look()
        if all(task.state in DONE for task in now_tasks):
            return now_tasks
        waiting = any(task.state == "queued" for task in now_tasks)
        # a worker that finds the queue empty ends, whatever is queued meanwhile
        if started is None or (waiting and asked - started > START_SECONDS and not experiments.workers()):
            said = dvc("queue", "start", "--jobs", str(jobs))
            if said.returncode:
                raise UserError(f"`dvc queue start` fails: {complaint(said)}; what is queued stays queued")
            started = time.monotonic()
        show(f"{progress(now_tasks)}, {duration(round(asked - began))}")
        watch.pause(min(ASK_SECONDS, max(POLL_SECONDS, (asked - began) / 20)))


class Watch:
    """How some experiments of DVC's queue do, as DVC tells, and whether what it calls running is."""

    def __init__(self, names: Sequence[str], baseline: str) -> None:
        self._names, self._baseline = names, baseline
        self._seen = dict.fromkeys(names, time.monotonic())
        """When each was last known to wait or to have a process."""
        self._lost: set[str] = set()
        self._in_vain = 0

    def look(self) -> list[Task]:
        """The tasks as they are now, in the order of their names."""
        done = self._done()
        known = {} if done >= set(self._names) else {task.name: task for task in self._asked()}
        return [
            Task(name, "", "success") if name in done else self._judged(name, known.get(name)) for name in self._names
        ]

    def pause(self, seconds: float) -> None:
        """Wait so long, or until another experiment is done."""
        before, end = self._done(), time.monotonic() + seconds
        while time.monotonic() < end and self._done() == before:
            time.sleep(POLL_SECONDS)

    def _done(self) -> set[str]:
        """Names of those that git has."""
        return {one.name for one in experiments.finished() if one.baseline == self._baseline} & set(self._names)

    def _asked(self) -> Collection[Task]:
        """DVC fails to answer while it clears away what an experiment that just ended has left."""
        while True:
            began = time.monotonic()
            try:
                found = experiments.tasks(self._baseline)
            except UserError:
                unseen = time.monotonic() - began  # which makes no experiment lost
                self._seen = {name: when + unseen for name, when in self._seen.items()}
                self._in_vain += 1
                if self._in_vain >= PATIENCE:
                    raise
                time.sleep(POLL_SECONDS)
            else:
                self._in_vain = 0
                return found

    def _judged(self, name: str, task: Task | None) -> Task:
        """The task, or that it is lost: taken out of the queue, or its worker was killed and will never end it."""
        now = time.monotonic()
        if task and (task.state in ("queued", *DONE) or (task.process and psutil.pid_exists(task.process))):
            self._seen[name] = now
        elif name not in self._lost and now - self._seen[name] > LOST_SECONDS:
            if task and experiments.workers():  # it is at what comes before or after the process
                self._seen[name] = now
            else:
                self._lost.add(name)
        if name in self._lost or task is None:
            state = "lost" if name in self._lost else "queued"
            return Task(name, task.commit if task else "", state)
        return task


def progress(now_tasks: Sequence[Task]) -> str:
    """How far they are, in a line: "2 of 5 done, 1 failed, main-seed-3 runs"."""
    done = [task for task in now_tasks if task.state in DONE]
    failed = sum(task.state != "success" for task in done)
    running = [task.name for task in now_tasks if task.state == "running"]
    parts = [f"{len(done)} of {len(now_tasks)} done"]
    parts += [f"{failed} failed"] if failed else []
    parts += [f"{' and '.join(running)} {'runs' if len(running) == 1 else 'run'}"] if running else []
    return ", ".join(parts)


def account(ended: Sequence[Task]) -> Iterator[str]:
    """What became of each, and what to do with those that succeeded."""
    names = [task.name for task in ended if task.state == "success"]
    yield f"{len(names)} of {len(ended)} experiments succeeded{': ' if names else ''}{', '.join(names)}"
    for task in ended:
        if task.state == "failed":
            yield f"{task.name} failed{_reason(task)}; `dvc queue logs {task.name}` has all it said"
        elif task.state == "lost":
            yield f"{task.name} is lost: nothing runs it any more; `dvc queue kill {task.name}` tells DVC so"
    if names:
        yield "onecycle summary                     # mean, spread and interval of each recipe"
        yield f"onecycle compare <run> {','.join(names)}     # with a run, or several, of another recipe"


def _reason(task: Task) -> str:
    """The last error of its own in a task's log."""
    if not task.log or not task.log.exists():
        return ""
    lines = task.log.read_text(encoding="utf-8", errors="replace").splitlines()
    for mark in ("error: ", "ERROR: "):  # a stage's own, else DVC's
        found = [line.removeprefix(mark) for line in lines if line.startswith(mark)]
        if found:
            return f": {found[-1]}"
    return ""


@contextmanager
def _progress(console: Console) -> Iterator[Show]:
    """Shows a line that changes; without a terminal, a line for each change but those of the time."""
    if console.is_terminal:
        with console.status("") as status:
            yield status.update
        return
    last = [""]

    def show(line: str) -> None:
        without_time = line.rpartition(", ")[0] or line
        if without_time != last[0]:
            last[0] = without_time
            console.print(line)

    yield show
