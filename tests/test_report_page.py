"""The report in a browser: nothing from outside, nothing broken, nothing cut off, on any screen and on paper."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from browser import MARKS, chromium
from conftest import command
from playwright.sync_api import Browser, Page

from onecycle import paths

pytestmark = MARKS

SCREENS = [(1400, 900), (800, 1000), (380, 844)]
LARGEST = 4_000_000
"""Bytes: "a few MB at most"."""

OVERFLOWING = """() => {
  const clipped = (element) => {
    for (let box = element.parentElement; box; box = box.parentElement)
      if (getComputedStyle(box).overflowX !== "visible") return true;
    return false;
  };
  const wide = innerWidth + 0.5;
  return [...document.body.querySelectorAll("*")]
    .filter((element) => element.checkVisibility() && !clipped(element) && !element.closest("svg.sprites"))
    .filter((element) => {
      const box = element.getBoundingClientRect();
      return box.width && (box.right > wide || box.left < -0.5);
    })
    .map((element) => `${element.tagName}.${element.className.baseVal ?? element.className}`);
}"""

EMPTY = """async () => {
  const broken = [];
  for (const image of document.querySelectorAll("img, svg image")) {
    const picture = new Image();
    picture.src = image.getAttribute("src") ?? image.getAttribute("href");
    await picture.decode().catch(() => broken.push(picture.src.slice(0, 60)));
  }
  for (const plot of document.querySelectorAll(".plot")) {
    const drawn = [...plot.querySelectorAll("path.line, rect.bar, .single")].filter((part) => {
      const box = part.getBoundingClientRect();
      return box.width > 3 || box.height > 3;
    });
    if (!drawn.length) broken.push(plot.querySelector("[role=img]").getAttribute("aria-label"));
  }
  return broken;
}"""

OVERLAPPING = """() => {
  const found = [];
  for (const plot of document.querySelectorAll(".plot")) {
    const words = [...plot.querySelectorAll(".tick, .label")].filter((word) => word.checkVisibility());
    const boxes = words.map((word) => word.getBoundingClientRect());
    boxes.forEach((a, i) => boxes.slice(i + 1).forEach((b, j) => {
      if (a.left < b.right && b.left < a.right && a.top < b.bottom && b.top < a.bottom)
        found.push(`${words[i].textContent} on ${words[i + 1 + j].textContent}`);
    }));
  }
  return found;
}"""

PALE = """() => {
  // WCAG 2.2: contrast of text with what lies behind it, 4.5 or, for large text, 3
  const canvas = new OffscreenCanvas(1, 1).getContext("2d", { willReadFrequently: true });
  const painted = (colours) => {
    canvas.clearRect(0, 0, 1, 1);
    for (const colour of colours) { canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1); }
    return [...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3);
  };
  const light = (colour) => {
    const [r, g, b] = colour.map((c) => c / 255).map((c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const found = new Set();
  for (const element of document.body.querySelectorAll("*")) {
    const own = [...element.childNodes].some((node) => node.nodeType === 3 && node.textContent.trim());
    if (!own || !element.checkVisibility() || ["SCRIPT", "STYLE"].includes(element.tagName)) continue;
    const behind = [];
    for (let box = element; box; box = box.parentElement) behind.unshift(getComputedStyle(box).backgroundColor);
    const style = getComputedStyle(element);
    const back = painted(["white", ...behind]), front = painted(["white", ...behind, style.color]);
    const [low, high] = [light(back), light(front)].sort((a, b) => a - b);
    const ratio = (high + 0.05) / (low + 0.05);
    const large = parseFloat(style.fontSize) >= 24;
    if (ratio < (large ? 3 : 4.5)) found.add(`${element.tagName}.${element.className} ${ratio.toFixed(2)}`);
  }
  return [...found];
}"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as browser:
        yield browser


@pytest.fixture(scope="module")
def report(pipeline: Path) -> Path:
    return pipeline / paths.REPORT_HTML


class Visit:
    """An opened page, and what it did."""

    def __init__(self, browser: Browser, report: Path, width: int, height: int, scheme: Any = "light") -> None:
        self.said: list[str] = []
        self.asked: list[str] = []
        self.context = browser.new_context(
            viewport={"width": width, "height": height}, color_scheme=scheme, offline=True
        )
        self.page: Page = self.context.new_page()
        self.page.set_default_timeout(120_000)
        self.page.on("console", lambda message: self.said.append(f"{message.type}: {message.text}"))
        self.page.on("pageerror", lambda error: self.said.append(f"raised: {error}"))
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.goto(report.as_uri())


@pytest.fixture
def visit(browser: Browser, report: Path) -> Iterator[Any]:
    visits: list[Visit] = []

    def opened(*arguments: Any) -> Visit:
        visits.append(Visit(browser, report, *arguments))
        return visits[-1]

    yield opened
    for one in visits:
        one.context.close()


def test_the_page_is_one_file_of_bounded_size(report: Path) -> None:
    assert report.stat().st_size <= LARGEST


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize(("width", "height"), SCREENS)
def test_a_screen_shows_all_of_it(visit: Any, report: Path, width: int, height: int, scheme: str) -> None:
    seen = visit(width, height, scheme)
    page = seen.page
    page.evaluate("document.querySelectorAll('details').forEach((part) => (part.open = true))")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate(OVERFLOWING) == []
    assert page.evaluate(OVERLAPPING) == []
    assert page.evaluate(EMPTY) == []
    assert page.evaluate(PALE) == []
    assert seen.said == []
    assert [url for url in seen.asked if not url.startswith("data:")] == [report.as_uri()]


@pytest.mark.parametrize("width", [1400, 800, 680])
def test_on_paper_nothing_is_cut_off(visit: Any, width: int) -> None:
    """680 px are A4 between its margins."""
    page = visit(width, 1000, "dark").page
    page.emulate_media(media="print")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate(OVERFLOWING) == []
    wide = "[...document.querySelectorAll('pre, .scroll')].filter((box) => box.scrollWidth > box.clientWidth).length"
    assert page.evaluate(wide) == 0, "paper cannot be scrolled"
    assert page.evaluate("getComputedStyle(document.body).color") == "rgb(22, 25, 29)", "dark on white, always"
    assert not page.locator("nav").is_visible()
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert page.evaluate("[...document.querySelectorAll('details.gallery')].every((part) => part.open)")


def test_a_chart_is_read_with_the_keyboard(visit: Any) -> None:
    page = visit(1400, 900).page
    slider = page.locator("#curves input").first
    slider.focus()
    before = slider.get_attribute("aria-valuetext")
    assert before is not None and "train" in before and "validation" in before
    words = page.locator("#curves .where").first
    shown = words.inner_text()
    page.keyboard.press("Home")
    assert words.inner_text() != shown
    assert page.evaluate("getComputedStyle(document.activeElement.closest('.plot')).outlineStyle") == "solid"
    first = slider.get_attribute("aria-valuetext") or ""
    assert first != before
    assert first.startswith(words.inner_text())
    train, held_out = page.locator("#curves .chart").first.locator(".legend b").all_inner_texts()
    assert first.endswith(f", train {train}, validation {held_out}")
    page.keyboard.press("ArrowRight")
    assert slider.get_attribute("aria-valuetext") != first


def test_a_pointer_reads_charts_and_matrix(visit: Any) -> None:
    page = visit(1400, 900).page
    chart = page.locator("#range-test .plot").first
    chart.hover(position={"x": 40, "y": 40})
    near = page.locator("#range-test .where").first.inner_text()
    chart.hover(position={"x": 400, "y": 40})
    assert page.locator("#range-test .where").first.inner_text() != near
    page.locator(".confusion td.right").first.hover()
    assert "recognised" in page.locator(".confusion-reading").inner_text()


def test_a_press_reads_what_the_pointer_is_over(visit: Any) -> None:
    """Also where readings are not evenly spread, for which the slider itself takes them."""
    page = visit(1400, 900).page
    for section in ("#calibration", "#curves"):
        chart, where = page.locator(f"{section} .plot").first, page.locator(f"{section} .where").first
        for x in range(30, int(chart.bounding_box()["width"]), 60):
            chart.hover(position={"x": x, "y": 40})
            read = where.inner_text()
            chart.click(position={"x": x, "y": 40})
            assert where.inner_text() == read, (section, x)


def test_everything_has_a_name_and_a_place_for_assistive_technology(visit: Any) -> None:
    page = visit(1400, 900).page
    assert page.evaluate("[...document.images].every((image) => image.alt)")
    assert page.get_by_role("navigation", name="Contents").count() == 1
    assert page.get_by_role("main").count() == 1
    assert page.get_by_role("heading", level=1).count() == 1
    sliders = page.get_by_role("slider")
    assert sliders.count() == page.locator(".plot").count()
    assert page.evaluate("[...document.querySelectorAll('[role=img]')].every((one) => one.ariaLabel)")
    levels = page.evaluate("[...document.querySelectorAll('h1, h2, h3')].map((heading) => Number(heading.tagName[1]))")
    assert all(later <= earlier + 1 for earlier, later in pairwise(levels)), "no level is skipped"


def test_a_phone_folds_all_galleries_but_the_first(visit: Any) -> None:
    page = visit(380, 844).page
    folded = page.evaluate("[...document.querySelectorAll('details.gallery')].map((part) => part.open)")
    assert folded == [True, *[False] * (len(folded) - 1)]


def test_the_copy_in_mlflow_adds_what_is_true_of_one_execution(browser: Browser, pipeline: Path, report: Path) -> None:
    assert "This execution" not in report.read_text(encoding="utf-8")
    [copy] = (pipeline / "mlartifacts").glob("**/report/index.html")
    figures = {file.name: file.read_bytes() for file in (pipeline / paths.REPORT_FIGURES).iterdir()}
    assert {file.name: file.read_bytes() for file in (copy.parent / "figures").iterdir()} == figures
    page = Visit(browser, copy, 1400, 900).page
    table = page.locator("#execution")
    for words in ("seconds", "train", "images a second", "processor", platform.node(), "commit"):
        assert table.get_by_text(words, exact=True).first.is_visible(), words
    assert page.evaluate(OVERFLOWING) == []


@pytest.mark.parametrize("words", [("show",), ("diff", "HEAD")], ids=["show", "diff"])
def test_dvc_draws_its_plots_offline(browser: Browser, workspace: Path, words: tuple[str, ...]) -> None:
    """With Vega from the template in .dvc/plots, not from a CDN."""
    history = workspace / paths.HISTORY
    history.write_text(history.read_text(encoding="utf-8").replace("\n3,", "\n4,"), encoding="utf-8")
    command(workspace, "dvc", "plots", *words, "--out", "drawn")
    seen = Visit(browser, workspace / "drawn/index.html", 1400, 900)
    seen.page.wait_for_function("document.querySelectorAll('.vega-embed canvas').length === 5")
    text = (workspace / "drawn/index.html").read_text(encoding="utf-8")  # the page drops its specs once they are drawn
    for name in ("loss", "accuracy", "learning rate", "range test", "confusion"):
        assert name in text
    assert ('"rev": "HEAD"' in text) == (len(words) == 2)
    assert [words for words in seen.said if not words.startswith(("warning:", "info:", "log:"))] == []
    assert [url for url in seen.asked if not url.startswith("data:")] == [seen.page.url]
