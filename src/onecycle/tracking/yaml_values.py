"""params.yaml and dvc.lock as DVC wrote them: dotted keys and comparable values.

Read with PyYAML's C loader: a stage waits for this, and the pure Python reader takes half a second for a dvc.lock.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any

MOST_VALUES = 100_000
"""In a document, aliases followed: a few lines of them can stand for billions."""

_REFUSALS = (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError)
"""What PyYAML's constructors trip over: `!!int ''` is an IndexError, `!!bool x` a KeyError."""


def load(text: str | bytes) -> dict[str, Any]:
    """A YAML document whose top is a mapping; empty for any other.

    Raises:
        ValueError: it is no YAML, or holds more than `MOST_VALUES`.
    """
    import yaml  # here, since most stages need none

    try:
        tree = yaml.load(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except (yaml.YAMLError, *_REFUSALS) as error:
        raise ValueError(f"no YAML: {' '.join(str(error).split())}") from None
    if sum(1 for _ in islice(_values(tree), MOST_VALUES + 1)) > MOST_VALUES:
        raise ValueError(f"holds more than {MOST_VALUES:,} values")
    return tree if isinstance(tree, dict) else {}


def _values(tree: object) -> Iterator[object]:
    """Every value of a document, as often as it is referred to; without end where it refers to itself."""
    todo = [tree]
    while todo:
        value = todo.pop()
        yield value
        if isinstance(value, Mapping):
            todo += value.values()
        elif isinstance(value, list | tuple | set):
            todo += value


def flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one with dotted keys: {"data": {"limit": 5}} → {"data.limit": 5}."""
    leaves: dict[str, Any] = {}
    for key, value in tree.items():
        leaves |= flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return leaves


def spelled(value: object) -> str:
    """A value as YAML spells it."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return str(value)


def same(one: object, other: object) -> bool:
    """Equal as values: 10 and 10.0, and 0.00001 and DVC's 1e-05, which YAML 1.1 takes for text."""
    try:
        return float(one) == float(other)  # type: ignore[arg-type]
    except (OverflowError, TypeError, ValueError):
        return spelled(one) == spelled(other)
