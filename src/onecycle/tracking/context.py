"""Where a row comes from: commit, branch, changed files, versions, hardware. Never an address of a git remote."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from textwrap import shorten

import psutil

from onecycle import paths, yaml_values
from onecycle.tracking.execution import Execution
from onecycle.tracking.git import RESULTS, git
from onecycle.tracking.redaction import without_secrets

VERSIONS = (
    *("torch", "torchvision", "albumentations", "opencv-python-headless", "numpy", "scipy", "scikit-learn"),
    *("pandas", "pyarrow", "matplotlib", "pillow", "dvc", "mlflow"),
)
"""Of packages that write results, or see to it that others do."""
NAME_WIDTH = 80
"""Characters of a row's name."""
_STATUS = ("--porcelain", "-z", "--branch", "--untracked-files=normal", "--no-renames")
"""Whatever a user's own settings say; with -z no name is quoted."""


def tags(execution: Execution, params: Mapping[str, str]) -> dict[str, str]:
    """The tags of a new row; `params` as the row has them."""
    return source(execution, params) | _machine()


def source(execution: Execution, params: Mapping[str, str]) -> dict[str, str]:
    """The tags that tell what a row was made from."""
    commit, _, inside = git("rev-parse", "HEAD", "--show-prefix").partition("\n")  # or in a larger repository
    status = list(filter(None, git("status", *_STATUS, "--", ".", *RESULTS).split("\0"))) if commit else []
    changed = [entry[3:].removeprefix(inside) for entry in status[1:]]
    branch = _branch(commit) if commit else ""
    reproduced, _, attempt = os.environ.get(paths.REPRODUCES, "").rpartition(" ")
    edits = overrides(params) if commit else ""
    said = (branch, commit[:7], edits.replace("-S ", ""))
    name = (
        execution.experiment or shorten(" ".join(filter(None, said)), NAME_WIDTH, placeholder=" …") or Path.cwd().name
    )
    known = {
        "mlflow.runName": f"again: {reproduced[:12]}" if reproduced else name,
        "reproduces": reproduced,
        "reproduction": attempt,
        "mlflow.source.name": execution.command or "",
        "mlflow.source.git.commit": commit,
        "git.commit": commit,
        "git.branch": branch,
        "git.dirty": str(bool(changed)).lower() if status else "",  # its header is missing when git takes too long
        "git.changed": ", ".join(changed[:20]),
        "dvc.exp_name": execution.experiment or "",
        "dvc.baseline": execution.baseline or "",
        "params.changed": edits,
    }
    return _known(known)


def changed_between(one: str, other: str) -> list[str]:
    """The files that differ between two commits, but for what the pipeline itself writes."""
    names = git("diff", "--name-only", "-z", "--no-renames", "--relative", one, other, "--", ".", *RESULTS)
    return [name for name in names.split("\0") if name]


def _machine() -> dict[str, str]:
    """The tags that tell what a row is made with."""
    known = {
        "version.python": platform.python_version(),
        **{f"version.{name}": _version(name) for name in VERSIONS},
        "hardware.cpu": processor(),
        "hardware.cores": str(os.cpu_count()),
        "hardware.memory_gib": f"{psutil.virtual_memory().total / 2**30:.0f}",
        "hardware.host": platform.node(),
        "os": platform.platform(terse=True),
    }
    return _known(known)


def _known(tags: Mapping[str, str]) -> dict[str, str]:
    return {name: without_secrets(value) for name, value in tags.items() if value}


def _branch(commit: str) -> str:
    """The branch; an experiment has detached it or works in a copy without any, so there one that ends in `commit`."""
    tips = ("for-each-ref", "--points-at", commit, "--format=%(refname:short)", "refs/heads")
    return git("branch", "--show-current") or git("-C", str(paths.original_root()), *tips).partition("\n")[0]


def overrides(params: Mapping[str, str], commit: str = "HEAD") -> str:
    """The params that differ from a commit's, as `dvc exp run` takes them: "-S epochs=2 -S model.width=8".

    Empty where the commit has none, or what is no YAML: DVC could change nothing in them.
    """
    try:
        committed = yaml_values.load_flat(git("show", f"{commit}:./{paths.PARAMS.as_posix()}"))
    except ValueError:
        return ""
    if not committed:
        return ""
    return " ".join(
        f"-S {name}={value}"
        for name, value in params.items()
        if name not in committed or not yaml_values.same(committed[name], value)
    )


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""


def processor() -> str:
    """The processor's name as its maker gives it; `platform.processor()` says nothing, "x86_64" or "arm"."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    if sys.platform == "darwin":
        command = ["/usr/sbin/sysctl", "-n", "machdep.cpu.brand_string"]  # cron's PATH has no sbin
        with suppress(OSError):
            name = subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
            return name or platform.machine()
    return platform.processor() or platform.machine()
