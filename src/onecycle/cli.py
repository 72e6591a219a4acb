"""What is no stage of the pipeline; `onecycle --help` lists it."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from onecycle import paths
from onecycle.errors import UserError
from onecycle.stage import exit_with


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run one command. What a command needs is imported by it, so that each starts fast."""
    options = parser().parse_args(arguments)
    exit_with(lambda: options.run(options))


def parser() -> argparse.ArgumentParser:
    """The commands and their options; parsing gives `run`, which runs the one that was asked for."""
    parser = argparse.ArgumentParser(prog="onecycle", description="Beside the pipeline, which `dvc repro` runs.")
    commands = parser.add_subparsers(required=True, metavar="command")
    demo = commands.add_parser("demo", help="run the whole pipeline on built-in data, as a DVC experiment")
    demo.set_defaults(run=_demo)
    ui = commands.add_parser("ui", help="browse the runs in MLflow")
    ui.add_argument("--port", type=int, default=5000, help="of 127.0.0.1 (default: %(default)s)")
    ui.set_defaults(run=_ui)
    sync = commands.add_parser(
        "sync", help="send to MLflow what it has not got: it was unreachable, or a run was killed"
    )
    sync.add_argument("--relocate", action="store_true", help="mend mlflow.db first: this folder was moved or copied")
    sync.add_argument(
        "--from-git", action="store_true", help="then add rows for what git and DVC know: mlflow.db is gone"
    )
    sync.set_defaults(run=_sync)
    predict = commands.add_parser("predict", help="classify pictures with the trained model")
    predict.add_argument("images", nargs="+", type=Path, metavar="image", help="PNG or JPEG file, or a folder of them")
    predict.add_argument(
        "--model",
        default=str(paths.MODEL),
        help="file, models:/name@alias or models:/name/version (default: %(default)s)",
    )
    predict.add_argument("--json", action="store_true", help="every figure, in full")
    predict.set_defaults(run=_predict)
    replicate = commands.add_parser("replicate", help="run the current recipe with other seeds, as DVC experiments")
    replicate.add_argument("-n", type=int, default=3, metavar="runs", help="how many seeds (default: %(default)s)")
    replicate.add_argument("--jobs", type=int, default=1, help="experiments at a time (default: %(default)s)")
    replicate.set_defaults(run=_replicate)
    summary = commands.add_parser("summary", help="say how well each recipe does over its seeds")
    form = summary.add_mutually_exclusive_group()
    form.add_argument("--markdown", action="store_true", help="tables for a pull request")
    form.add_argument("--json", action="store_true", help="every figure, in full")
    form.add_argument(
        "--readme", action="store_true", help="write the table of the runs below results/reference into README.md"
    )
    summary.add_argument("--picture", metavar="FILE.png", help="draw it, too")
    summary.set_defaults(run=_summary)
    record = commands.add_parser("record", help="keep a run below results/reference, and its row in README.md")
    record.add_argument("name", metavar="run", help="as in compare")
    record.add_argument(
        "--recipe", required=True, metavar="NAME", help="its folder; runs of one differ only in the seed"
    )
    record.set_defaults(run=_record)
    compare = commands.add_parser("compare", help="say how runs differ, and whether one is better")
    compare.add_argument(
        "sides",
        nargs="+",
        metavar="run",
        help="git revision, DVC experiment, folder, recipe below results/reference (all its seeds), MLflow run id, "
        "models:/name@alias, models:/name/version, `workspace`; a1,a2,a3 for several seeds. The first is compared with "
        "each of the others",
    )
    form = compare.add_mutually_exclusive_group()
    form.add_argument("--markdown", action="store_true", help="tables for a pull request")
    form.add_argument("--json", action="store_true", help="every figure, in full")
    compare.add_argument(
        "--pictures", metavar="FILE.html", help="write a page of the test images that only one of two runs gets right"
    )
    compare.set_defaults(run=_compare)
    gate = commands.add_parser("gate", help="exit 1 if the candidate is worse than the baseline")
    gate.add_argument("--baseline", required=True, metavar="run", help="as in compare")
    gate.add_argument("--candidate", default="workspace", metavar="run", help="as in compare (default: %(default)s)")
    gate.add_argument("--json", action="store_true", help="every figure, in full, instead of Markdown")
    gate.add_argument("--strict", action="store_true", help="exit 3 if it is inconclusive")
    gate.add_argument("--allow-no-baseline", action="store_true", help="let the floor judge if there is no baseline")
    gate.add_argument("--promote", action="store_true", help="on a pass, make the candidate's model the champion")
    gate.set_defaults(run=_gate)
    check_lock = commands.add_parser("check-lock", help="exit 1 if dvc.lock is not the record of what is committed")
    check_lock.add_argument("--strict", action="store_true", help="also if code is newer than dvc.lock")
    check_lock.set_defaults(run=_check_lock)
    reproduce = commands.add_parser("reproduce", help="make a run again beside the workspace, and compare to the bit")
    reproduce.add_argument(
        "name", metavar="run", help="MLflow run id, models:/name@alias, DVC experiment, git revision, `workspace`"
    )
    extent = reproduce.add_mutually_exclusive_group()
    extent.add_argument("--from", dest="first", metavar="stage", help="run this stage and all after it again")
    extent.add_argument("--from-scratch", action="store_true", help="run every stage, with a cache of its own")
    reproduce.add_argument("--env", action="store_true", help="with the packages the run's commit pins, in a new venv")
    reproduce.add_argument("--json", action="store_true", help="every figure, in full")
    reproduce.set_defaults(run=_reproduce)
    show = commands.add_parser("show", help="tell all that is known of a run")
    show.add_argument("name", metavar="run", help="as in reproduce")
    show.add_argument("--json", action="store_true", help="everything, with all params")
    show.set_defaults(run=_show)
    bench = commands.add_parser("bench", help="say how fast this machine trains, and what it could")
    bench.add_argument("--json", type=Path, metavar="FILE", help="also write every figure there, in full")
    bench.add_argument(
        "--seconds",
        type=float,
        default=110,
        help="to measure for after the warm-up, one round at least (default: %(default)s)",
    )
    bench.add_argument("--startup", action="store_true", help="only what the start of each stage costs")
    bench.set_defaults(run=_bench)
    return parser


