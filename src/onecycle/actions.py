"""What each command of `onecycle` does. What it needs is imported by it, so that every one starts fast."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from onecycle import paths
from onecycle.errors import UserError, printable, printable_lines

if TYPE_CHECKING:
    from onecycle.tables import Page


def demo(_options: argparse.Namespace) -> None:
    from onecycle import demo

    demo.main()


def ui(options: argparse.Namespace) -> None:
    from onecycle.tracking.ui import serve

    serve(options.port)


def sync(options: argparse.Namespace) -> None:
    from onecycle.tracking.relocate import relocate
    from onecycle.tracking.sync import sync

    if options.relocate:
        print(f"{relocate()} addresses mended")
    trouble: UserError | None = None
    try:
        for line in sync():
            print(line)
    except UserError as error:
        trouble = error
    if options.from_git:
        from onecycle.tracking.rebuild import rebuild

        for line in rebuild():
            print(printable(line))
    if trouble:
        raise trouble


def predict(options: argparse.Namespace) -> int:
    from onecycle import predict

    files = predict.image_files(options.images)
    if options.model.startswith("models:"):
        from onecycle.tracking.loading import registered_model

        model = registered_model(options.model)
    else:
        model = predict.workspace_model(Path(options.model))
    predictions = predict.predict(model, files)
    _tell(options, predict.page(model, predictions), predict.document(predictions))
    refused = [prediction.refused for prediction in predictions if prediction.refused]
    for sentence in refused:
        print(f"error: {sentence}", file=sys.stderr)
    return 2 if refused else 0


def replicate(options: argparse.Namespace) -> int:
    from onecycle.params import flatten, load
    from onecycle.replicate import replicate

    return replicate(options.n, options.jobs, flatten(load(paths.PARAMS)))


def summary(options: argparse.Namespace) -> None:
    if options.readme:
        if options.picture:
            raise UserError("--readme renews the table in README.md and draws nothing; run it without --picture")
        from onecycle import readme

        print(readme.rewrite())
        return
    from onecycle import summary
    from onecycle.executions import executions

    found = executions()
    groups = summary.groups(found.runs)
    if options.picture:
        from onecycle.summary_figure import write_picture

        write_picture(groups, options.picture)
    _tell(options, summary.page(groups, found.left_out), summary.document(groups, found.left_out))


def record(options: argparse.Namespace) -> None:
    from onecycle import readme, reference

    print(reference.record(options.name, options.recipe))
    try:
        print(readme.rewrite())
    except UserError as error:  # the run is recorded all the same
        print(f"warning: {printable_lines(str(error))}", file=sys.stderr)


def compare(options: argparse.Namespace) -> None:
    if len(options.sides) < 2:
        raise UserError("compare takes two runs or more; try `onecycle compare HEAD workspace`")
    from onecycle import compare, differences
    from onecycle.results import read_side

    first, *others = (read_side(names) for names in options.sides)
    comparisons = [compare.compare(first, other, differences.equal_runs(first, other)) for other in others]
    if options.pictures:
        from onecycle import disagreements

        disagreements.write(options.pictures, comparisons, first, others)
    page = [part for comparison in comparisons for part in compare.page(comparison)]
    _tell(options, page, [compare.document(comparison) for comparison in comparisons])


def gate(options: argparse.Namespace) -> int:
    from onecycle import differences, gate
    from onecycle.params import load
    from onecycle.results import Results, read_side, same_model
    from onecycle.revisions import AbsentError

    limits = load(paths.PARAMS).gate
    candidate = read_side(options.candidate)
    if options.promote and len(candidate) > 1:
        raise UserError("--promote makes one model the champion; give one run as --candidate")
    baseline: tuple[Results, ...] = ()
    absent = ""
    try:
        baseline = read_side(options.baseline)
    except AbsentError as error:
        if not options.allow_no_baseline:
            raise UserError(f"{error}; or pass --allow-no-baseline, and only the floor judges") from None
        absent = str(error)
    if len(candidate) == 1:  # a change of something else leaves it one of the baseline's own seeds
        baseline = tuple(run for run in baseline if same_model(run, candidate[0]))[:1] or baseline
    known = differences.equal_runs(baseline, candidate) if baseline else None
    judgement = gate.judge(baseline, candidate, limits, known, absent)
    _tell(options, gate.page(judgement, limits), gate.document(judgement, limits, options.strict))
    if options.promote:
        done = f"Not promoted: the verdict is {judgement.verdict}."
        if judgement.verdict == "pass":
            from onecycle.tracking.champion import promote

            [run] = candidate
            done = promote(run, options.baseline, baseline[0] if len(baseline) == 1 else None)
        print(done, file=sys.stderr if options.json else sys.stdout)
    return judgement.exit_code(options.strict)


def check_lock(options: argparse.Namespace) -> int:
    from onecycle.lock_check import mismatches

    found = list(mismatches())
    failed = False
    for one in found:
        wrong = one.wrong or options.strict
        failed = failed or wrong
        print(f"{'error' if wrong else 'warning'}: {printable(one.sentence)}")
    if not found:
        print("dvc.lock agrees with dvc.yaml, params.yaml and the committed results")
    return int(failed)


def reproduce(options: argparse.Namespace) -> int:
    from onecycle.reproduction import page, rerun
    from onecycle.reproduction.agreement import DIFFERENT

    wanted = rerun.Options(options.first, options.from_scratch, options.env)
    done = rerun.reproduce(options.name, wanted)
    _tell(options, page.page(done), page.document(done))
    return int(done.agreement.verdict == DIFFERENT)


def show(options: argparse.Namespace) -> None:
    from onecycle import show

    known = show.know(options.name)
    _tell(options, show.page(known), show.document(known))


def bench(options: argparse.Namespace) -> None:
    import json

    from onecycle import tables
    from onecycle.bench import rounds, startup
    from onecycle.params import load

    file: Path | None = options.json
    if file:
        _check_writable(file)  # it would be a pity to find out after the minutes that measuring takes
    if options.startup:
        starts = startup.measure()
        found, page = {"startup": starts}, startup.page(starts)
    else:
        figures = rounds.measure(load(paths.PARAMS), options.seconds)
        found, page = figures, rounds.page(figures)
    tables.show(page)
    if file:
        file.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


def _check_writable(file: Path) -> None:
    existed = file.exists()
    try:
        file.open("a").close()
    except OSError as error:
        raise UserError(f"--json: {file} cannot be written: {error.strerror}") from None
    if not existed:
        file.unlink()


def _tell(options: argparse.Namespace, page: Page, document: object) -> None:
    """Print what was found, in the form that was asked for."""
    import json

    from onecycle import tables

    if options.json:
        print(json.dumps(document, indent=2))
    else:
        tables.write(page, "markdown" in options and options.markdown)
