"""What a stranger's YAML can do to its reader: trip it, or grow without bound."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Any

TRIPPED = (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError)
"""What a YAML reader trips over: `!!int ''` is an IndexError, `!!bool x` a KeyError, `!!timestamp x` …."""

MOST_VALUES = 100_000
"""In a document, aliases and merges followed: a few lines of them can stand for billions."""

MOST_DEPTH = 100
"""Of mappings and lists in each other; params.yaml has two, dvc.lock five."""


def check_size(root: Any) -> None:
    """Raise ValueError if a document holds more; it is composed by ruamel or PyYAML, and not yet constructed."""
    if sum(1 for _ in islice(_nodes(root), MOST_VALUES + 1)) > MOST_VALUES:
        raise ValueError(f"holds more than {MOST_VALUES:,} values")


def _nodes(root: Any) -> Iterator[Any]:
    """`root` and all below it, as often as they are referred to; without end where one refers to itself."""
    todo = [] if root is None else [root]
    while todo:
        node = todo.pop()
        yield node
        if isinstance(node.value, list):  # of nodes, or of a key and its value
            todo += [part for item in node.value for part in (item if isinstance(item, tuple) else (item,))]
