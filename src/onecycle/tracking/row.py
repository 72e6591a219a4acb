"""A stage's side of tracking: its row, opened and closed with the stage, and everything it says in between."""

from __future__ import annotations

import os
import re
import signal
import sys
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path

from onecycle import signals, yaml_values
from onecycle.dvc_lock import kept_params, read_lock
from onecycle.errors import Stopped, UserError
from onecycle.params import Params, flatten
from onecycle.tracking import context, delivery, describe, execution, patch, source
from onecycle.tracking.collect import STAGES, collect
from onecycle.tracking.errors import StoreError
from onecycle.tracking.filling import fill_in, log
from onecycle.tracking.journal import Journal, root
from onecycle.tracking.redaction import without_secrets
from onecycle.tracking.row_state import RowState

MODES = ("on", "journal", "off")


class Row:
    """The row of the execution a stage belongs to.

    Tracking never fails a stage: what cannot be written or read is told once on stderr, and then done without.
    """

    def __init__(self, stage: str, journal: Journal | None) -> None:
        self._stage = stage
        self._journal = journal
        self._sender: execution.Process | None = None
        self._seconds = delivery.SECONDS_A_STAGE  # that are left of it
        self._live: set[tuple[str, int]] = set()
        self._kept: set[tuple[str, str]] = set()
        self._told = False

    def metrics(self, values: Mapping[str, float], step: int | None = None) -> None:
        """Log values named like "train/loss": at a step (an epoch, an iteration), or of the stage as a whole."""
        if step is not None:
            self._live |= {(name, step) for name in values}
        self._append("metrics", values={_metric_name(name): float(value) for name, value in values.items()}, step=step)

    def artifact(self, path: Path, folder: str | None = None) -> None:
        """Log a copy of a file, as it is now, into a folder of the row (default: the stage's name)."""
        if self._journal is not None:
            with self._unfailing():
                folder = folder or self._stage
                self._append("artifact", file=self._journal.keep(path), folder=folder)
                self._kept.add((path.name, folder))

    def tags(self, values: Mapping[str, str]) -> None:
        """Set tags of the row."""
        self._append("tags", values={name: without_secrets(str(value)) for name, value in values.items()})

    def this_execution(self) -> dict[str, dict[str, str]]:
        """What is true of it only, so far, as heading → name → value; empty when there is no row."""
        if self._journal is not None:
            with self._unfailing():
                return describe.execution(RowState.of(self._journal))
        return {}

    def _open(self, current: execution.Execution, params: Params, send: bool) -> None:
        """Open the row, and fill in what earlier stages left on disk that did not run in this execution."""
        if self._journal is None:
            return
        with self._unfailing():
            so_far = RowState.of(self._journal) if self._journal.file.exists() else RowState()
            values = {name: yaml_values.spelled(value) for name, value in flatten(params).items()}
            kept = self._params_of_kept(so_far, values)
            edited = ", ".join(f"{name}={values[name]}, kept {value}" for name, value in kept.items())
            values |= kept  # the row is of results, and these are not of params.yaml
            changed = [name for name, value in values.items() if so_far.params.get(name, value) != value]
            self._append(
                "open",
                durable=True,
                process=asdict(execution.Process.current()),
                params={name: value for name, value in values.items() if name not in so_far.params},
                row=so_far.row or uuid.uuid4().hex,
                execution=asdict(current),
                workspace=str(Path.cwd()),
            )
            if not so_far.row:
                with self._unfailing():  # each on its own: what one cannot read keeps no other from the row
                    self._made_from(context.tags(current, values))
            if edited:
                self.tags({"params.edited": edited})
            if changed:  # edited while the command ran: MLflow keeps the first value of a param for good
                self.tags({f"params.changed_at_{self._stage}": ", ".join(f"{name}={values[name]}" for name in changed)})
            with self._unfailing():
                fill_in(self._journal, [stage for stage in self._earlier() if stage not in so_far.stages], values)
            if send:
                self._sender = delivery.start(self._journal)

    def _earlier(self) -> tuple[str, ...]:
        """The stages before this one."""
        return STAGES[: STAGES.index(self._stage)] if self._stage in STAGES else ()

    def _params_of_kept(self, so_far: RowState, values: Mapping[str, str]) -> dict[str, str]:
        """The params of earlier stages that did not run in this execution, where they are not those of params.yaml."""
        with self._unfailing():
            kept = [stage for stage in self._earlier() if so_far.stages.get(stage, "cached") == "cached"]
            return kept_params(kept, self._stage, read_lock(), values)
        return {}

    def _made_from(self, tags: Mapping[str, str]) -> None:
        """Tell what the row is made from, with the changes that are in no commit."""
        changes = patch.take() if tags.get("git.dirty") == "true" and self._journal else None
        self.tags({**tags, **({"git.patch": changes.note or patch.EMPTY} if changes else {})})
        if changes and changes.content and self._journal:
            file = self._journal.keep_content(source.PATCH.name, changes.content)
            self._append("artifact", file=file, folder=source.FOLDER)

    def _collect(self) -> None:
        """Log what the stage left on disk, except what it logged while it ran."""
        if self._journal is not None:
            with self._unfailing():
                found = collect(self._stage)
                found.artifacts = [entry for entry in found.artifacts if (entry[0].name, entry[1]) not in self._kept]
                log(self._journal, self._stage, found, self._live)

    def _close(self, status: str) -> None:
        """Close the row; what keeps the store from having it is told."""
        self._append("close", durable=True, status=status)
        if self._journal is None or self._sender is None:
            return
        with self._unfailing():
            trouble = delivery.wait(self._journal, self._sender, self._seconds)
            if trouble and not RowState.of(self._journal).told:
                print(f"tracking: {trouble}; nothing is lost, `onecycle sync` sends it later", file=sys.stderr)
                self._append("told", trouble=trouble)  # the command's later stages need not say it again

    def _append(self, event: str, *, durable: bool = False, **fields: object) -> None:
        if self._journal is not None:
            with self._unfailing():
                self._journal.append(event, durable=durable, stage=self._stage, **fields)

    @contextmanager
    def _counted(self) -> Iterator[None]:
        """Count what the block takes; a stage that has written much waits the less for the store."""
        started = time.monotonic()
        try:
            yield
        finally:
            self._seconds -= time.monotonic() - started

    @contextmanager
    def _unfailing(self) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError, KeyError, StoreError) as error:
            if not self._told:
                self._told = True
                print(f"tracking: {self._stage}'s row is incomplete: {error}", file=sys.stderr)


