"""What can be in the way between a row and its store."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from onecycle.errors import UserError
from onecycle.tracking.redaction import without_secrets


class StoreError(Exception):
    """The store does not take something now; it stays in the journal. One sentence, without secrets."""


class DeletedRowError(Exception):
    """A person deleted the row."""


@contextmanager
def guarded() -> Iterator[None]:
    """Turn whatever a store raises into `StoreError`: MLflow lets through what drivers and clients of S3 raise, too, or
    that they are not installed.
    """
    try:
        yield
    except (StoreError, DeletedRowError, UserError):
        raise
    except Exception as error:
        raise StoreError(_sentence(error)) from error


def _sentence(error: Exception) -> str:
    """An error's first line that tells something, short and without secrets."""
    ours = isinstance(error, (LookupError, TypeError, AttributeError, AssertionError))  # whose words alone say little
    lines = without_secrets(f"{type(error).__name__}: {error}" if ours else str(error)).strip().splitlines()
    # SQLAlchemy begins with what it was about to do
    first = next((line for line in lines if not line.startswith("(raised as a result of")), "") or type(error).__name__
    return first if len(first) <= 300 else f"{first[:299]}…"
