"""Spans that a process of its own sends."""

from __future__ import annotations

import importlib.util
import logging
import os
import signal
from collections.abc import Iterable

import pytest

from tests.support.collector import collecting
from tests.support.processes import eventually
from tests.telemetry.test_trace_exporter import span
from zmq_offload.telemetry.traces import sender as sending
from zmq_offload.telemetry.traces.sender import Sender
from zmq_offload.telemetry.traces.spans import NewId, Span


def as_they_are(record: Span, new_id: NewId) -> Iterable[Span]:
    return [record, record._replace(name="child", kind="internal", id=new_id(), parent=record.id)]


def quiet() -> None:
    """The log of the process."""
    logging.disable(logging.CRITICAL)


def test_spans_arrive_and_are_those_of_the_program() -> None:
    with collecting() as collector:
        sender = Sender(collector.url, "broker", as_they_are, quiet)
        for _ in range(3):
            sender.put(span())
        sender.close()
        assert len(collector.spans) == 6 and sender.dropped == 0
        assert {one.resource["process.pid"] for one in collector.spans} == {os.getpid()}
        assert {one.service for one in collector.spans} == {"broker"}


def test_a_process_that_is_killed_is_started_again(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(sending, "_AGAIN", 0.0)
    monkeypatch.setattr(sending, "_EVERY", 0.05)
    with collecting() as collector:
        sender = Sender(collector.url, "broker", as_they_are, quiet)
        process = eventually(lambda: sender._process)
        process.kill()
        process.wait()
        eventually(lambda: sender._process not in (None, process))
        sender.put(span())
        sender.close()
        assert len(collector.spans) == 2
    assert f"the process that sends traces ended with code {-signal.SIGKILL}" in caplog.text


def test_what_cannot_be_handed_over_is_counted(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(_: object) -> None:
        raise OSError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(sending, "started", refuse)
    monkeypatch.setattr(sending, "_MOST", 5)
    monkeypatch.setattr(sending, "_EVERY", 1000.0)
    sender = Sender("http://127.0.0.1:1", "broker", as_they_are, quiet)
    for _ in range(8):
        sender.put(span())
    assert sender.dropped == 3
    sender.close()
    assert sender.dropped == 8
    assert "no process can be started to send traces: Resource temporarily unavailable" in caplog.text


def test_without_its_packages_there_is_no_sender(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(ModuleNotFoundError, match="opentelemetry"):
        Sender("http://127.0.0.1:1", "broker", as_they_are, quiet)