@contextmanager
def join(stage: str, params: Params) -> Iterator[Row]:
    """Join the execution's row: RUNNING while the block runs, then FINISHED, FAILED or KILLED."""
    mode = os.environ.get("ONECYCLE_TRACKING") or "on"
    if mode not in MODES:
        raise UserError(f'ONECYCLE_TRACKING must be one of {", ".join(MODES)}, got "{mode}"')
    current = execution.current()
    execution.end_with_dvc()
    journal = None if mode == "off" else Journal(root() / current.name)
    row = Row(stage, journal)
    with row._counted():
        row._open(current, params, send=mode == "on")
    status = "FAILED"
    late: signals.Request | None = None
    with ExitStack() as ending:
        try:
            yield row
            late = ending.enter_context(signals.deferred())  # DVC throws away what a stage made that ends by a signal
            with row._counted():
                row._collect()
            status = "FINISHED"
        except (Stopped, KeyboardInterrupt):
            status = "KILLED"
            raise
        except SystemExit as end:
            status = "FAILED" if end.code else "FINISHED"
            raise
        except Exception as error:
            row.tags({"error": without_secrets(f"{stage}: {type(error).__name__}: {error}")[:500]})
            raise
        finally:
            late = late or ending.enter_context(signals.deferred())  # a second Ctrl-C must not leave the row open
            row._close(status)
    if late.signal_number is not None:
        name = signal.Signals(late.signal_number).name
        print(f"{stage} was done when {name} came, and keeps its result; once more ends what follows", file=sys.stderr)


def _metric_name(name: str) -> str:
    """MLflow's alphabet for metrics: letters, digits, _ - . : / and spaces."""
    return re.sub(r"[^\w\-.:/ ]", "_", name)