def _demo(_options: argparse.Namespace) -> None:
    from onecycle import demo

    demo.main()


def _ui(options: argparse.Namespace) -> None:
    from onecycle.tracking.ui import serve

    serve(options.port)


def _sync(options: argparse.Namespace) -> None:
    from onecycle.tracking.relocate import relocate
    from onecycle.tracking.sync import sync

    if options.relocate:
        print(f"{relocate()} addresses mended")
    for line in sync():
        print(line)
    if options.from_git:
        from onecycle.tracking.rebuild import rebuild

        for line in rebuild():
            print(line)


def _predict(options: argparse.Namespace) -> int:
    import json

    from onecycle import predict, tables

    files = predict.image_files(options.images)
    if options.model.startswith("models:"):
        from onecycle.tracking.loading import registered_model

        model = registered_model(options.model)
    else:
        model = predict.workspace_model(Path(options.model))
    predictions = predict.predict(model, files)
    if options.json:
        print(json.dumps(predict.document(predictions), indent=2))
    else:
        tables.show(predict.page(model, predictions))
    refused = [prediction.refused for prediction in predictions if prediction.refused]
    for sentence in refused:
        print(f"error: {sentence}", file=sys.stderr)
    return 2 if refused else 0


def _replicate(options: argparse.Namespace) -> int:
    from onecycle.params import flatten, load
    from onecycle.replicate import replicate

    return replicate(options.n, options.jobs, flatten(load(paths.PARAMS)))


def _summary(options: argparse.Namespace) -> None:
    import json

    if options.readme:
        from onecycle import readme

        print(readme.rewrite())
        return
    from onecycle import summary, tables
    from onecycle.executions import executions

    found = executions()
    groups = summary.groups(found.executions)
    if options.picture:
        summary.write_picture(groups, Path(options.picture))
    if options.json:
        print(json.dumps(summary.document(groups, found.left_out), indent=2))
        return
    page = summary.page(groups, found.left_out)
    if options.markdown:
        print(tables.markdown(page), end="")
    else:
        tables.show(page)


