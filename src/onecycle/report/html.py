"""What the pages have in common: how a template becomes text, and the look."""

from __future__ import annotations

from importlib.resources import files

from jinja2 import Environment, PackageLoader, StrictUndefined, Template

from onecycle.report import words


def template(name: str) -> Template:
    """A template beside this module, with numbers in words as filters; what is put in is escaped."""
    environment = Environment(
        loader=PackageLoader("onecycle.report"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    for filter_name in ("percent", "points", "count", "rate", "plain"):
        environment.filters[filter_name] = getattr(words, filter_name)
    return environment.get_template(name)


def asset(name: str) -> str:
    """The text of a style sheet or script."""
    return (files("onecycle.report") / "templates" / name).read_text(encoding="utf-8")
