"""Headless Chromium, Debian's own, for tests that look at a page as a person does."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from playwright.sync_api import Browser, sync_playwright

CHROMIUM = shutil.which("chromium")

MARKS = [
    pytest.mark.skipif(CHROMIUM is None, reason="needs Debian's chromium: apt-get install chromium"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),  # playwright's pipes, closed by its own process
]


@contextmanager
def chromium() -> Iterator[Browser]:
    """A browser that has not talked to anybody."""
    with sync_playwright() as playwright:
        arguments = ["--no-sandbox"] if os.geteuid() == 0 else []  # it refuses a sandbox to root
        yield playwright.chromium.launch(executable_path=CHROMIUM, args=arguments)
