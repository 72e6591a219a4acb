"""What can be in the way between a row and its store."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager

from onecycle.tracking.redaction import without_secrets


class StoreError(Exception):
    """The store does not take something now; it stays in the journal. One sentence, without secrets."""


class DeletedRowError(Exception):
    """A person deleted the row."""


@contextmanager
def guarded() -> Iterator[None]:
    """Turn whatever a store raises into `StoreError`."""
    import requests
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (MlflowException, SQLAlchemyError, sqlite3.Error, requests.RequestException, OSError) as error:
        raise StoreError(_sentence(error)) from None


def _sentence(error: Exception) -> str:
    """An error's first line, short and without secrets."""
    first = next(iter(without_secrets(str(error)).strip().splitlines()), "") or type(error).__name__
    return first if len(first) <= 300 else f"{first[:299]}…"
