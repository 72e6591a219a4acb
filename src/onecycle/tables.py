"""Sentences and tables that read the same in a terminal and in a pull request."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import NamedTuple

from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from onecycle.errors import printable_lines


class Table(NamedTuple):
    """Cells as text, the first column to the left and numbers to the right."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


Page = Sequence[str | Table]

_AS_TEXT = {ord(sign): f"\\{sign}" for sign in "\\`*_~[]|"} | {ord(sign): f"&#{ord(sign)};" for sign in "&#<>@"}
"""Signs of GitHub's Markdown; a mention, an issue's number and an entity are no less its than a star."""

NO_WIDTH = 10_000
"""Columns of a pipe or a file, which has no width; rich would take 80."""


def write(page: Page, for_pull_request: bool) -> None:
    """Print a page: as Markdown, or for the terminal."""
    if for_pull_request:
        print(markdown(page))
    else:
        show(page)


def markdown(page: Page) -> str:
    """GitHub's Markdown. What a branch may have named itself stays text: no markup, no cell of its own."""
    return "\n\n".join(_markdown_table(part) if isinstance(part, Table) else _escaped(part) for part in page) + "\n"


def _markdown_table(table: Table) -> str:
    marks = ["---", *["---:"] * (len(table.columns) - 1)]
    lines = [[_escaped(cell) for cell in row] for row in table.rows]
    body = "\n".join(f"| {' | '.join(cells)} |" for cells in (table.columns, marks, *lines))
    return f"**{_escaped(table.title)}**\n\n{body}"


def _escaped(text: str) -> str:
    return " ".join(text.translate(_AS_TEXT).split())


class _Terminal(Console):
    """Leaves a reader that has gone to whoever ends the process: rich would, with 1, which is the gate's word."""

    def on_broken_pipe(self) -> None:
        raise


def show(page: Page) -> None:
    """Print to the terminal, or whole lines into a pipe. What a branch may have named itself steers nothing."""
    console = _Terminal(highlight=False)
    if not (console.is_terminal or "COLUMNS" in os.environ):
        console.width = NO_WIDTH
    for part in page:
        if isinstance(part, Table):
            shown = RichTable(title=_text(part.title), title_justify="left", show_header=any(part.columns))
            for position, column in enumerate(part.columns):  # folded: names may differ in nothing but their ends
                shown.add_column(column, justify="right" if position else "left", overflow="fold")
            for row in part.rows:
                shown.add_row(*(_text(cell) for cell in row))
            console.print(shown)
        else:
            console.print(_text(part))


def _text(words: str) -> Text:
    return Text(printable_lines(words))
