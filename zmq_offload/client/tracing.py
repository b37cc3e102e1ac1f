"""The `trace` of a call, and the span that the caller's own OpenTelemetry makes of it.

OpenTelemetry is not imported here unless a caller asks for it. If the program has it, and has set a tracer provider, a
call with a trace is a span of that provider. Else the caller's trace goes to the broker as it is.
"""

from __future__ import annotations

import reprlib
import sys
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, TypeAlias

from zmq_offload.client.results import Outputs
from zmq_offload.common.extras import needs
from zmq_offload.errors import Cancelled, InvalidArgument, OffloadError, one_line
from zmq_offload.telemetry.traces import context

if TYPE_CHECKING:
    from opentelemetry.trace import Span, SpanContext

Trace: TypeAlias = "str | bool | SpanContext | None"
"""What a caller may give: a `traceparent`, True for the current span, or a SpanContext."""


class CallSpan:
    """A call with a trace. As a context manager it ends with the body."""

    def __init__(self, trace: bytes, span: Span | None) -> None:
        self.trace = trace
        """What the broker gets; empty if the trace is not recorded."""
        self._span = span

    def __enter__(self) -> CallSpan:
        return self

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        self.end(error)

    def succeeded(self, outputs: Outputs) -> None:
        """Say which version ran."""
        if self._span is not None:
            self._span.set_attribute("zmq_offload.version", outputs.version)
            self._span.set_attribute("rpc.response.status_code", "OK")

    def end(self, error: BaseException | None = None) -> None:
        span = self._span
        if span is None:
            return
        if error is not None:
            from opentelemetry.trace import Status, StatusCode

            code = error.code.value if isinstance(error, OffloadError) else type(error).__name__
            span.set_attribute("error.type", code)
            if isinstance(error, OffloadError):
                span.set_attribute("rpc.response.status_code", code)
            span.set_status(Status(StatusCode.ERROR, one_line(error)))
        span.end()

    def done(self, future: Future[Outputs]) -> None:
        """The future of a submitted call is done."""
        if future.cancelled():
            self.end(Cancelled("canceled by the caller"))
        elif (error := future.exception()) is not None:
            self.end(error)
        else:
            self.succeeded(future.result())
            self.end()


def begin(trace: Trace, model: str) -> CallSpan:
    """Begin the span of a call. Raises InvalidArgument for a `trace` that is none.

    Raises FailedPrecondition for True if OpenTelemetry is not installed.
    """
    if trace is None or trace is False:
        return CallSpan(b"", None)
    if isinstance(trace, str):
        given = context.parse(trace)
        if not given:
            raise _wrong(trace)
        if "opentelemetry.trace" not in sys.modules:
            return CallSpan(given, None)
        return _started(_parent(given), model)
    if trace is True:
        with needs("traces"):
            import opentelemetry.trace  # noqa: F401
        return _started(None, model)
    api = sys.modules.get("opentelemetry.trace")
    if api is None or not isinstance(trace, api.SpanContext):
        raise _wrong(trace)
    return _started(trace, model)


def _wrong(trace: object) -> InvalidArgument:
    return InvalidArgument(
        f"trace {reprlib.repr(trace)} names no trace; use a traceparent of W3C (00-TRACE_ID-SPAN_ID-FLAGS), True "
        "for the current span, or a SpanContext of OpenTelemetry"
    )


def _parent(trace: bytes) -> SpanContext:
    from opentelemetry.trace import SpanContext, TraceFlags

    trace_id, span_id = context.trace_id(trace), context.span_id(trace)
    return SpanContext(
        int.from_bytes(trace_id, "big"),
        int.from_bytes(span_id, "big"),
        is_remote=True,
        trace_flags=TraceFlags(trace[-1]),
    )


def _started(parent: SpanContext | None, model: str) -> CallSpan:
    """A span of the program's own tracer, under `parent` or the current span."""
    from opentelemetry.trace import NonRecordingSpan, SpanKind, get_tracer, set_span_in_context

    attributes: dict[str, Any] = {"zmq_offload.model": model, "rpc.system.name": "zmq_offload"}
    around = None if parent is None else set_span_in_context(NonRecordingSpan(parent))
    span = get_tracer("zmq-offload").start_span(f"infer {model}", around, SpanKind.CLIENT, attributes)
    own = span.get_span_context()
    trace = context.joined(own.trace_id.to_bytes(16, "big"), own.span_id.to_bytes(8, "big"), own.trace_flags)
    return CallSpan(trace, span)
