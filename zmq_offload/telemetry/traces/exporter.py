"""Sends spans to a collector, by OTLP over HTTP, in a thread of its own.

Spans are made here, from what the program noted of a request, so that a request waits for none of it. They go through
OpenTelemetry's SDK: it has the messages, the retries, and the variables that operators know (headers, certificates,
compression, resources). Its own queue is not used, because that does not count what it drops.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import Generic, TypeVar

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import SERVICE_NAME, Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExportResult
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import SpanContext, SpanKind, Status, StatusCode, TraceFlags

from zmq_offload.common.version import __version__
from zmq_offload.telemetry.traces.collector import endpoint_of
from zmq_offload.telemetry.traces.context import SPAN_ID_BYTES
from zmq_offload.telemetry.traces.spans import NewId, Span

log = logging.getLogger(__name__)

_SDK_LOG = logging.getLogger("opentelemetry.exporter.otlp.proto.http.trace_exporter")
_KINDS = {"client": SpanKind.CLIENT, "server": SpanKind.SERVER, "internal": SpanKind.INTERNAL}
_SAMPLED, _UNSET = TraceFlags(TraceFlags.SAMPLED), Status()
_EVERY = 1.0
"""Seconds between two deliveries."""
_MOST = 8192
"""Records that wait for a collector."""
_BATCH = 256
"""Records whose spans are sent together."""
_TELL = 60.0
"""Seconds between two lines of the log about lost traces."""
_FLUSH = 3.0
"""Seconds that the end of the program waits for the last spans."""
_SHUTDOWN = 0.5
"""Seconds that it waits for the thread afterwards."""

Record = TypeVar("Record")


class Exporter(Generic[Record]):
    """A thread that makes spans of records by `spans_of` and sends them.

    `service` names the program, unless OTEL_SERVICE_NAME or OTEL_RESOURCE_ATTRIBUTES does. `program` is its process, if
    that is another one.
    """

    def __init__(
        self, url: str, service: str, spans_of: Callable[[Record, NewId], Iterable[Span]], program: int | None = None
    ) -> None:
        self._refused = 0  # records for which there was no room
        self._unsent = 0  # those whose spans no collector took
        self._spans_of = spans_of
        self._waiting: deque[Record] = deque()
        self._resource, self._scope = (
            _resource(service, program or os.getpid()),
            InstrumentationScope("zmq-offload", __version__),
        )
        self._otlp = OTLPSpanExporter(endpoint_of(url))
        self._wake = threading.Event()
        self._closing = False
        self._told, self._tell_at = 0, 0.0  # how many dropped ones the log has told of, and when it may tell more
        self._why = _Why()
        _SDK_LOG.addFilter(self._why)
        self._thread = threading.Thread(target=self._run, name="traces", daemon=True)
        self._thread.start()

    @property
    def dropped(self) -> int:
        """Records of which nothing was delivered."""
        return self._refused + self._unsent

    def put(self, record: Record) -> None:
        """Take the record of a request, or drop it if too many wait. Never blocks. For one thread."""
        waiting = self._waiting
        if len(waiting) >= _MOST:
            self._refused += 1
            return
        waiting.append(record)
        if len(waiting) == _MOST // 2:
            self._wake.set()

    def close(self) -> None:
        """Send what waits, for a few seconds at most, and stop."""
        self._closing = True
        self._wake.set()
        self._thread.join(_FLUSH)
        self._otlp.shutdown()  # type: ignore[no-untyped-call,unused-ignore]  # it ends a retry under way, too
        self._thread.join(_SHUTDOWN)
        self._unsent += len(self._waiting)
        self._tell(0.0)
        _SDK_LOG.removeFilter(self._why)

    def _run(self) -> None:
        while not self._closing or self._waiting:
            self._wake.wait(_EVERY)
            self._wake.clear()
            while self._waiting:
                batch = [self._waiting.popleft() for _ in range(min(_BATCH, len(self._waiting)))]
                try:
                    sent = self._send(batch)
                except Exception:
                    log.exception("spans cannot be made or sent")
                    sent = False
                if not sent:
                    self._unsent += len(batch)
                    if self._closing:
                        return
            self._tell(_TELL)

    def _tell(self, pause: float) -> None:
        """Say that traces were lost, if there are more than before and nothing was said within `pause`."""
        now, dropped = time.monotonic(), self.dropped
        if dropped != self._told and now >= self._tell_at + pause:
            log.warning("traces were dropped: %d, and %d since the start%s", dropped - self._told, dropped, self._why)
            self._told, self._tell_at, self._why.text = dropped, now, ""

    def _send(self, batch: list[Record]) -> bool:
        offset = time.time_ns() - time.monotonic_ns()
        spans = [self._made(span, offset) for record in batch for span in self._spans_of(record, _random_id)]
        return not spans or self._otlp.export(spans) is SpanExportResult.SUCCESS

    def _made(self, span: Span, offset: int) -> ReadableSpan:
        """A span as the SDK has it. `offset` leads from the monotonic clock to the time of day, in nanoseconds.

        A tracer would take three times as long for it, and judge, lock and count what is decided here.
        """
        trace = int.from_bytes(span.trace_id, "big")
        return ReadableSpan(
            span.name,
            SpanContext(trace, int.from_bytes(span.id, "big"), is_remote=False, trace_flags=_SAMPLED),
            SpanContext(trace, parent, is_remote=True, trace_flags=_SAMPLED)
            if (parent := int.from_bytes(span.parent, "big"))
            else None,
            self._resource,
            span.attributes,
            kind=_KINDS[span.kind],
            instrumentation_scope=self._scope,
            status=Status(StatusCode.ERROR, span.error) if span.error else _UNSET,
            start_time=int(span.start * 1e9) + offset,
            end_time=int(span.end * 1e9) + offset,
        )


class _Why(logging.Filter):
    """Keeps what the SDK says of failures for the program's own lines: it says so for each try, every few seconds."""

    text = ""

    def filter(self, record: logging.LogRecord) -> bool:
        if not self.text:  # the first says most: what follows is about the tries
            self.text = record.getMessage()
        return False

    def __str__(self) -> str:
        return f"; the first failure: {' '.join(self.text.split())[:300]}" if self.text else ""


def _random_id() -> bytes:
    return os.urandom(SPAN_ID_BYTES)


def _resource(service: str, program: int) -> Resource:
    """What all spans of a program have. What operators say in OpenTelemetry's variables comes first."""
    found = Resource.create()
    if str(found.attributes.get(SERVICE_NAME, "")).startswith("unknown_service"):
        found = found.merge(Resource({SERVICE_NAME: service}))
    own: dict[str, str | int] = {
        "service.version": __version__,
        "host.name": socket.gethostname(),
        "process.pid": program,
    }
    return Resource({**own}).merge(found)
