"""What a run was made with against what is here, before anything runs: packages, device, processor, threads."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from onecycle import paths, yaml_values
from onecycle.errors import UserError
from onecycle.tracking import context

_ASKED = """
import json, platform, sys
from importlib import metadata
found = {"version.python": platform.python_version()}
for name in sys.argv[1:]:
    try:
        found["version." + name] = metadata.version(name)
    except metadata.PackageNotFoundError:
        pass
print(json.dumps(found))
"""
_HERE = """
import json
import torch
from onecycle import device, params, paths
compute = device.select(params.load(paths.PARAMS).train)
print(json.dumps({"device": str(compute), "threads": str(torch.get_num_threads())}))
"""


class Difference(NamedTuple):
    """One thing that is not as it was."""

    what: str
    recorded: str
    here: str

    def __str__(self) -> str:
        return f"{self.what} {self.recorded}, here {self.here}"


UNKNOWN = Difference("surroundings", "not recorded", "known")
"""Stands for all that is not known of a run without a row."""
KERNELS = Difference("GPU kernels", "need not repeat to the bit", "neither")
"""Without `train.deterministic: true`."""


def here(python: Path, folder: Path) -> dict[str, str]:
    """What stages run with by the interpreter `python`, in the tags of a row.

    Args:
        folder: the worktree, whose code reads its params, which may be of a time with other knobs, and chooses device
            and precision.

    Raises:
        UserError: it cannot be told, so no stage would run, either.
    """
    hardware = {"hardware.cpu": context.processor(), "hardware.cores": str(os.cpu_count())}
    versions = _said(python, folder, _ASKED, *context.VERSIONS)
    return {**hardware, **versions, **_said(python, folder, _HERE)}


def differences(recorded: Mapping[str, str], now: Mapping[str, str]) -> list[Difference]:
    """What differs of that which both name; `UNKNOWN` where nothing is recorded."""
    named = {"device": "device", "threads": "threads", "hardware.cpu": "processor", "hardware.cores": "cores"}
    named |= {key: key.removeprefix("version.") for key in now if key.startswith("version.")}
    if not recorded.keys() & named.keys():  # no row, or one that was made anew from git
        return [UNKNOWN]
    both = ((words, recorded[key], now[key]) for key, words in named.items() if key in recorded and key in now)
    return [Difference(words, one, other) for words, one, other in both if one != other]


def noise(recorded: Mapping[str, str], now: Mapping[str, str], params: Mapping[str, str]) -> list[Difference]:
    """What may give other figures where nothing differs: kernels of the recorded GPU, unless they were to repeat."""
    same_gpu = recorded.get("device") == now["device"] and not now["device"].startswith("cpu")
    return [KERNELS] if same_gpu and not yaml_values.same(params.get("train.deterministic"), True) else []


def elsewhere(ran: Sequence[str], recorded: Mapping[str, str]) -> list[Difference]:
    """Of the stages that ran again, those whose results DVC had kept when the row was made, which is not of them."""
    told = recorded.get("dvc.stages", "").split(", ")
    kept = [stage for stage in ran if f"{stage} cached" in told]
    return [Difference(f"what {' and '.join(kept)} ran with", "is in another row", "known")] if kept else []


def interpreter(worktree: Path, digest: str) -> Path:
    """The Python of a virtual environment with the packages that the worktree's requirements.lock pins.

    It is made by the worktree's own Makefile, once for each lock file, in `.state/environments/`.

    Args:
        digest: names the lock file.

    Raises:
        UserError: it cannot be made.
    """
    target = paths.state() / "environments" / digest
    venv = os.path.relpath(target, worktree)  # make takes no spaces, which the way to a workspace may have
    command = ["make", f"VENV={venv}", f"PYTHON={_base_python()}", f"{venv}/.ready"]
    environment = {name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "MAKELEVEL")}
    done = subprocess.run(command, cwd=worktree, env=environment, stdout=sys.stderr)
    if done.returncode != 0:
        raise UserError(f"the recorded packages cannot be installed into {target}; what make says is above")
    return target / "bin" / "python"


def _base_python() -> str:
    """The interpreter that this virtual environment was made from."""
    return str(getattr(sys, "_base_executable", sys.executable))


def _said(python: Path, folder: Path, code: str, *arguments: str) -> dict[str, str]:
    environment = {**os.environ, "PYTHONPATH": str(folder / "src")}
    done = subprocess.run(
        [str(python), "-c", code, *arguments], cwd=folder, env=environment, capture_output=True, text=True
    )
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["it gave no reason"])[-1]
        raise UserError(f"what stages run with cannot be told: {last}")
    found: dict[str, str] = json.loads(done.stdout)
    return found
