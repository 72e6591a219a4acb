"""The changes in a workspace that no commit holds, as a patch for its row: without them it could not be made again."""

from __future__ import annotations

import re
import subprocess
from dataclasses import dataclass
from pathlib import Path
from shutil import copyfile
from tempfile import TemporaryDirectory

from onecycle.dvc_lock import CODE
from onecycle.errors import UserError
from onecycle.git_command import complaint, run_git
from onecycle.tracking.git import RESULTS, SECONDS
from onecycle.tracking.redaction import without_secrets

LARGEST = 2**20
"""Bytes of a patch that a row keeps."""
KEPT, REDACTED = "kept", "kept, secrets left out"
EMPTY = "empty: nothing that stages are made of"
EXCLUDED = (*RESULTS, ":(exclude).dvc")
"""What the pipeline itself writes, and DVC's settings, which may hold what opens a remote."""
PRIVATE = tuple(f":(exclude,glob)**/{name}" for name in (".*", "*.pem", "*.key"))
"""Of new files those that are no code, and may hold what no row should."""

# Whatever a user's own settings say, `git apply` is to read it.
_DIFF = (
    *("diff", "--binary", "--full-index", "--no-renames", "--no-color", "--no-ext-diff", "--no-textconv"),
    *("--unified=3", "--no-relative", "--submodule=short"),
    *("--src-prefix=a/", "--dst-prefix=b/", "HEAD", "--", ".", *EXCLUDED),
)

_PRIVATE_KEY = re.compile(r"^\+.*-----BEGIN [A-Z ]*PRIVATE KEY-----", re.MULTILINE)


@dataclass(frozen=True)
class Patch:
    """What `git apply` takes in the top folder of a repository at HEAD."""

    content: bytes
    """Empty where there is nothing to keep, or it cannot be kept."""
    note: str
    """Whether it is kept, and why it is not; empty where there is nothing."""


def take() -> Patch:
    """The patch of the workspace as it is now: tracked files that were changed, and new ones among the code."""
    try:
        content = _difference()
    except subprocess.TimeoutExpired:
        return Patch(b"", f"not kept: git took more than {SECONDS:g} seconds")
    except (UserError, OSError) as error:
        return Patch(b"", f"not kept: {error}")
    if len(content) > LARGEST:
        return Patch(b"", f"not kept: {len(content) / 2**20:.1f} MiB, above {LARGEST / 2**20:g}")
    if not content:
        return Patch(b"", "")
    text = content.decode("utf-8", "surrogateescape")
    if _PRIVATE_KEY.search(text):
        return Patch(b"", "not kept: it holds a private key")
    redacted = without_secrets(text)
    if not _applies(text, redacted):
        return Patch(b"", "not kept: without the secrets in it, it would not apply")
    return Patch(redacted.encode("utf-8", "surrogateescape"), KEPT if redacted == text else REDACTED)


def _applies(text: str, redacted: str) -> bool:
    """Whether git takes the one patch where it takes the other: they differ in nothing but lines that are added."""
    lines, others = text.split("\n"), redacted.split("\n")
    same = (one == other or (one[:1] == "+" and other[:1] == "+") for one, other in zip(lines, others, strict=False))
    return len(lines) == len(others) and all(same)


def _difference() -> bytes:
    """New files must be in an index to be in a patch; the user's own stays as it is, so a copy takes them."""
    with TemporaryDirectory(prefix="onecycle-") as folder:
        index = Path(folder) / "index"
        copyfile(_git("rev-parse", "--git-path", "index").decode().strip(), index)
        # elsewhere a file that git does not know yet may be anything, a password too
        new = _git("ls-files", "-z", "--others", "--exclude-standard", "--", *CODE, *PRIVATE)
        if new:
            paths = ("--pathspec-from-file=-", "--pathspec-file-nul")
            _git("--literal-pathspecs", "add", "--intent-to-add", *paths, index=index, given=new)
        return _git(*_DIFF, index=index)


def _git(*arguments: str, index: Path | None = None, given: bytes | None = None) -> bytes:
    environment = {"GIT_INDEX_FILE": str(index)} if index else None
    done = run_git(*arguments, seconds=SECONDS, environment=environment, given=given)
    if done.returncode != 0:
        raise UserError(complaint(done))
    return done.stdout
