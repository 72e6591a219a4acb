"""`onecycle gate --promote`: the alias `champion` of a registered model moves to the version that passed."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

from filelock import FileLock

from onecycle import paths
from onecycle.dvc_lock import md5_of
from onecycle.errors import UserError
from onecycle.results import Results
from onecycle.tracking.errors import StoreError, guarded
from onecycle.tracking.lookup import Version, aliases
from onecycle.tracking.registry import find
from onecycle.tracking.store import EXPERIMENT_PREFIX, existing_client

if TYPE_CHECKING:
    from mlflow import MlflowClient

ALIAS = "champion"


def promote(candidate: Results, baseline: str, judged: Results | None) -> str:
    """Make the model of `candidate`, which has passed the gate, the champion; returns what was done, as a sentence.

    Args:
        baseline: what the candidate was judged by, as it was asked for.
        judged: the run that this was; None where there was none, or several.

    Raises:
        UserError: the candidate has no version in the registry, another version became champion since the candidate
            was judged by the one before it, or the store does not take it.
    """
    try:
        client = existing_client()
        version = _version(client, candidate) if client else None
        if client is None or version is None:
            raise UserError(
                f"the model of {candidate.name} has no version in MLflow's registry, so it is not promoted; "
                "`onecycle sync` registers what a row has evaluated"
            )
        paths.state().mkdir(exist_ok=True)
        with FileLock(paths.state() / "champion.lock"):  # of two promotions, the second sees what the first has done
            champion = aliases(client, version.name).get(ALIAS)
            row = judged.place.row if judged else None
            expected = row.version.number if row and row.version else None
            if baseline == f"models:/{version.name}@{ALIAS}" and champion != expected:
                raise UserError(
                    f"{baseline} was {_named(expected)} when it judged {candidate.name}, and is {_named(champion)} "
                    "now; run the gate again"
                )
            return _move(client, version, champion, baseline)
    except StoreError as error:
        raise UserError(f"{candidate.name} is not promoted, since MLflow cannot be asked: {error}") from None


def _named(number: str | None) -> str:
    return f"version {number}" if number else "none"


def _move(client: MlflowClient, version: Version, champion: str | None, baseline: str) -> str:
    """The tags first, the alias last and in one call: it is at the old version or at the new one, never at none, and
    after a kill in between the same command makes the tags true."""
    alias = f"models:/{version.name}@{ALIAS}"
    now = datetime.now(UTC).isoformat(timespec="seconds")
    with guarded():
        _tag(client, version, {"gate.verdict": "pass", "gate.baseline": baseline})
        known = client.get_model_version(version.name, version.number).tags
        for key in ("gate.demoted", "gate.replaced_by"):  # of an earlier time as champion
            if key in known:
                _tag(client, version, {key: ""})  # to delete it takes a right that few have who may set it
        if champion == version.number:
            return f"{alias} is version {champion} already."
        _tag(client, version, {"gate.promoted": now, "gate.replaces": champion or "none"})
        if champion:
            _tag(client, Version(version.name, champion), {"gate.demoted": now, "gate.replaced_by": version.number})
        client.set_registered_model_alias(version.name, ALIAS, version.number)
    return f"{alias} is version {version.number} now{f', before it was {champion}' if champion else ''}."


def _tag(client: MlflowClient, version: Version, tags: dict[str, str]) -> None:
    for key, value in tags.items():
        client.set_model_version_tag(version.name, version.number, key, value)


def _version(client: MlflowClient, candidate: Results) -> Version | None:
    """The version of a run's model: by the MD5 by which it is known, or as a row names it that does not tell that.

    Versions are counted anew in a registered model that was deleted, so an old row may name another's.
    """
    row = candidate.place.row
    md5 = candidate.made.model if row else _model_md5(candidate)
    if row and not md5:
        return row.version
    dataset = candidate.params.get("data.dataset", "")
    found = find(client, f"{EXPERIMENT_PREFIX}{dataset}", md5 or "")
    return Version(found.name, str(found.version)) if found else None


def _model_md5(run: Results) -> str:
    """The model that the run's results are of, as what is recorded of it says. Raises `UserError` if it does not."""
    place, outputs = run.place, run.made.outputs
    if not outputs:
        raise UserError(f"{place.of(paths.DVC_LOCK)} is missing, so which model its results are of is unknown")
    for path in (paths.EVALUATE_METRICS, paths.PREDICTIONS):
        if md5_of(place.read(path) or b"") != outputs.get(path.as_posix()):
            raise UserError(
                f"{place.of(path)} is not what {paths.DVC_LOCK} beside it records, so which model it is of is unknown; "
                "run `dvc repro`"
            )
    return run.made.model or ""
