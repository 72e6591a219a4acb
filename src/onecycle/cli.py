"""What is no stage of the pipeline; `onecycle --help` lists it."""

from __future__ import annotations

import argparse
import io
import math
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import NoReturn

from onecycle import actions, paths
from onecycle.errors import UserError
from onecycle.exits import exit_with


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run one command; `actions` has what each does."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # where it is not UTF-8 it has no ± and no –
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
    with suppress(ValueError):
        seconds = float(text)
        if 0 <= seconds < math.inf:
            return seconds
    raise argparse.ArgumentTypeError(f"must be a number ≥ 0, got {text}")


def _port(text: str) -> int:
    if not (text.isdecimal() and 1 <= int(text) <= 65_535):
        raise argparse.ArgumentTypeError(f"must be a whole number from 1 to 65535, got {text}")
    return int(text)


RUN = (
    "git revision, DVC experiment, folder, recipe below results/reference (all its seeds), MLflow run id, "
    "models:/name@alias, models:/name/version or `workspace`; a1,a2,a3 are several seeds of one recipe"
)
"""What a run may be called where results are compared."""
RERUN = (
    "MLflow run id, models:/name@alias, models:/name/version, DVC experiment, git revision, reference or `workspace`"
)
"""What it may be called where it is made again."""
ONE = f"{RERUN}, or a folder with results"
"""What one run may be called where it is looked at or kept."""


