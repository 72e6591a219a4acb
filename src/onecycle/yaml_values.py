"""params.yaml and dvc.lock as DVC wrote them: dotted keys and comparable values.

Read with PyYAML's C loader: a stage waits for this, and the pure Python reader takes half a second for a dvc.lock.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from decimal import Decimal
from typing import Any

import yaml

from onecycle.yaml_limits import MOST_DEPTH, TRIPPED, check_size

MOST_BITS = 4096
"""Of an integer in decimal; Python spells none of more than 4,300 digits."""

CONFLICT = re.compile(rb"^<{7} ", re.MULTILINE)


def load(text: str | bytes) -> dict[str, Any]:
    """A YAML document whose top is a mapping; empty for any other.

    Raises:
        ValueError: it is no YAML, or larger or nested deeper than `yaml_limits` allows.
    """
    kind = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        _check_depth(yaml.parse(text, Loader=kind))
        loader = kind(text)
        root = loader.get_single_node()
        check_size(root)
        tree = None if root is None else loader.construct_document(root)
    except (yaml.YAMLError, *TRIPPED) as error:
        conflict = CONFLICT.search(text.encode() if isinstance(text, str) else text)
        why = "holds the marks of a merge conflict" if conflict else " ".join(str(error).split())
        raise ValueError(f"cannot be read as YAML: {why}") from None
    return tree if isinstance(tree, dict) else {}


def load_flat(text: str | bytes) -> dict[str, Any]:
    """`flat` of a document. Raises `ValueError` as `load` does."""
    return flat(load(text))


def _check_depth(events: Iterable[yaml.Event]) -> None:
    """Raise ValueError if a document is nested too deep: to compose it, the C loader would overflow its stack."""
    depth = 0
    for event in events:
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > MOST_DEPTH:
            raise ValueError(f"is nested more than {MOST_DEPTH} deep")


def flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one with dotted keys: {"data": {"limit": 5}} → {"data.limit": 5}."""
    leaves: dict[str, Any] = {}
    for key, value in tree.items():
        leaves |= flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return leaves


def spelled(value: object) -> str:
    """A value as YAML spells it, and as every reader of it understands: 0.00000001, since to many 1e-08 is a string."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, int) and value.bit_length() > MOST_BITS:
        return f"{value:#x}"
    return f"{Decimal(repr(value)):f}" if isinstance(value, float) and math.isfinite(value) else str(value)


def same(one: object, other: object) -> bool:
    """Equal as values: 10 and 10.0, and 0.00001 and DVC's 1e-05, which YAML 1.1 takes for text."""
    try:
        return float(one) == float(other)  # type: ignore[arg-type]
    except (OverflowError, TypeError, ValueError):
        return spelled(one) == spelled(other)


def within(key: str, wanted: tuple[str, ...]) -> bool:
    """Whether a dotted key is one of `wanted`, or in a section that is, as dvc.yaml lists params."""
    return any(key == name or key.startswith(f"{name}.") for name in wanted)
