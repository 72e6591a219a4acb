"""Whether a change may pass: a drop in accuracy is caught, the noise between equal runs is not.

    onecycle gate --baseline origin/main          # 0 pass, 1 regression, 2 cannot judge, 3 inconclusive (--strict)

The drop in accuracy is bounded from both sides, each at level `gate.alpha`: **regression** if its lower bound is above
0 and the drop itself is more than `gate.negligible`, **pass** if its upper bound is below `gate.margin`, else
inconclusive, with the number of seeds that should settle it. A floor for accuracy and limits for the rise of loss and
calibration error stand beside it.

With one run a side the bounds are of the images that only one of them gets right, or, where that is more, of how far
apart the seeds are that results/reference holds. These also tell how certain a rise of loss or calibration error is;
without them a limit is a limit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any, Literal

from onecycle.differences import (
    ACCURACY,
    EqualRuns,
    Side,
    accuracy_difference,
    estimate,
    figures,
    metric,
    run_deviation,
    side_name,
)
from onecycle.numbers import compared
from onecycle.params import GateParams
from onecycle.results import check_comparable, same_predictions
from onecycle.stats_tests import Difference, runs_to_settle
from onecycle.tables import Page, Table
from onecycle.yaml_values import same, spelled

Verdict = Literal["pass", "regression", "inconclusive"]

SEVERITY: tuple[Verdict, ...] = ("pass", "inconclusive", "regression")


@dataclass(frozen=True)
class Check:
    """One rule and what became of it."""

    name: str
    baseline: float | None
    candidate: float
    low: float | None
    """Bounds of candidate - baseline; None where nothing tells them."""
    high: float | None
    rule: str
    verdict: Verdict


@dataclass(frozen=True)
class Judgement:
    """All checks of a candidate."""

    baseline: tuple[str, ...]
    """Empty where there is none to compare with."""
    candidate: tuple[str, ...]
    checks: tuple[Check, ...]
    seeds: int | None
    """Runs each that settle an inconclusive accuracy nine times in ten, if they deviate as `deviation` says."""
    deviation: float | None
    """Of accuracy between equal runs, as the bounds take it; None without a baseline, or of the same classifier."""
    deviation_source: str
    """What tells it, in words."""
    other_limits: tuple[str, ...]
    """Where the limits are not those that the baseline had: a change may not loosen its own gate unseen."""
    absent: str
    """Why there is no baseline."""

    @property
    def verdict(self) -> Verdict:
        """The worst of the checks."""
        return max((check.verdict for check in self.checks), key=SEVERITY.index)

    def exit_code(self, strict: bool) -> int:
        """0 pass, 1 regression, 3 inconclusive; a lenient gate lets that through with a warning."""
        return {"pass": 0, "regression": 1, "inconclusive": 3 if strict else 0}[self.verdict]


def verdict_on(loss: Difference, limits: GateParams) -> Verdict:
    """Judge a drop in accuracy by its value and its two one-sided bounds of level `limits.alpha`."""
    if loss.low > 0 and loss.value > limits.negligible:
        return "regression"
    return "pass" if loss.high < limits.margin else "inconclusive"


def judge(
    baseline: Side, candidate: Side, limits: GateParams, known: EqualRuns | None = None, absent: str = ""
) -> Judgement:
    """Judge `candidate`, one run or several, by `baseline`, likewise; by the floor alone if that is empty.

    Args:
        known: recipes that tell how far equal runs are apart, for a side of one run.
        absent: why there is no baseline.

    Raises:
        UserError: the two cannot be compared.
    """
    checks = [_floor(candidate, limits)]
    seeds: int | None = None
    deviation: float | None = None
    source = ""
    if baseline:
        check_comparable(baseline, candidate)
        if len(baseline) == len(candidate) == 1 and same_predictions(baseline[0], candidate[0]):
            loss = Difference(0, 0, 0)  # the same classifier: there is nothing to estimate
        else:
            loss = accuracy_difference(candidate, baseline, 1 - 2 * limits.alpha, known)
            deviation, source = run_deviation(baseline, candidate, known)
        verdict = verdict_on(loss, limits)
        checks[:0] = [_accuracy(baseline, candidate, loss, verdict, limits)]
        checks += [
            _rise("loss", baseline, candidate, limits.loss_margin, limits.alpha, known),
            _rise("ece", baseline, candidate, limits.ece_margin, limits.alpha, known),
        ]
        if verdict == "inconclusive" and deviation is not None:
            apart = min(limits.margin, 2 * (limits.margin - limits.negligible))  # a wider interval may settle nothing
            seeds = max(runs_to_settle(apart, deviation, limits.alpha), _more_than_there_are(baseline, candidate))
    others = _other_limits(baseline, limits)
    return Judgement(_names(baseline), _names(candidate), tuple(checks), seeds, deviation, source, others, absent)


def _accuracy(baseline: Side, candidate: Side, loss: Difference, verdict: Verdict, limits: GateParams) -> Check:
    rule = f"accuracy falls by < {100 * limits.margin:g} points"
    before, after = (fmean(figures(side, ACCURACY)) for side in (baseline, candidate))
    return Check("accuracy", before, after, -loss.high, -loss.low, rule, verdict)


def _floor(candidate: Side, limits: GateParams) -> Check:
    accuracy = fmean(figures(candidate, ACCURACY))
    verdict: Verdict = "pass" if accuracy >= limits.floor else "regression"
    return Check("floor", None, accuracy, None, None, f"accuracy ≥ {100 * limits.floor:g} %", verdict)


def _rise(name: str, baseline: Side, candidate: Side, limit: float, alpha: float, known: EqualRuns | None) -> Check:
    """A rise above the limit is a regression, unless equal runs are known to be so far apart that it may be none."""
    before, after = (fmean(figures(side, metric(name))) for side in (baseline, candidate))
    told = estimate(baseline, candidate, metric(name), known)
    bounds = told.difference(1 - 2 * alpha) if told else None
    verdict: Verdict = "pass"
    if after - before > limit:
        verdict = "inconclusive" if bounds and bounds.low <= 0 else "regression"
    low, high = (bounds.low, bounds.high) if bounds else (None, None)
    return Check(name, before, after, low, high, f"{name} rises by ≤ {limit:g}", verdict)


def _more_than_there_are(baseline: Side, candidate: Side) -> int:
    """Runs already there were not enough, whatever a spread that came out small by chance says."""
    runs = min(len(baseline), len(candidate))
    return 0 if runs == 1 else runs + 1


def _other_limits(baseline: Side, limits: GateParams) -> tuple[str, ...]:
    before = baseline[0].params if baseline else {}
    pairs = ((f"gate.{name}", value) for name, value in limits.model_dump().items())
    return tuple(
        f"{key} {spelled(before[key])} → {spelled(value)}"
        for key, value in pairs
        if key in before and not same(before[key], value)
    )


def _names(side: Side) -> tuple[str, ...]:
    return tuple(run.described for run in side)


def document(judgement: Judgement, limits: GateParams, strict: bool) -> dict[str, Any]:
    """The judgement for `--json`."""
    return {
        "verdict": judgement.verdict,
        "exit_code": judgement.exit_code(strict),
        **asdict(judgement),
        "limits": limits.model_dump(),
    }


def page(judgement: Judgement, limits: GateParams) -> Page:
    """The judgement for people."""
    baseline, candidate = side_name(judgement.baseline), side_name(judgement.candidate)
    against = f"against {baseline}" if baseline else f"without a baseline ({judgement.absent}): only the floor judges"
    sure = f"{100 * (1 - limits.alpha):g} %"
    columns = ("check", "baseline", "candidate", "change", f"{sure} bounds", "verdict")
    parts: list[str | Table] = [
        Table(f"Gate: {judgement.verdict}", columns, [_cells(check) for check in judgement.checks])
    ]
    parts.append(f"To pass: {', '.join(check.rule for check in judgement.checks)}.")
    parts.append(f"{candidate} {against}. {_explained(judgement, limits)}".strip())
    if baseline and judgement.deviation is None:
        parts.append("Both give the same predictions.")
    if judgement.deviation:
        said = f"{100 * judgement.deviation:.2f} points ({judgement.deviation_source})"
        parts.append(f"Accuracy of equal runs deviates by {said}.")
    if judgement.other_limits:
        parts.append(f"The limits are not those of the baseline: {', '.join(judgement.other_limits)}.")
    return parts


def _cells(check: Check) -> Sequence[str]:
    told = compared(check.name, check.baseline, check.candidate, check.low, check.high)
    return (check.name, *told, check.verdict)


def _explained(judgement: Judgement, limits: GateParams) -> str:
    verdicts = {check.name: check.verdict for check in judgement.checks}
    failed = [name for name, verdict in verdicts.items() if verdict == "regression"]
    if failed:
        return f"Failed: {', '.join(failed)}."
    if verdicts.get("accuracy") == "inconclusive":
        return (
            f"Warning: the drop in accuracy may be negligible or {100 * limits.margin:g} points and more; "
            f"{judgement.seeds} seeds each should settle it."
        )
    unsure = [name for name, verdict in verdicts.items() if verdict == "inconclusive"]
    return f"Warning: {' and '.join(unsure)} rose by more than the limit, which may be chance." if unsure else ""
