"""How a refused params.yaml is put into words: one sentence with key, rule and value, and a guess at what was meant."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import get_args

from pydantic import BaseModel, ValidationError

from onecycle.yaml_values import spelled

_RULES = {
    "int_type": "an integer",
    "float_type": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "greater_than": "> {gt}",
    "greater_than_equal": "≥ {ge}",
    "less_than": "< {lt}",
    "less_than_equal": "≤ {le}",
}


def sentence(name: str, model: type[BaseModel], error: ValidationError) -> str:
    """The first refusal as one sentence; unknown keys first, since they explain a missing one."""
    unknown = ("extra_forbidden", "invalid_key")  # the other kind: a key that is no string
    detail = min(error.errors(include_url=False), key=lambda detail: detail["type"] not in unknown)
    kind, value, context = detail["type"], detail["input"], detail.get("ctx", {})
    key = _line(".".join(str(part) for part in detail["loc"]))
    if kind in unknown:
        close = difflib.get_close_matches(key, _all_keys(model), n=1, cutoff=0.5)
        hint = f"; did you mean {close[0]}?" if close else "; params.yaml documents the known ones"
        return f"{name}: unknown key {key}{hint}"
    if kind == "missing":
        return f"{name}: key {key} is missing"
    if kind == "model_type":
        return f"{name}: {key} must be a section with keys of its own, got {shown(value)}"
    if kind == "literal_error":
        rule = f"be one of {', '.join(shown(choice) for choice in _choices(model, key))}"
    elif kind == "value_error":
        rule = str(context["error"])
        rule = rule.removeprefix("must ")
    else:
        rule = "be " + _RULES.get(kind, detail["msg"]).format(**context)
    return f"{name}: {key} must {rule}, got {shown(value)}"


def _choices(model: type[BaseModel], key: str) -> tuple[object, ...]:
    section, _, field = key.rpartition(".")
    return get_args(_sections(model).get(section, model).model_fields[field].annotation)


def _sections(model: type[BaseModel]) -> Mapping[str, type[BaseModel]]:
    fields = {key: field.annotation for key, field in model.model_fields.items()}
    return {key: kind for key, kind in fields.items() if isinstance(kind, type) and issubclass(kind, BaseModel)}


def _all_keys(model: type[BaseModel]) -> list[str]:
    """Every section and dotted key of `model`."""
    inner = {key: kind.model_fields for key, kind in _sections(model).items()}
    return [full for key in model.model_fields for full in (key, *(f"{key}.{name}" for name in inner.get(key, ())))]


def shown(value: object) -> str:
    """A value as a person wrote it: strings in quotes, YAML's spelling of the rest, one short line."""
    match value:
        case None | bool():
            return {None: "null", True: "true", False: "false"}[value]
        case str():
            return _line(f'"{value}"')
        case Mapping():
            return "keys and values"
        case list() | tuple() | set():
            return "a list"  # which is not spelled out, since its aliases may make billions of a few lines
        case int():
            return _line(spelled(value))
    return _line(str(value))


def _line(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= 60 else text[:57] + "…"