def parser() -> argparse.ArgumentParser:
    """The commands and their options; parsing gives `run`, which runs the one that was asked for."""
    parser = argparse.ArgumentParser(
        prog="onecycle",
        description="Track, compare, reproduce and use runs of the pipeline; `dvc repro` runs the pipeline itself.",
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {version('onecycle')}")
    commands = parser.add_subparsers(required=True, metavar="command")

    def command(
        name: str, does: str, run: Callable[[argparse.Namespace], int | None], epilog: str | None = None
    ) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=does, description=f"{does[0].upper()}{does[1:]}.", epilog=epilog)
        added.set_defaults(run=run)
        return added

    command("demo", "run the whole pipeline on built-in data, as a DVC experiment", actions.demo)
    ui = command("ui", "browse the runs in MLflow", actions.ui)
    ui.add_argument("--port", type=_port, default=5000, help="port on 127.0.0.1 (default: %(default)s)")
    sync = command("sync", "send to MLflow the rows that it has missed", actions.sync)
    sync.add_argument(
        "--relocate", action="store_true", help="first correct the paths in mlflow.db: this folder was moved or copied"
    )
    sync.add_argument(
        "--from-git", action="store_true", help="also make rows anew from git and DVC's cache: mlflow.db was lost"
    )
    predict = command(
        "predict",
        "classify pictures with the trained model",
        actions.predict,
        "Exit codes: 0 all are classified, 2 one was refused, and the others are classified.",
    )
    predict.add_argument(
        "images",
        nargs="+",
        type=_path,
        metavar="image",
        help="PNG or JPEG file, or a folder of them, not in folders of it",
    )
    predict.add_argument(
        "--model",
        default=str(paths.MODEL),
        help="file, models:/name@alias or models:/name/version (default: %(default)s)",
    )
    _add_json(predict)
    replicate = command(
        "replicate",
        "run the current recipe with other seeds, as DVC experiments",
        actions.replicate,
        "Exit codes: 0 all have succeeded, 1 one has not, 2 they cannot be started.",
    )
    replicate.add_argument("-n", type=int, default=3, metavar="N", help="how many seeds (default: %(default)s)")
    replicate.add_argument(
        "--jobs", type=int, default=1, metavar="N", help="experiments at a time (default: %(default)s)"
    )
    summary = command("summary", "say how well each recipe does over its seeds", actions.summary)
    form = summary.add_mutually_exclusive_group()
    _add_markdown(form)
    _add_json(form)
    form.add_argument(
        "--readme", action="store_true", help="write the table of the runs below results/reference into README.md"
    )
    summary.add_argument("--picture", type=_path, metavar="FILE.png", help="also draw each run as a dot")
    record = command("record", "keep a run below results/reference, and renew the table in README.md", actions.record)
    record.add_argument("name", metavar="run", help=ONE)
    record.add_argument(
        "--recipe",
        required=True,
        metavar="NAME",
        help="folder below results/reference; its runs differ only in the seed",
    )
    compare = command("compare", "say how runs differ, and whether one is better", actions.compare)
    compare.add_argument(
        "sides", nargs="+", metavar="run", help=f"{RUN}. The first is compared with each of the others"
    )
    form = compare.add_mutually_exclusive_group()
    _add_markdown(form)
    _add_json(form)
    compare.add_argument(
        "--pictures",
        type=_path,
        metavar="FILE.html",
        help="write a page of the test images that only one of two runs gets right",
    )
    gate = command(
        "gate",
        "tell a regression from the noise between equal runs",
        actions.gate,
        "Exit codes: 0 pass or inconclusive, 1 regression, 2 cannot judge, 3 inconclusive with --strict, 70 crash. "
        "The limits are the section `gate` of params.yaml.",
    )
    gate.add_argument("--baseline", required=True, metavar="RUN", help=f"what to compare with: {RUN}")
    gate.add_argument(
        "--candidate", default="workspace", metavar="RUN", help="what is judged, named likewise (default: %(default)s)"
    )
    form = gate.add_mutually_exclusive_group()
    _add_markdown(form)
    _add_json(form)
    gate.add_argument("--strict", action="store_true", help="exit with 3 if it is inconclusive (else with 0)")
    gate.add_argument(
        "--allow-no-baseline", action="store_true", help="if the baseline has no results, judge by gate.floor alone"
    )
    gate.add_argument("--promote", action="store_true", help="on a pass, make the candidate's model the champion")
    check_lock = command(
        "check-lock",
        "check that dvc.lock is the record of the committed params and results",
        actions.check_lock,
        "Exit codes: 0 it is, perhaps with a warning of newer code, 1 it is not, 2 it cannot be read.",
    )
    check_lock.add_argument("--strict", action="store_true", help="fail also if code is newer than dvc.lock")
    reproduce = command(
        "reproduce",
        "make a run again in a temporary git worktree, and compare to the bit",
        actions.reproduce,
        "Exit codes: 0 identical, or equal within the margins of the section `gate` of params.yaml, 1 different, "
        "2 it cannot be made again.",
    )
    reproduce.add_argument("name", metavar="run", help=RERUN)
    extent = reproduce.add_mutually_exclusive_group()
    extent.add_argument(
        "--from",
        dest="first",
        metavar="STAGE",
        help="run this stage and all after it again (default: what DVC's cache lacks)",
    )
    extent.add_argument("--from-scratch", action="store_true", help="run every stage, with a cache of its own")
    reproduce.add_argument("--env", action="store_true", help="with the packages the run's commit pins, in a new venv")
    _add_json(reproduce)
    show = command("show", "tell all that is known of a run", actions.show)
    show.add_argument("name", metavar="run", help=ONE)
    _add_json(show)
    bench = command(
        "bench", "measure training speed, beside this machine's limit and a plain PyTorch loop", actions.bench
    )
    bench.add_argument("--json", type=_path, metavar="FILE", help="also write every figure, unrounded, as JSON")
    bench.add_argument(
        "--seconds",
        type=_seconds,
        default=110,
        help="how long to measure after the warm-up, at least one round (default: %(default)s)",
    )
    bench.add_argument("--startup", action="store_true", help="measure only what the start of each stage costs")
    return parser


def _add_json(options: argparse._ActionsContainer) -> None:
    options.add_argument("--json", action="store_true", help="print every figure, unrounded, as JSON")


def _add_markdown(options: argparse._ActionsContainer) -> None:
    options.add_argument("--markdown", action="store_true", help="print tables for a pull request")
