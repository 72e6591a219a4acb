"""Relays one journal to the store: what was appended becomes a row, whatever was killed on either side.

Sending the same twice changes nothing in a row, so whatever a kill, or a store that went away, leaves in doubt is
sent again.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from onecycle import paths
from onecycle.dvc_lock import parse_lock
from onecycle.tracking import registry, source
from onecycle.tracking.collect import STAGES
from onecycle.tracking.describe import description
from onecycle.tracking.ending import committed_lock, cut_short, final_lock, left_undone, temporary, unrecorded
from onecycle.tracking.errors import DeletedRowError, StoreError
from onecycle.tracking.filling import fill_in
from onecycle.tracking.journal import QUIET_SECONDS, Entry, Journal
from onecycle.tracking.row_state import RowState
from onecycle.tracking.store import EXPERIMENT_PREFIX, Store, connect
from onecycle.tracking.system import SystemMetrics

BETWEEN_STAGES = 900.0
"""Seconds without a word after which a command on another machine that has no stage running has ended."""


class Relay:
    """A journal on its way to the store; to be used while the journal's lock is held."""

    def __init__(self, journal: Journal) -> None:
        self.journal = journal
        self.state = RowState()
        self._read = 0  # bytes taken into the state
        self._store: Store | None = None
        self._known_params: dict[str, str] = {}  # by the store, from this process
        self._known_tags: dict[str, str] = {}
        self._known_end: tuple[str, int | None] | None = None
        self._model_recorded = False
        self._command_ended = False
        self._watched = False  # whether the command was seen alive, so that its end was seen, too
        self._sent = replace(journal.sent(), trouble=None)
        journal.acknowledge(self._sent)

    @property
    def connected(self) -> bool:
        """Whether it has a store; mlflow is then imported."""
        return self._store is not None

    def store_is_lost(self) -> bool:
        """Whether the store was deleted under our hands; then everything counts as unsent."""
        lost = self._store is not None and self._store.gone
        if lost:
            self._acknowledge(offset=0)
        return lost

    @property
    def over(self) -> bool:
        """Whether nothing will be appended any more."""
        return self.state.running is None and not self._command_runs()

    @property
    def done(self) -> bool:
        """Whether the journal can go."""
        return self.over and not self.journal.unsent() and (self._model_recorded or not self.state.model)

    def read(self) -> None:
        """Take in what was appended, and note it when the stage that has the row open was killed."""
        self._take_in()
        self._command_runs()  # asked first, since what is appended here makes the journal of another machine look alive
        if self._killed():
            self._take_in()  # what it may have appended between the reading and its end
        if self.state.running and self._killed():
            self.journal.append("close", stage=self.state.running[0], status="KILLED", durable=True)
            self._take_in()
        self._watched = self._watched or not self.over

    def _take_in(self) -> None:
        for entry, end in self.journal.entries(self._read):
            self.state.add([entry])
            self._read = end

    def _command_runs(self) -> bool:
        """Whether the command may start further stages. Once it has ended, it has."""
        execution = self.state.execution
        if execution and not self._command_ended:
            quiet = QUIET_SECONDS if self.state.running else BETWEEN_STAGES
            self._command_ended = not self.journal.runs(execution.process, quiet)
        return execution is not None and not self._command_ended

    def _killed(self) -> bool:
        """Whether the stage that has the row open, for all that was read, has ended."""
        return self.state.running is not None and not self.journal.runs(self.state.running[1])

    def note(self, system: SystemMetrics) -> None:
        """While a stage runs, add how busy the machine is, by seconds since the row began."""
        if self.state.running and (values := system.sample()):
            seconds = int(time.time() - self.state.started / 1000)
            self.journal.append("metrics", stage=self.state.running[0], values=values, step=seconds)

    def finish(self, patient: bool = False) -> bool:
        """Add what shows only when the command has ended: its dvc.lock, later stages whose results DVC kept, those that
        it should have run and did not, since it was killed before, and those that ran and that DVC did not record.

        Args:
            patient: whether to wait for DVC, which may have an experiment still to put where git knows it.

        Returns:
            False when that is to be waited for.
        """
        state, execution = self.state, self.state.execution
        if not execution or not execution.command or state.status != "FINISHED" or source.LOCK_TAG in state.tags:
            return True
        workspace = Path(state.workspace)
        try:
            lock = final_lock(workspace, execution.experiment, execution.baseline)
            parse_lock(lock.encode())
        except ValueError:  # half edited, or with the marks of a conflict: it tells nothing
            return True
        gone = execution.experiment and not workspace.exists()
        seen = self._watched or gone  # else others may have been at work there since
        ours = gone or temporary(workspace) or (seen and not self._later(workspace / paths.DVC_LOCK))
        lacking = unrecorded(lock, state.stages, state.params, self._copies())
        lost = [stage for stage in lacking if state.stages[stage] == "ran"]
        if lost and lock and not gone and not self._later(workspace / paths.DVC_LOCK):  # DVC writes it after each stage
            self.journal.append("unrecorded", stage="", stages=lost)
            error = f"dvc ended before it recorded {', '.join(lost)}"
            self.journal.append("tags", stage="", values={"error": error})
            self.read()
            return True
        if lacking and not ours:  # a branch may have been changed at once
            seen = False
            lock = committed_lock(
                workspace, lambda one: not unrecorded(one, state.stages, state.params, self._copies())
            )
            if not lock:
                return True
        undone = left_undone(lock, workspace, state.stages, state.params) if seen else []
        cut = bool(undone) and cut_short(execution, workspace)
        if patient and (cut is None or (temporary(workspace) and not lock)):  # half removed, it may hold nothing
            return False
        if lock:
            with suppress(FileNotFoundError, ValueError):  # the next command is at work there already
                later = [stage for stage in STAGES if stage not in state.stages]
                fill_in(self.journal, later, state.params, workspace)
            file = self.journal.keep_content(source.LOCK.name, lock.encode())
            self.journal.append("artifact", stage="", file=file, folder=source.FOLDER)
            self.journal.append("tags", stage="", values=source.lock_tags(lock.encode()))
        if cut is not False:  # also where an experiment's worker was killed: DVC has made no commit of it
            self.journal.append("undone", stage="", stages=undone)
            self.journal.append("tags", stage="", values={"error": f"dvc ended before it ran {', '.join(undone)}"})
        self.read()
        return True

    def push(self) -> None:
        """Send what was read since the last time.

        Raises:
            StoreError: the rest waits for the next time.
        """
        if self._sent.offset >= self._read:
            return
        known = self._store is not None
        try:
            self._deliver(self._store or self._connected())
        except StoreError as trouble:
            self._store = None
            if known:  # look again where the row is, and whether it still is
                self.push()
                return
            self._acknowledge(trouble=str(trouble))
            raise
        except DeletedRowError:  # by a person, in the UI: let it be
            pass
        self._acknowledge(offset=self._read, trouble=None)

    def push_model(self) -> None:
        """Have the store name the row's model, which it may have to get first: the last thing, since it takes a while.

        Raises:
            StoreError: it waits for the next time.
        """
        if self._model_recorded or not self.state.model:
            return
        again = "reproduces" in self.state.tags  # an old model, which is no candidate because it was made twice
        own = self.state.stages.get("evaluate") == "ran" and not again
        evaluated = self.state.evaluated if own else None
        try:
            store = self._store or self._connected()
            self.push()  # all of it again, when the store is another than the rest went to
            registry.attach_model(store, self._sent.run_id, self.state.model, self.journal.files, evaluated)
        except StoreError as trouble:
            self._store = None
            self._acknowledge(trouble=str(trouble))
            raise
        except DeletedRowError:
            pass
        self._model_recorded = True

    def _later(self, lock: Path) -> bool:
        """Whether a dvc.lock was written after the command's last stage had ended: by DVC, or by the next command."""
        return lock.exists() and self.state.ended is not None and lock.stat().st_mtime * 1000 > self.state.ended

    def _copies(self) -> Iterator[tuple[str, Path]]:
        """(stage, copy) of what stages wrote, as it was at their end; of the report's page a row has one of its own."""
        for entry, _ in self.journal.entries():
            if entry["event"] == "artifact" and Path(entry["file"]).name != paths.REPORT_HTML.name:
                yield entry["stage"], self.journal.files / entry["file"]

    def _connected(self) -> Store:
        """The current store, and in `_sent` the row's run there and how much of the journal it has."""
        if not self.state.row:
            raise StoreError(f"{self.journal.folder} lacks the entry that opens a row, so nothing can be made of it")
        store = connect(EXPERIMENT_PREFIX + self.state.params["data.dataset"])
        run_id = store.find(self.state.row)
        if run_id is None:
            run_id = store.create(self.state.row, self.state.started)
            self._acknowledge(offset=0)
        elif self._sent.store != store.identity:
            self._acknowledge(offset=0)
        self._acknowledge(store=store.identity, run_id=run_id)
        self._store, self._known_params, self._known_tags, self._known_end = store, {}, {}, None
        return store

    def _deliver(self, store: Store) -> None:
        """Send what was read. All of it may be sent twice: params, tags, files are replaced by the same, and metrics
        with the same timestamp are stored once. So whatever a kill leaves in doubt is sent again.
        """
        run_id, state = self._sent.run_id, self.state
        entries = [entry for entry, end in self.journal.entries(self._sent.offset) if end <= self._read]
        tags = {**state.tags, "dvc.stages": _stages(state), "mlflow.note.content": description(state, run_id)}
        store.log(
            run_id,
            metrics=[metric for entry in entries for metric in _metrics(entry)],
            params=dict(state.params.items() - self._known_params.items()),
            tags=dict(tags.items() - self._known_tags.items()),
        )
        self._known_params, self._known_tags = dict(state.params), tags
        for entry in entries:
            if entry["event"] == "dataset":
                store.dataset(run_id, **entry["dataset"])
            elif entry["event"] == "artifact":
                store.artifact(run_id, self.journal.files / entry["file"], entry["folder"])
        end = (state.status, state.ended)
        if end != self._known_end:  # it costs as much as an epoch's metrics
            store.set_status(run_id, *end)
            self._known_end = end

    def _acknowledge(self, **changes: str | int | None) -> None:
        self._sent = replace(self._sent, **changes)  # type: ignore[arg-type]
        self.journal.acknowledge(self._sent)


def _stages(state: RowState) -> str:
    """What became of each stage, in the pipeline's order: "download cached, stats ran, train killed"."""
    known = [stage for stage in STAGES if stage in state.stages]
    others = [stage for stage in state.stages if stage not in STAGES]
    return ", ".join(f"{stage} {state.stages[stage]}" for stage in known + others)


def _metrics(entry: Entry) -> Iterator[tuple[str, float, int, int]]:
    """An entry's metrics as (key, value, timestamp, step)."""
    points = [[entry["step"], entry["values"]]] if entry["event"] == "metrics" else entry.get("points", ())
    for step, values in points:
        for key, value in values.items():
            yield key, value, entry["at"], step or 0
