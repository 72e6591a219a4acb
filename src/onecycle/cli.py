"""What is no stage of the pipeline; `onecycle --help` lists it."""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import NoReturn

from onecycle import actions, paths
from onecycle.errors import UserError
from onecycle.stage import exit_with


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run one command; `actions` has what each does."""
    options = parser().parse_args(arguments)

    def run() -> int | None:
        if options.run is not actions.predict:
            _check_top()
        code: int | None = options.run(options)
        return code

    exit_with(run)


def _check_top() -> None:
    """Refuse to look for a workspace's files from one of its folders: they would seem to be missing."""
    top = paths.original_root()
    if not paths.DVC_YAML.exists() and (top / paths.DVC_YAML).exists():
        raise UserError(f"this is a folder of the workspace {top}; run the command there")


def _path(text: str) -> Path:
    if not text:  # an unset variable; as a path it would be this folder
        raise argparse.ArgumentTypeError("must be a file or a folder, got nothing")
    return Path(text)


def _seconds(text: str) -> float:
    seconds = float(text)
    if not 0 <= seconds < math.inf:
        raise argparse.ArgumentTypeError(f"must be a number ≥ 0, got {text}")
    return seconds


def _port(text: str) -> int:
    if not (text.isdecimal() and 1 <= int(text) <= 65_535):
        raise argparse.ArgumentTypeError(f"must be a whole number from 1 to 65535, got {text}")
    return int(text)


def parser() -> argparse.ArgumentParser:
    """The commands and their options; parsing gives `run`, which runs the one that was asked for."""
    parser = argparse.ArgumentParser(prog="onecycle", description="Beside the pipeline, which `dvc repro` runs.")
    parser.add_argument("--version", action="version", version=f"%(prog)s {version('onecycle')}")
    commands = parser.add_subparsers(required=True, metavar="command")
    demo = commands.add_parser("demo", help="run the whole pipeline on built-in data, as a DVC experiment")
    demo.set_defaults(run=actions.demo)
    ui = commands.add_parser("ui", help="browse the runs in MLflow")
    ui.add_argument("--port", type=_port, default=5000, help="of 127.0.0.1 (default: %(default)s)")
    ui.set_defaults(run=actions.ui)
    sync = commands.add_parser(
        "sync", help="send to MLflow what it has not got: it was unreachable, or a run was killed"
    )
    sync.add_argument("--relocate", action="store_true", help="mend mlflow.db first: this folder was moved or copied")
    sync.add_argument(
        "--from-git", action="store_true", help="then add rows for what git and DVC know: mlflow.db is gone"
    )
    sync.set_defaults(run=actions.sync)
    predict = commands.add_parser("predict", help="classify pictures with the trained model")
    predict.add_argument("images", nargs="+", type=_path, metavar="image", help="PNG or JPEG file, or a folder of them")
    predict.add_argument(
        "--model",
        default=str(paths.MODEL),
        help="file, models:/name@alias or models:/name/version (default: %(default)s)",
    )
    predict.add_argument("--json", action="store_true", help="every figure, in full")
    predict.set_defaults(run=actions.predict)
    replicate = commands.add_parser("replicate", help="run the current recipe with other seeds, as DVC experiments")
    replicate.add_argument("-n", type=int, default=3, metavar="runs", help="how many seeds (default: %(default)s)")
    replicate.add_argument("--jobs", type=int, default=1, help="experiments at a time (default: %(default)s)")
    replicate.set_defaults(run=actions.replicate)
    summary = commands.add_parser("summary", help="say how well each recipe does over its seeds")
    form = summary.add_mutually_exclusive_group()
    form.add_argument("--markdown", action="store_true", help="tables for a pull request")
    form.add_argument("--json", action="store_true", help="every figure, in full")
    form.add_argument(
        "--readme", action="store_true", help="write the table of the runs below results/reference into README.md"
    )
    summary.add_argument("--picture", metavar="FILE.png", help="draw it, too")
    summary.set_defaults(run=actions.summary)
    record = commands.add_parser("record", help="keep a run below results/reference, and its row in README.md")
    record.add_argument("name", metavar="run", help="as in compare")
    record.add_argument(
        "--recipe", required=True, metavar="NAME", help="its folder; runs of one differ only in the seed"
    )
    record.set_defaults(run=actions.record)
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
    compare.set_defaults(run=actions.compare)
    gate = commands.add_parser("gate", help="exit 1 if the candidate is worse than the baseline")
    gate.add_argument("--baseline", required=True, metavar="run", help="as in compare")
    gate.add_argument("--candidate", default="workspace", metavar="run", help="as in compare (default: %(default)s)")
    gate.add_argument("--json", action="store_true", help="every figure, in full, instead of Markdown")
    gate.add_argument("--strict", action="store_true", help="exit 3 if it is inconclusive")
    gate.add_argument("--allow-no-baseline", action="store_true", help="let the floor judge if there is no baseline")
    gate.add_argument("--promote", action="store_true", help="on a pass, make the candidate's model the champion")
    gate.set_defaults(run=actions.gate)
    check_lock = commands.add_parser("check-lock", help="exit 1 if dvc.lock is not the record of what is committed")
    check_lock.add_argument("--strict", action="store_true", help="also if code is newer than dvc.lock")
    check_lock.set_defaults(run=actions.check_lock)
    reproduce = commands.add_parser("reproduce", help="make a run again beside the workspace, and compare to the bit")
    reproduce.add_argument(
        "name", metavar="run", help="MLflow run id, models:/name@alias, DVC experiment, git revision, `workspace`"
    )
    extent = reproduce.add_mutually_exclusive_group()
    extent.add_argument("--from", dest="first", metavar="stage", help="run this stage and all after it again")
    extent.add_argument("--from-scratch", action="store_true", help="run every stage, with a cache of its own")
    reproduce.add_argument("--env", action="store_true", help="with the packages the run's commit pins, in a new venv")
    reproduce.add_argument("--json", action="store_true", help="every figure, in full")
    reproduce.set_defaults(run=actions.reproduce)
    show = commands.add_parser("show", help="tell all that is known of a run")
    show.add_argument("name", metavar="run", help="as in reproduce")
    show.add_argument("--json", action="store_true", help="everything, with all params")
    show.set_defaults(run=actions.show)
    bench = commands.add_parser("bench", help="say how fast this machine trains, and what it could")
    bench.add_argument("--json", type=Path, metavar="FILE", help="also write every figure there, in full")
    bench.add_argument(
        "--seconds",
        type=_seconds,
        default=110,
        help="to measure for after the warm-up, one round at least (default: %(default)s)",
    )
    bench.add_argument("--startup", action="store_true", help="only what the start of each stage costs")
    bench.set_defaults(run=actions.bench)
    return parser
