"""A collector of traces: takes OTLP over HTTP, and decodes it with OpenTelemetry's own messages."""

from __future__ import annotations

import gzip
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from tests.support.processes import eventually

Value = str | int | float | bool


def _values(entries: Any) -> dict[str, Value]:
    return {entry.key: getattr(entry.value, entry.value.WhichOneof("value")) for entry in entries}


class Span:
    """A span that arrived. Times are in nanoseconds since 1970; `error` is None if the status is not an error."""

    def __init__(self, resource: dict[str, Value], span: Any) -> None:
        self.resource = resource
        self.service = resource["service.name"]
        self.name: str = span.name
        self.kind: int = span.kind
        self.trace, self.id, self.parent = span.trace_id.hex(), span.span_id.hex(), span.parent_span_id.hex()
        self.start, self.end = span.start_time_unix_nano, span.end_time_unix_nano
        self.attributes = _values(span.attributes)
        self.error: str | None = span.status.message if span.status.code == span.status.STATUS_CODE_ERROR else None

    def __repr__(self) -> str:
        return f"<{self.service} {self.name} {self.id} of {self.parent} {self.attributes} {self.error}>"


class Collector:
    """What arrived."""

    def __init__(self) -> None:
        self.spans: list[Span] = []
        self.posts: list[tuple[str, dict[str, str]]] = []
        """Path and headers of each request."""
        self.answers: list[int] = []
        """Statuses for the next requests, in place of 200."""
        self.url = ""

    def take(self, path: str, headers: dict[str, str], body: bytes) -> int:
        self.posts.append((path, headers))
        if self.answers:
            return self.answers.pop(0)
        if headers.get("content-encoding") == "gzip":
            body = gzip.decompress(body)
        for of_resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            resource = _values(of_resource.resource.attributes)
            for scope in of_resource.scope_spans:
                self.spans += [Span(resource, span) for span in scope.spans]
        return 200

    def wait(self, count: int) -> list[Span]:
        """The spans, as soon as there are so many."""
        eventually(lambda: len(self.spans) >= count)
        return self.spans


@contextmanager
def collecting() -> Iterator[Collector]:
    """Run a collector on a free port."""
    collector = Collector()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            status = collector.take(self.path, {name.lower(): value for name, value in self.headers.items()}, body)
            self.send_response(status)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    collector.url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield collector
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
