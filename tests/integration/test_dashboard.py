"""The dashboard of real programs, in a real browser where there is one.

The browser is Chromium, which Playwright drives. Both are looked for, and the tests that need them are skipped without.
The default selection has the quickest of them.
"""

from __future__ import annotations

import os
import shutil
import signal
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

from tests.support.processes import (
    eventually,
    running,
    running_broker,
    running_gateway,
    running_gateway_with_broker,
    running_workers,
    status,
    wait_for_workers,
)
from zmq_offload import Client
from zmq_offload.cli.main import main
from zmq_offload.net.credentials import token_entry

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
PATIENCE = 20_000
"""Milliseconds that the page may take to show something."""


@contextmanager
def running_dashboard(frontend: str, *options: str) -> Iterator[str]:
    """The URL of a dashboard on a free port."""
    with running("-m", "zmq_offload", "dashboard", "--broker", frontend, "--http", "127.0.0.1:0", *options) as process:
        address = process.wait_for(r"^ready http=(\S+)$")[1]
        yield f"http://{address}"
        assert process.end() == 0


def first_event(url: str, token: str = "") -> bytes:
    """The first event of a dashboard."""
    request = urllib.request.Request(f"{url}/dashboard/events")
    if token:
        request.add_header("Authorization", f"Bearer {token}")
    with urllib.request.urlopen(request, timeout=10) as answer:
        assert answer.headers["Content-Type"] == "text/event-stream"
        line: bytes = answer.readline()
        return line


def test_a_dashboard_is_served_and_ends() -> None:
    with running_broker() as broker, running_dashboard(broker.frontend) as url:
        with urllib.request.urlopen(f"{url}/", timeout=10) as page:
            assert b"<title>zmq-offload</title>" in page.read()
        assert first_event(url) == b"event: state\n"


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("none", "--http none serves no page; give HOST:PORT"),
        ("0.0.0.0:0", "0.0.0.0:0 can be reached from other machines, and this page has no tokens"),
    ],
)
def test_an_address_that_does_not_do_is_refused(address: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["dashboard", "--http", address]) == 1
    assert said in capsys.readouterr().err


def test_a_gateway_serves_it_to_those_with_a_token_for_all_models(tmp_path: Any) -> None:
    access = tmp_path / "access"
    token = "t" * 40
    access.write_text(f"{token_entry(token)} ops\n")
    with running_broker() as broker:
        options = ("--dashboard", "--access-list", str(access))
        with running_gateway(broker.frontend, options=options) as gateway:
            with urllib.request.urlopen(f"{gateway.url}/dashboard", timeout=10) as page:
                assert b"<title>zmq-offload</title>" in page.read()
            with pytest.raises(urllib.error.HTTPError, match="401"):
                first_event(gateway.url)
            assert first_event(gateway.url, token) == b"event: state\n"


@pytest.fixture(name="browser", scope="module")
def _browser() -> Iterator[Any]:
    if CHROMIUM is None:
        pytest.skip("needs chromium")
    playwright = pytest.importorskip("playwright.sync_api", reason="needs the package playwright")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"], timeout=120_000)
        yield browser
        browser.close()


@pytest.fixture(name="page")
def _page(browser: Any) -> Iterator[Any]:
    """A page of a browser; at the end, it must have written nothing to its console."""
    page = browser.new_page(color_scheme="light", viewport={"width": 1280, "height": 900})
    page.set_default_timeout(PATIENCE)
    said: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    yield page
    page.close()
    assert said == []


def waits_for(page: Any, condition: str) -> None:
    """Wait until JavaScript is true in the page. `text(id)` is the text of an element."""
    page.wait_for_function(
        f"() => {{ const text = (id) => document.getElementById(id).innerText; return {condition} }}"
    )


def colors(page: Any) -> str:
    found: str = page.evaluate("getComputedStyle(document.body).backgroundColor")
    return found


@pytest.mark.observers
def test_the_page_shows_load_and_a_worker_that_dies_and_comes_back(page: Any) -> None:
    with running_broker() as broker, running_dashboard(broker.frontend) as url:
        page.goto(url)
        waits_for(
            page, "text('state') === 'broker up' && text('workers-empty').includes('zmq-offload worker --broker')"
        )
        assert page.locator("#tile-workers").inner_text() == "0"

        with (
            running_workers(broker.backend, "--executor", "echo", "--processes", "2"),
            Client(broker.frontend) as client,
        ):
            pid = wait_for_workers(broker.frontend, 2)[0]
            name = next(each["name"] for each in status(broker.frontend)["workers"] if each["name"].endswith(f"-{pid}"))
            waits_for(page, "text('tile-workers') === '2' && text('models').includes('echo')")

            def load() -> bool:
                for _ in range(20):
                    client.infer("echo", {"x": np.zeros(3, np.float32)})
                return float(page.locator("#tile-requests").inner_text().replace(",", "")) > 0

            eventually(load)
            waits_for(
                page, "/\\d/.test(text('tile-p99')) && document.querySelector('#chart-latency .s3').getTotalLength()"
            )

            os.kill(pid, signal.SIGKILL)
            page.locator("#workers tr.lost", has_text=name).wait_for()
            red = page.locator("#workers tr.lost").evaluate("(row) => getComputedStyle(row).backgroundColor")
            ready = page.locator("#workers tr.ready").first.evaluate("(row) => getComputedStyle(row).backgroundColor")
            assert red != ready
            page.locator("#workers tr.ready", has_text=f"came back for {name}").wait_for()
            page.locator("#workers tr.lost").wait_for(state="detached")


def test_the_page_fits_a_phone_and_has_two_colors(page: Any) -> None:
    with running_gateway_with_broker("--dashboard") as (gateway, fabric):
        page.set_viewport_size({"width": 360, "height": 740})
        hostile = f'<img src=x onerror="console.log(1)">{"a" * 60}'
        with running_workers(fabric.backend, "--executor", "echo", "--name", hostile):
            page.goto(f"{gateway.url}/dashboard")
            waits_for(page, "text('tile-workers') === '1'")
            shown = page.locator("#workers tbody th span")
            assert shown.get_attribute("title") == hostile and page.locator("#workers img").count() == 0
            assert shown.inner_text().startswith("<img src=x onerror=") and len(shown.inner_text()) == 64
            assert page.evaluate("document.documentElement.scrollWidth") == 360
        light = colors(page)
        page.emulate_media(color_scheme="dark")
        dark = eventually(lambda: (now := colors(page)) != light and now)
        page.locator("#theme").focus()
        page.keyboard.press("Enter")
        assert colors(page) == light
        page.keyboard.press("Enter")
        assert colors(page) == dark
        page.locator("#chart-throughput").hover()
        assert page.locator("#chart-throughput .tip").inner_text().splitlines()[1].startswith("served ")


@pytest.mark.observers
def test_the_page_says_that_there_is_no_broker_and_sees_it_come_back(page: Any) -> None:
    with running_broker() as broker:
        frontend, backend = broker.frontend, broker.backend
        with running_dashboard(frontend) as url:
            page.goto(url)
            waits_for(page, "text('state') === 'broker up'")
            broker.broker.kill()
            waits_for(page, "text('state') === 'no broker' && text('notice').includes('no broker answered')")
            with running_broker(frontend=frontend, backend=backend):
                waits_for(page, "text('state') === 'broker up' && text('notice') === ''")
