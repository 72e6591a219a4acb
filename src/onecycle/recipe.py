"""What makes two runs replicates of one recipe: params that differ in nothing but the seed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from onecycle import yaml_values

SEED = "seed"
NO_RECIPE = ("gate.", "runtime.")
"""Sections of params that change no result."""


def differing(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """Dotted keys that do not have the same value in both."""
    missing = object()
    keys = dict.fromkeys([*one, *other])
    return [key for key in keys if not yaml_values.same(one.get(key, missing), other.get(key, missing))]


def recipe_differing(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """Those of `differing` that make another recipe."""
    return [key for key in differing(one, other) if key != SEED and not key.startswith(NO_RECIPE)]
