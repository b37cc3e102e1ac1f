"""Spans on their way to a collector."""

from __future__ import annotations

import logging
import os
import socket
import time
from collections.abc import Iterable

import pytest
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.trace import SpanKind

from tests.support.collector import collecting
from tests.support.processes import eventually
from zmq_offload.common.version import __version__
from zmq_offload.telemetry.traces import exporter as exporting
from zmq_offload.telemetry.traces.exporter import Exporter
from zmq_offload.telemetry.traces.spans import NewId, Span

TRACE, CALLER, OWN = bytes(range(1, 17)), b"caller!!", b"own-span"


def span(name: str = "attempt", parent: bytes = CALLER, error: str = "") -> Span:
    now = time.monotonic()
    attributes = {"zmq_offload.model": "m", "zmq_offload.rows": 3}
    return Span(name, "server", TRACE, OWN, parent, now - 2.0, now - 0.5, attributes, error)


def as_they_are(record: Span, new_id: NewId) -> Iterable[Span]:
    return [record, record._replace(name="child", kind="internal", id=new_id(), parent=record.id)]


def test_spans_arrive_as_they_were_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "authorization=Bearer%20secret")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_COMPRESSION", "gzip")
    with collecting() as collector:
        exporter = Exporter(collector.url, "broker", as_they_are)
        before = time.time_ns()
        exporter.put(span())
        exporter.put(span("root", b"", "it broke"))
        exporter.close()
        one, child, root, other = collector.spans
        assert [path for path, _ in collector.posts] == ["/v1/traces"]
        assert collector.posts[0][1]["authorization"] == "Bearer secret"
    assert (one.service, one.name, one.kind, one.error) == ("broker", "attempt", 2, None)
    assert (one.trace, one.id, one.parent) == (TRACE.hex(), OWN.hex(), CALLER.hex())
    assert one.attributes == {"zmq_offload.model": "m", "zmq_offload.rows": 3}
    assert abs(one.end - one.start - 1_500_000_000) < 1000
    assert abs(before - 2_000_000_000 - one.start) < 1_000_000_000
    assert (child.parent, child.kind, child.trace) == (one.id, 1, one.trace) and child.id not in (one.id, other.id)
    assert (root.parent, root.error, root.trace) == ("", "it broke", TRACE.hex())
    assert exporter.dropped == 0


@pytest.mark.parametrize(
    ("variables", "service"),
    [
        ({}, "broker"),
        ({"OTEL_SERVICE_NAME": "edge"}, "edge"),
        ({"OTEL_RESOURCE_ATTRIBUTES": "service.name=rack-7,host.name=node-1"}, "rack-7"),
    ],
)
def test_the_standard_variables_are_honored(
    variables: dict[str, str], service: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with collecting() as collector:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        exporter = Exporter("otel", "broker", as_they_are)
        exporter.put(span())
        exporter.close()
        resource, _ = (span.resource for span in collector.spans)
    assert resource["service.name"] == service and resource["service.version"] == __version__
    assert resource["host.name"] == ("node-1" if service == "rack-7" else socket.gethostname())
    assert resource["process.pid"] == os.getpid()


def test_a_collector_that_is_busy_gets_spans_again() -> None:
    with collecting() as collector:
        collector.answers = [503]
        exporter = Exporter(collector.url, "broker", as_they_are)
        exporter.put(span())
        exporter._wake.set()
        collector.wait(2)
        exporter.close()
        assert len(collector.posts) == 2 and exporter.dropped == 0


def test_without_a_collector_nothing_waits_and_what_is_dropped_is_counted(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(exporting, "_MOST", 10)
    monkeypatch.setattr(exporting, "_FLUSH", 0.2)
    with socket.socket() as dead:  # takes connections, and never answers
        dead.bind(("127.0.0.1", 0))
        dead.listen()
        exporter = Exporter(f"http://127.0.0.1:{dead.getsockname()[1]}", "broker", as_they_are)
        started = time.monotonic()
        for _ in range(100):
            exporter.put(span())
        assert time.monotonic() - started < 0.5
        assert exporter.dropped >= 80  # ten may be on their way, and ten wait
        exporter.close()
        assert time.monotonic() - started < 5
    assert "since the start" in caplog.text and exporter.dropped >= 90


def test_a_refusal_is_told_and_does_not_end_the_thread(caplog: pytest.LogCaptureFixture) -> None:
    with collecting() as collector:
        collector.answers = [400]
        exporter = Exporter(collector.url, "broker", as_they_are)
        exporter.put(span())
        exporter._wake.set()
        eventually(lambda: "traces were dropped: 1, and 1 since the start" in caplog.text)
        exporter.put(span())
        exporter.close()
        assert exporter.dropped == 1 and len(collector.spans) == 2


def test_what_is_lost_at_the_end_is_told(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(exporting, "_FLUSH", 0.2)
    exporter = Exporter("http://127.0.0.1:1", "broker", as_they_are)  # nothing listens there
    exporter.put(span())
    exporter.close()
    assert exporter.dropped == 1 and "traces were dropped: 1, and 1 since the start" in caplog.text


def test_a_fault_of_ours_is_logged_and_counted(caplog: pytest.LogCaptureFixture) -> None:
    def broken(record: Span, new_id: NewId) -> Iterable[Span]:
        raise ValueError("a fault")

    with collecting() as collector, caplog.at_level(logging.ERROR):
        exporter = Exporter(collector.url, "broker", broken)
        exporter.put(span())
        exporter.close()
    assert exporter.dropped == 1 and "a fault" in caplog.text


def test_the_collector_of_the_tests_understands_the_official_exporter() -> None:
    """So that what it says of our spans is what other collectors see."""
    with collecting() as collector:
        provider = TracerProvider(resource=Resource.create({"service.name": "app"}), shutdown_on_exit=False)
        provider.add_span_processor(SimpleSpanProcessor(OTLPSpanExporter(f"{collector.url}/v1/traces")))
        with provider.get_tracer("t").start_as_current_span("outer", kind=SpanKind.SERVER):
            provider.get_tracer("t").start_span("inner", attributes={"n": 1}).end()
        provider.shutdown()
        inner, outer = collector.spans
    assert (inner.parent, inner.trace, inner.attributes, inner.service) == (outer.id, outer.trace, {"n": 1}, "app")
    assert (outer.name, outer.kind) == ("outer", 2)
