"""The gateway's span of a request, in front of a fabric without a broker."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

from tests.gateway.fake_fabric import ALL, FakeFabric, model
from zmq_offload.errors import NotFound, OffloadError
from zmq_offload.gateway.calls import Call, Outputs, with_headers
from zmq_offload.gateway.catalog import Catalog
from zmq_offload.gateway.tracing import TracingFabric
from zmq_offload.protocol.packed import pack
from zmq_offload.telemetry.traces import context
from zmq_offload.telemetry.traces.spans import Span

HEADER = f"00-{'ab' * 16}-{'cd' * 8}-01"
INPUTS = pack({"x": np.zeros((3, 2), np.float32)})


class Bench:
    def __init__(self, share: float = 0.0, run: Any = None) -> None:
        self.inner = FakeFabric(model("m"), run=run)
        self.spans: list[Span] = []
        self.now = 10.0
        self.outcomes: list[Outputs | OffloadError] = []
        numbers = itertools.count(255)
        self.fabric = TracingFabric(
            self.inner, share, self.spans.append, lambda: self.now, lambda n: next(numbers).to_bytes(n, "big")
        )

    def infer(self, header: str | None = None, version: int | None = None) -> Any:
        headers = {} if header is None else {"traceparent": header}
        return self.fabric.infer(with_headers(Call("m", version, INPUTS), headers), ALL, self.outcomes.append)

    @property
    def passed(self) -> str:
        """The traceparent of the one request that went on."""
        (call,) = self.inner.calls
        return context.text_of(call.trace)


def test_headers_name_a_caller_and_a_label() -> None:
    call = Call("m", None, INPUTS)
    assert with_headers(call, {}) is call
    told = with_headers(call, {"x-zmq-offload-caller": "a" * 600, "x-zmq-offload-label": "stable"})
    assert (told.caller, told.label, told.trace) == ("a" * 512, "stable", b"")
    labeled = call._replace(label="mine")
    assert with_headers(labeled, {"x-zmq-offload-label": "stable"}).label == "mine"


def test_the_span_is_the_callers_child_and_the_brokers_parent() -> None:
    bench = Bench()
    bench.inner.hold = True
    bench.infer(HEADER)
    bench.now += 0.25
    bench.inner.release()
    (span,) = bench.spans
    assert isinstance(bench.outcomes[0], Outputs)
    assert (span.name, span.kind, span.start, span.end, span.error) == ("infer m", "server", 10.0, 10.25, "")
    assert (span.trace_id.hex(), span.parent.hex()) == ("ab" * 16, "cd" * 8)
    assert bench.passed == f"00-{'ab' * 16}-{span.id.hex()}-01"
    assert span.attributes == {
        "zmq_offload.model": "m",
        "zmq_offload.version": 1,
        "zmq_offload.rows": 3,
        "rpc.system.name": "zmq_offload",
        "rpc.response.status_code": "OK",
    }


def test_a_caller_that_does_not_sample_is_followed() -> None:
    bench = Bench(share=1.0)
    bench.infer(HEADER[:-1] + "0")
    assert bench.passed == HEADER[:-1] + "0" and not bench.spans


@pytest.mark.parametrize("header", [None, "nonsense", f"{HEADER}, {HEADER}"])
def test_the_share_decides_about_requests_without_a_trace(header: str | None) -> None:
    bench = Bench(share=1.0)
    bench.infer(header)
    (span,) = bench.spans
    assert span.parent == b"" and bench.passed == f"00-{span.trace_id.hex()}-{span.id.hex()}-01"
    bench = Bench(share=0.0)
    bench.infer(header)
    assert not bench.spans and bench.inner.calls[0].trace == b""


def test_an_error_is_the_spans_error() -> None:
    bench = Bench(run=lambda call: NotFound("model 'm' is not served"))
    bench.infer(HEADER)
    (span,) = bench.spans
    assert span.error == "model 'm' is not served"
    assert span.attributes["error.type"] == span.attributes["rpc.response.status_code"] == "NOT_FOUND"
    assert "zmq_offload.version" not in span.attributes


def test_a_canceled_request_has_one_span() -> None:
    bench = Bench()
    bench.inner.hold = True
    cancel = bench.infer(HEADER, version=1)
    cancel()
    cancel()
    (span,) = bench.spans
    assert (span.error, span.attributes["error.type"]) == ("canceled by its client", "CANCELLED")
    assert span.attributes["zmq_offload.version"] == 1
    assert bench.inner.canceled


def test_the_rest_is_the_fabrics() -> None:
    bench = Bench()
    bench.inner.stopping = True
    assert bench.fabric.stopping and bench.fabric.statistics is bench.inner.statistics
    lists: list[Catalog | OffloadError] = []
    bench.fabric.models(ALL, lists.append)
    assert lists == [bench.inner.catalog]
