"""Those who look at the dashboard."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import msgspec
import pytest

from tests.dashboard.snapshots import status
from zmq_offload.dashboard import watch
from zmq_offload.dashboard.files import PATHS, files
from zmq_offload.dashboard.viewers import MOST, UNREAD_BYTES, Viewers, event
from zmq_offload.dashboard.watch import Watch, pause_of
from zmq_offload.errors import Unavailable


class FakePipe:
    """A viewer; `unread` is what it has not taken."""

    def __init__(self) -> None:
        self.got: list[bytes] = []
        self.unread = 0
        self.aborted = False

    def send(self, part: bytes) -> int:
        self.got.append(part)
        return self.unread

    def abort(self) -> None:
        self.aborted = True

    def events(self) -> list[tuple[str, Any]]:
        """The names and data of what it got."""
        found = []
        for part in self.got:
            assert part.endswith(b"\n\n")
            name, data = part[:-2].split(b"\n")
            found.append((name.removeprefix(b"event: ").decode(), msgspec.json.decode(data.removeprefix(b"data: "))))
        return found


def test_an_event_is_two_lines_and_an_empty_one() -> None:
    assert event("update", b'{"a":1}') == b'event: update\ndata: {"a":1}\n\n'


def test_viewers_get_all_at_first_and_then_each_event() -> None:
    viewers, pipe = Viewers(), FakePipe()
    viewers.tell(b"0")
    leave = viewers.add(pipe, b"1")
    viewers.tell(b"2")
    leave()
    viewers.tell(b"3")
    leave()
    assert pipe.got == [b"1", b"2"] and len(viewers) == 0


def test_the_number_of_viewers_is_bounded() -> None:
    viewers = Viewers()
    leaving = [viewers.add(FakePipe(), b"") for _ in range(MOST)]
    assert viewers.full
    leaving[0]()
    assert not viewers.full


def test_a_slow_viewer_is_dropped() -> None:
    viewers, slow, quick = Viewers(), FakePipe(), FakePipe()
    viewers.add(slow, b"")
    viewers.add(quick, b"")
    slow.unread = UNREAD_BYTES + 1
    viewers.tell(b"1")
    viewers.tell(b"2")
    assert (slow.aborted, slow.got) == (True, [b"", b"1"])
    assert (quick.aborted, quick.got) == (False, [b"", b"1", b"2"])


def test_no_file_of_the_page_uses_another_host_or_writes_html() -> None:
    found = files()
    assert set(found) == set(PATHS)
    for path, file in found.items():
        text = file.body.decode().replace("http://www.w3.org/2000/svg", "")
        assert "http:" not in text and "https:" not in text, path
        assert not any(word in text for word in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write")), (
            path
        )
    page = found["/dashboard"].body.decode()
    assert "<style" not in page and " style=" not in page and " onclick=" not in page
    assert page.count("<script") == page.count('<script type="module" src=')


def test_what_a_broker_answers_is_told(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(watch, "EVERY", 0.001)
    answers: list[Mapping[str, Any] | Exception] = [
        status(10),
        status(11, served=5),
        Unavailable("no broker answered"),
        KeyError("uptime"),
        status(12, served=6),
    ]
    pipe = FakePipe()

    async def ask() -> Mapping[str, Any]:
        if not answers:
            await asyncio.Event().wait()
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def main() -> None:
        watching = Watch(ask)
        watching.add(pipe)
        running = asyncio.ensure_future(watching.run())
        while len(pipe.got) < 6:
            await asyncio.sleep(0.001)
        running.cancel()

    asyncio.run(main())
    names, events = zip(*((name, data["view"]) for name, data in pipe.events()), strict=True)
    assert list(names) == ["state", *["update"] * 5]
    assert [view["broker"]["state"] for view in events] == ["waiting", "up", "up", "none", "none", "up"]
    assert events[3]["broker"]["message"] == "no broker answered"
    assert "same version" in events[4]["broker"]["message"]
    assert [record.message for record in caplog.records] == ["the status of the broker cannot be used"]
    assert events[-1]["served"] == 6


def test_looks_at_thousands_of_versions_are_fewer() -> None:
    assert [pause_of(versions) for versions in (0, 20, 1000, 2500, 10**6)] == [1.0, 1.0, 1.0, 2.5, 4.0]
