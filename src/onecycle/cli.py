"""What is no stage of the pipeline: `onecycle demo`, `onecycle ui`, `onecycle sync`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import NoReturn

from onecycle.stage import exit_with


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run one command. What a command needs is imported by it, so that each starts fast."""
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
    sync.set_defaults(run=_sync)
    options = parser.parse_args(arguments)
    exit_with(lambda: options.run(options))


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
