"""What makes two runs replicates of one recipe: params that differ in nothing but the seed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from onecycle import yaml_values

SEED = "seed"
NO_RECIPE = ("gate.", "runtime.")
"""Sections of params that change no result."""
ADDED: Mapping[str, Any] = {}
"""Knobs that came later, by dotted key, and what runs did before there was one. Without it no run that was kept is of
today's recipe."""


def differing(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """Dotted keys that do not have the same value in both."""
    missing = object()
    keys = dict.fromkeys([*one, *other])
    return [key for key in keys if not yaml_values.same(one.get(key, missing), other.get(key, missing))]


def with_added(params: Mapping[str, Any]) -> Mapping[str, Any]:
    """`params` with what they did of `ADDED` without saying so; no params stay none."""
    return {**ADDED, **params} if params else params


def recipe_differing(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """Those of `differing` that make another recipe."""
    changed = differing(with_added(one), with_added(other))
    return [key for key in changed if key != SEED and not key.startswith(NO_RECIPE)]
