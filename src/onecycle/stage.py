"""How a stage starts and ends: params in, one row joined, errors as one line, the right exit code."""

from __future__ import annotations

import errno
import os
import signal
import sys
import traceback
from collections.abc import Callable
from typing import TYPE_CHECKING, NoReturn

from onecycle import paths, signals
from onecycle.errors import Stopped, UserError
from onecycle.params import Params, load

if TYPE_CHECKING:
    from onecycle.tracking import Row


CRASHED = 70
"""The exit code of a fault of ours, EX_SOFTWARE in sysexits.h: not 1, by which the gate says that a model is worse."""


def run(name: str, body: Callable[[Params, Row], None]) -> NoReturn:
    """Run one stage's body inside its execution's row, then end the process."""

    def joined() -> None:
        params = load(paths.PARAMS)
        from onecycle import tracking

        with tracking.join(name, params) as row:
            body(params, row)

    exit_with(joined)


def exit_with(body: Callable[[], int | None]) -> NoReturn:
    """Call `body`; exit with its code or 0, 2 (bad input, one line), 128 + signal, or 70 with a traceback."""
    signals.raise_stopped()
    try:
        code = body()
    except UserError as error:
        if os.environ.get("ONECYCLE_DEBUG") == "1":
            traceback.print_exc()
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except Stopped as stopped:
        print(f"stopped by {signal.Signals(stopped.signal_number).name}", file=sys.stderr)
        sys.exit(128 + stopped.signal_number)
    except Exception as error:
        if isinstance(error, OSError) and _no_room(error):
            file = error.filename or "a file"
            print(f"error: no room left to write {file}; free some and run again", file=sys.stderr)
            sys.exit(2)
        traceback.print_exc()
        raise SystemExit(CRASHED) from error
    sys.exit(code or 0)


def _no_room(error: OSError) -> bool:
    """Whether a disk, a quota or a limit is full; numpy tells a write cut short in words only."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) or "requested and" in str(error)
