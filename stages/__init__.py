"""One thin entry a stage: `python -m stages.<name>` reads files, calls one function, writes files, logs.

A queued experiment runs in a copy of the repo; its own `src` must come before the installed package's, which is the
original workspace's.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "src"))

from onecycle import signals

if sys.argv[0] == "-m":  # as long as `python -m` looks for the stage
    signals.exit_at_once()

from onecycle.tracking.execution import end_with_dvc

end_with_dvc()  # before a stage's imports, which take seconds: a stage whose dvc is gone must not go on
