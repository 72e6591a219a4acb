"""What a journal's entries amount to: the row as it should stand now."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

from onecycle.tracking.errors import StoreError
from onecycle.tracking.execution import Execution, Process
from onecycle.tracking.journal import Entry, Journal

Status = Literal["RUNNING", "FINISHED", "FAILED", "KILLED"]

_BAD_ENDS: dict[str, Status] = {"killed": "KILLED", "failed": "FAILED", "not run": "FAILED", "not recorded": "FAILED"}
"""The end of a stage that decides the row's, whatever other stages did (`dvc repro --keep-going`); worst first."""


@dataclass(frozen=True)
class Model:
    """The model that a row's evaluation is about."""

    md5: str
    file: str | None
    pictures: str | None
    """Copies in the journal, of the model and of images to show what it takes; None when it was not there any more."""


@dataclass
class RowState:
    """A row as its journal's entries leave it, folded in their order; adding the same ones again changes nothing."""

    row: str = ""
    """The row's own name, by which it is found in any store."""
    execution: Execution | None = None
    workspace: str = ""
    """The folder the execution works in; of a temporary experiment, one that will be gone."""
    started: int = 0
    """Milliseconds since 1970, as in entries."""
    params: dict[str, str] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    """The latest value of each."""
    tags: dict[str, str] = field(default_factory=dict)
    stages: dict[str, str] = field(default_factory=dict)
    """Stage → "ran", "cached", how it ended otherwise; "not run", "not recorded": the command ended before that."""
    seconds: dict[str, float] = field(default_factory=dict)
    """Stage → how long it had the row open; only for those that closed it."""
    model: Model | None = None
    evaluated: int = 0
    """When its evaluation ended."""
    running: tuple[str, Process] | None = None
    """The stage that has opened the row and not closed it."""
    opened: int = 0
    """When the last stage opened it."""
    ended: int | None = None
    """When the last stage closed it."""
    told: bool = False
    """Whether the user was told that the store does not take it."""

    @classmethod
    def of(cls, journal: Journal) -> RowState:
        """The state of all of a journal.

        Raises:
            StoreError: another version wrote it, or it is damaged.
        """
        try:
            return cls().add(entry for entry, _ in journal.entries())
        except (KeyError, TypeError, ValueError) as error:
            raise StoreError(
                f"{journal.folder} cannot be read ({error!r}): another version wrote it, or it is damaged; remove it, "
                "or `onecycle sync` with the version that wrote it"
            ) from None

    def add(self, entries: Iterable[Entry]) -> RowState:
        """Take in more entries; returns itself."""
        for entry in entries:
            self._add(entry)
        return self

    @property
    def status(self) -> Status:
        """The row's status."""
        if self.running:
            return "RUNNING"
        ends = self.stages.values()
        return next((status for end, status in _BAD_ENDS.items() if end in ends), "FINISHED")

    def _add(self, entry: Entry) -> None:
        stage = entry["stage"]
        match entry["event"]:
            case "open":
                if not self.row:
                    self.row, self.started = entry["row"], entry["at"]
                    self.execution, self.workspace = _execution(entry["execution"]), entry["workspace"]
                if self.running:  # its process was killed before it could close the row
                    self.stages[self.running[0]] = "killed"
                self.running, self.opened, self.ended = (stage, Process(**entry["process"])), entry["at"], None
                self.stages[stage] = "running"
                self.params = {**entry["params"], **self.params}
            case "metrics":
                self.metrics.update(entry["values"])
            case "series":
                # what a resumed training logged itself is newer
                earlier = {name: value for _, values in entry["points"] for name, value in values.items()}
                self.metrics = earlier | self.metrics
            case "tags":
                self.tags.update(entry["values"])
            case "model":
                self.model, self.evaluated = Model(**entry["model"]), entry["at"]
            case "cached":
                self.stages[stage] = "cached"
            case "undone":
                self.stages |= dict.fromkeys(entry["stages"], "not run")
            case "unrecorded":
                self.stages |= dict.fromkeys(entry["stages"], "not recorded")
            case "told":
                self.told = True
            case "close":
                if self.running is None or self.running[0] == stage:  # else noted when another had begun already
                    self.running, self.ended = None, entry["at"]
                    self.seconds[stage] = (entry["at"] - self.opened) / 1000
                self.stages[stage] = "ran" if entry["status"] == "FINISHED" else entry["status"].lower()


def _execution(fields: dict[str, object]) -> Execution:
    return Execution(**{**fields, "process": Process(**fields["process"])})  # type: ignore[arg-type]
