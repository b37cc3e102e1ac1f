"""The `trace` of a call: what a caller may give, and the span that its own OpenTelemetry makes."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import opentelemetry.trace
import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import INVALID_SPAN_CONTEXT, SpanContext, SpanKind, StatusCode, TraceFlags

from zmq_offload import AsyncClient, Client
from zmq_offload.client.tracing import begin
from zmq_offload.errors import InvalidArgument, NotFound
from zmq_offload.telemetry.traces import context
from zmq_offload.testing import Fabric

HEADER = f"00-{'ab' * 16}-{'cd' * 8}-01"
X = {"x": np.zeros(3, np.float32)}


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> Iterator[InMemorySpanExporter]:
    """The spans of a program that has set a tracer provider."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(opentelemetry.trace, "_TRACER_PROVIDER", provider)
    yield exporter
    provider.shutdown()


def only(exporter: InMemorySpanExporter) -> Any:
    (span,) = exporter.get_finished_spans()
    return span


def test_without_a_provider_the_callers_trace_is_passed_on() -> None:
    parent = SpanContext(int("ab" * 16, 16), int("cd" * 8, 16), is_remote=False, trace_flags=TraceFlags(1))
    for given in (HEADER, parent):
        assert context.text_of(begin(given, "m").trace) == HEADER
    for given in (False, True, INVALID_SPAN_CONTEXT):
        assert begin(given, "m").trace == b""


@pytest.mark.parametrize("trace", ["", "00-1-2-3", HEADER.upper(), b"x" * 25, 1, 1.5, object()])
def test_what_is_no_trace_is_refused(trace: Any, client: Client) -> None:
    for call in (client.infer, client.submit):
        with pytest.raises(InvalidArgument, match=r"trace .* names no trace; use a traceparent of W3C"):
            call("echo", X, trace=trace)


def test_a_call_is_a_span_of_the_programs_tracer(client: Client, spans: InMemorySpanExporter) -> None:
    client.infer("echo", X, trace=HEADER)
    span = only(spans)
    assert (span.name, span.kind) == ("infer echo", SpanKind.CLIENT)
    assert (f"{span.context.trace_id:032x}", f"{span.parent.span_id:016x}") == ("ab" * 16, "cd" * 8)
    assert span.attributes == {
        "zmq_offload.model": "echo",
        "zmq_offload.version": 1,
        "rpc.system.name": "zmq_offload",
        "rpc.response.status_code": "OK",
    }
    assert span.status.status_code is StatusCode.UNSET


def test_the_current_span_is_the_parent_of_true(spans: InMemorySpanExporter) -> None:
    with opentelemetry.trace.get_tracer("app").start_as_current_span("work") as work, begin(True, "m") as call:
        assert context.trace_id(call.trace) == work.get_span_context().trace_id.to_bytes(16, "big")
    inner, outer = spans.get_finished_spans()
    assert inner.context.span_id.to_bytes(8, "big") == context.span_id(call.trace)
    assert inner.parent.span_id == outer.context.span_id


def test_errors_are_the_spans_status(client: Client, spans: InMemorySpanExporter) -> None:
    with pytest.raises(NotFound) as raised:
        client.infer("nowhere", X, trace=True)
    span = only(spans)
    assert span.status.status_code is StatusCode.ERROR and span.status.description == raised.value.message
    assert span.attributes["error.type"] == span.attributes["rpc.response.status_code"] == "NOT_FOUND"
    spans.clear()
    with pytest.raises(KeyboardInterrupt), begin(True, "m"):
        raise KeyboardInterrupt
    assert only(spans).attributes["error.type"] == "KeyboardInterrupt"


def test_a_submitted_call_ends_with_its_future(client: Client, spans: InMemorySpanExporter) -> None:
    client.submit("echo", X, trace=HEADER).result()
    assert only(spans).attributes["zmq_offload.version"] == 1
    spans.clear()
    with pytest.raises(NotFound):
        client.submit("nowhere", X, trace=HEADER).result()
    assert only(spans).attributes["error.type"] == "NOT_FOUND"
    spans.clear()
    client.submit("nowhere", X, trace=HEADER).cancel()
    assert only(spans).attributes["error.type"] == "CANCELLED"
    spans.clear()
    client.close()
    with pytest.raises(Exception, match="closed"):
        client.submit("echo", X, trace=HEADER)
    assert only(spans).attributes["error.type"] == "CANCELLED"


def test_calls_of_a_loop(echo_fabric: Fabric, spans: InMemorySpanExporter) -> None:
    async def calls() -> None:
        async with AsyncClient(echo_fabric.frontend) as caller:
            await caller.infer("echo", X, trace=HEADER)
            with pytest.raises(NotFound):
                await caller.infer("nowhere", X, trace=HEADER)
            with pytest.raises(InvalidArgument, match="names no trace"):
                await caller.infer("echo", X, trace="1")

    asyncio.run(calls())
    served, failed = spans.get_finished_spans()
    assert served.attributes["rpc.response.status_code"] == "OK"
    assert failed.attributes["error.type"] == "NOT_FOUND"


def test_opentelemetry_is_imported_only_if_the_caller_wants_it() -> None:
    code = (
        "import sys\n"
        "from zmq_offload.client.tracing import begin\n"
        f"assert begin({HEADER!r}, 'm').trace and 'opentelemetry' not in sys.modules\n"
        "sys.modules['opentelemetry.trace'] = None\n"
        "del sys.modules['opentelemetry.trace']\n"
        "sys.modules['opentelemetry'] = None\n"
        "begin(True, 'm')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "FailedPrecondition" in done.stderr and "pip install 'zmq-offload[traces]'" in done.stderr
