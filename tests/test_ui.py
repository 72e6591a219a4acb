"""`onecycle ui` as a person sees it: the runs table at the printed address, and two runs compared."""

from __future__ import annotations

import re
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from browser import MARKS, chromium
from playwright.sync_api import Page
from tracked_workspace import Workspace, finish, wait_for

from onecycle.cli import parser
from onecycle.errors import UserError
from onecycle.tracking.ui import _check_free

LOSSES = {"first": [2.0, 1.5, 1.25], "second": [2.0, 1.0, 0.75]}

STAGE = """
row.tags({{"mlflow.runName": "{name}"}})
for epoch, loss in enumerate({losses}, 1): row.metrics({{"train/loss": loss}}, step=epoch)
row.metrics({{"test/accuracy": 1 - {losses}[-1] / 10, "stats/mean_red": 0.5}})
"""

pytestmark = MARKS


@pytest.fixture
def ui(tmp_path: Path) -> Iterator[tuple[str, psutil.Process]]:
    """`onecycle ui` on a store with two rows: the address of the runs table that it prints, and its process."""
    workspace = Workspace(tmp_path / "work")
    for name, losses in LOSSES.items():
        finish(workspace.stage("train", STAGE.format(name=name, losses=losses), ONECYCLE_TRACKING="journal"))
    finish(workspace.sync())
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ui = workspace.python("-c", f"from onecycle.cli import main; main(['ui', '--port', '{port}'])")
    try:
        assert ui.stdout
        printed = ui.stdout.readline()
        yield printed.split(": ", 1)[1].strip(), psutil.Process(ui.pid)
    finally:
        ui.send_signal(signal.SIGTERM)  # the server ends its worker
        ui.communicate(timeout=60)


@pytest.fixture
def page() -> Iterator[Page]:
    """A page of its own."""
    with chromium() as browser:
        page = browser.new_page(viewport={"width": 1600, "height": 1000})
        page.set_default_timeout(60_000)
        yield page
        browser.close()


def open_when_served(page: Page, address: str) -> None:
    """Open an address whose server takes some seconds to start."""
    host, port = re.findall(r"//([\d.]+):(\d+)", address)[0]

    def served() -> bool:
        with socket.socket() as probe:
            return probe.connect_ex((host, int(port))) == 0

    wait_for(served, 120)
    page.goto(address)


@pytest.mark.parametrize("port", ["0", "70000", "-1", "http"])
def test_what_is_no_port_is_refused_at_once(capsys: pytest.CaptureFixture[str], port: str) -> None:
    with pytest.raises(SystemExit, match="2"):
        parser().parse_args(["ui", f"--port={port}"])
    assert f"argument --port: must be a whole number from 1 to 65535, got {port}\n" in capsys.readouterr().err


def test_the_last_port_has_none_after_it() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 65535))
        with pytest.raises(UserError, match=r"port 65535 cannot be used .*; try `onecycle ui --port 65534`"):
            _check_free(65535)


def test_the_printed_address_shows_the_rows_and_two_of_them_compare(page: Page, ui: tuple[str, psutil.Process]) -> None:
    address, server = ui
    open_when_served(page, address)
    words, environment = server.cmdline(), server.environ()
    assert (words[words.index("--host") + 1], words[words.index("--workers") + 1]) == ("127.0.0.1", "1")
    assert environment["MLFLOW_DISABLE_TELEMETRY"] == "true"
    assert environment["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] == "false"
    for name in LOSSES:
        page.get_by_role("link", name=name, exact=True).wait_for()
    columns = [column.inner_text() for column in page.locator("[role=columnheader]").all()]
    assert {"test/accuracy", "train/loss"} <= set(columns)  # what tells runs apart is there without a click
    assert not {"stats/mean_red", "Dataset"} & set(columns)
    for accuracy in ("0.875", "0.925"):
        page.get_by_role("row").get_by_text(accuracy, exact=True).first.wait_for()
    for name in LOSSES:
        page.get_by_role("row").filter(has_text=name).get_by_role("checkbox").first.check(force=True)
    page.get_by_role("button", name="Compare").click()
    page.get_by_text("Comparing 2 Runs").first.wait_for()
    for text in ("0.875", "0.925", "1.25", "0.75"):  # accuracy and last loss of each
        page.get_by_text(text, exact=True).first.wait_for()

    page.get_by_role("link", name="train/loss").first.click()
    for name in LOSSES:
        page.get_by_text(f"{name} (train/loss)").first.wait_for(state="attached")
    lines = page.locator(".scatterlayer path.js-line")  # drawn twice, once invisibly
    assert len({line.get_attribute("d") for line in lines.all()}) == 2
