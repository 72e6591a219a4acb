"""Tell and draw what the other stages found: one self-contained page, and its figures as pictures."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

from onecycle import paths
from onecycle.params import Params
from onecycle.png import save_png
from onecycle.report import figures, page, read
from onecycle.stage import run
from onecycle.tracking import Row


def main(params: Params, row: Row) -> None:
    """Write results/report: index.html and figures/*.png."""
    inputs = read(params)
    paths.REPORT_FIGURES.mkdir(parents=True, exist_ok=True)
    for name, figure in figures(inputs).items():
        save_png(figure, paths.REPORT_FIGURES / f"{name}.png")
    html = page(inputs)
    paths.REPORT_HTML.write_text(html, encoding="utf-8", newline="\n")
    if told := row.this_execution():  # times and hardware, for the row's copy only: what DVC holds must not know them
        with TemporaryDirectory(prefix="onecycle-") as folder:
            copy = Path(folder) / paths.REPORT_HTML.name
            copy.write_text(page(inputs, told), encoding="utf-8", newline="\n")
            row.artifact(copy)
    print(f"{paths.REPORT_HTML}: {len(html.encode()) / 1e6:.1f} MB, opens in any browser")


if __name__ == "__main__":
    run("report", main)