def _record(options: argparse.Namespace) -> None:
    from onecycle import readme, reference

    for line in reference.record(options.name, options.recipe):
        print(line)
    print(readme.rewrite())


def _compare(options: argparse.Namespace) -> None:
    if len(options.sides) < 2:
        raise UserError("compare takes two runs or more; try `onecycle compare HEAD workspace`")
    import json

    from onecycle import compare, tables
    from onecycle.results import read_side

    first, *others = (read_side(names) for names in options.sides)
    comparisons = [compare.compare(first, other) for other in others]
    if options.pictures:
        from onecycle.report import disagreements

        disagreements.write(Path(options.pictures), comparisons, first, others)
    if options.json:
        print(json.dumps([compare.document(comparison) for comparison in comparisons], indent=2))
        return
    for comparison in comparisons:
        page = compare.page(comparison)
        if options.markdown:
            print(tables.markdown(page))
        else:
            tables.show(page)


def _gate(options: argparse.Namespace) -> int:
    import json

    from onecycle import gate, tables
    from onecycle.params import load
    from onecycle.results import Results, read_side
    from onecycle.revisions import AbsentError

    limits = load(paths.PARAMS).gate
    candidate = read_side(options.candidate)
    if options.promote and len(candidate) > 1:
        raise UserError("--promote makes one model the champion; give one run as --candidate")
    baseline: tuple[Results, ...] = ()
    try:
        baseline = read_side(options.baseline)
    except AbsentError as absent:
        if not options.allow_no_baseline:
            raise UserError(f"{absent}; or pass --allow-no-baseline, and only the floor judges") from None
    judgement = gate.judge(baseline, candidate, limits)
    if options.json:
        print(json.dumps(gate.document(judgement, limits, options.strict), indent=2))
    else:
        print(tables.markdown(gate.page(judgement, limits)), end="")
    if options.promote:
        done = f"Not promoted: the verdict is {judgement.verdict}."
        if judgement.verdict == "pass":
            from onecycle.tracking.champion import promote

            [run] = candidate
            judged = baseline[0].place if len(baseline) == 1 else None
            done = promote(run.place, run.params.get("data.dataset", ""), options.baseline, judged)
        print(done, file=sys.stderr if options.json else sys.stdout)
    return judgement.exit_code(options.strict)


def _check_lock(options: argparse.Namespace) -> int:
    from onecycle.lock_check import disagreements

    found = list(disagreements())
    failed = False
    for one in found:
        wrong = one.wrong or options.strict
        failed = failed or wrong
        print(f"{'error' if wrong else 'warning'}: {one.sentence}")
    if not found:
        print("dvc.lock agrees with dvc.yaml, params.yaml and the committed results")
    return int(failed)


def _reproduce(options: argparse.Namespace) -> int:
    import json

    from onecycle import tables
    from onecycle.reproduction import page, rerun
    from onecycle.reproduction.agreement import DIFFERENT

    wanted = rerun.Options(options.first, options.from_scratch, options.env)
    done = rerun.reproduce(options.name, wanted)
    if options.json:
        print(json.dumps(page.document(done), indent=2))
    else:
        tables.show(page.page(done))
    return int(done.agreement.verdict == DIFFERENT)


def _show(options: argparse.Namespace) -> None:
    import json

    from onecycle import show, tables

    known = show.know(options.name)
    if options.json:
        print(json.dumps(show.document(known), indent=2))
    else:
        tables.show(show.page(known))


def _bench(options: argparse.Namespace) -> None:
    import json

    from onecycle import tables
    from onecycle.bench import rounds, startup
    from onecycle.params import load

    file: Path | None = options.json
    if file and not file.parent.is_dir():
        raise UserError(f"--json: there is no folder {file.parent}; make it first")
    if options.startup:
        starts = startup.measure()
        found, page = {"startup": starts}, startup.page(starts)
    else:
        figures = rounds.measure(load(paths.PARAMS), options.seconds)
        found, page = figures, rounds.page(figures)
    tables.show(page)
    if file:
        file.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
