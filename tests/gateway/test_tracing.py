"""The gateway's span of a request, in front of a fabric without a broker."""

from __future__ import annotations

import asyncio
import itertools
import json
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest

from broker.tracing import Tracing
from tests.gateway.fake_fabric import ALL, FakeFabric, model
from zmq_offload.errors import NotFound, OffloadError
from zmq_offload.gateway.application import http_handler
from zmq_offload.gateway.calls import Buffers, Call, Outputs, with_headers
from zmq_offload.gateway.catalog import Catalog
from zmq_offload.gateway.control import ModelControl
from zmq_offload.gateway.fabric import BrokerFabric
from zmq_offload.gateway.grpc.calls import Context, Streaming
from zmq_offload.gateway.http.heads import Heads
from zmq_offload.gateway.http.limits import Limits
from zmq_offload.gateway.http.messages import Request, Response
from zmq_offload.gateway.oip.grpc_service import methods as oip_methods
from zmq_offload.gateway.regions.files import Off
from zmq_offload.gateway.tfserving.grpc import methods as tfserving_methods
from zmq_offload.gateway.tracing import TracingFabric, as_it_is
from zmq_offload.protobuf.messages import message_class
from zmq_offload.protocol import messages as wire
from zmq_offload.protocol.packed import pack
from zmq_offload.protocol.tensors import TensorSpec
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
            self.inner,
            share,
            self.spans.append,
            lambda: self.now,
            lambda n: next(numbers).to_bytes(n, "big"),
            lambda bits: 1 << bits - 1,
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
    for share in (0.0, 0.4):
        bench = Bench(share)
        bench.infer(header)
        assert not bench.spans and bench.inner.calls[0].trace == b""
    bench = Bench(share=0.6)
    bench.infer(header)
    assert context.chosen(bench.spans[0].trace_id, 0.6) and not context.chosen(bench.spans[0].trace_id, 0.4)


def test_a_request_that_is_not_traced_says_so_to_the_broker() -> None:
    calls = Mock()

    async def test() -> None:
        fabric = BrokerFabric(calls, 10.0, ModelControl(allowed=False), context.UNTRACED)
        for trace in (b"", b"t" * wire.TRACE_BYTES):
            fabric.infer(Call("m", None, INPUTS, trace=trace), ALL, lambda _: None)

    asyncio.run(test())
    sent = [call.args[6] for call in calls.request.call_args_list]
    assert sent == [context.UNTRACED, b"t" * wire.TRACE_BYTES]
    broker = Tracing()
    broker.share = 1.0
    assert broker.wanted(context.UNTRACED, (bytes(16), 1)) == b"" and broker.wanted(b"", (bytes(16), 1))


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


X = model("x", TensorSpec("x", "FP32", (-1, 2)))
IN = {"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [1, 2]}


@pytest.mark.parametrize(
    ("path", "headers", "body"),
    [
        ("v2/models/x/infer", {}, json.dumps({"inputs": [IN]}).encode()),
        (
            "v2/models/x/infer",
            {},
            json.dumps({"inputs": [IN], "outputs": [{"name": "x", "parameters": {"classification": 1}}]}).encode(),
        ),
        ("v2/models/x/infer", {"inference-header-content-length": "0"}, bytes(8)),
        ("v1/models/x:predict", {}, b'{"instances": [[1, 2]]}'),
    ],
    ids=["JSON", "classes", "raw", "TensorFlow Serving"],
)
def test_all_protocols_over_http_take_the_header(path: str, headers: dict[str, str], body: bytes) -> None:
    fabric = FakeFabric(X)
    responses: list[Response] = []
    request = Request("POST", f"/{path}", "", {**headers, "traceparent": HEADER}, body, ALL)
    http_handler(fabric, Off())(request, responses.append)
    assert [response.status for response in responses] == [200]
    assert context.text_of(fabric.calls[0].trace) == HEADER


def open_inference() -> bytes:
    message = message_class("inference.ModelInferRequest")(model_name="x")
    message.inputs.add(name="x", datatype="FP32", shape=[1, 2])
    message.raw_input_contents.append(bytes(8))
    return bytes(message.SerializeToString())


def tensorflow() -> bytes:
    message = message_class("tensorflow.serving.PredictRequest")()
    message.model_spec.name = "x"
    message.inputs["x"].dtype = 1
    message.inputs["x"].tensor_content = bytes(8)
    for extent in (1, 2):
        message.inputs["x"].tensor_shape.dim.add(size=extent)
    return bytes(message.SerializeToString())


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("inference.GRPCInferenceService/ModelInfer", open_inference()),
        ("tensorflow.serving.PredictionService/Predict", tensorflow()),
    ],
)
def test_all_protocols_over_grpc_take_the_metadata(path: str, message: bytes) -> None:
    fabric = FakeFabric(X)
    methods = {**oip_methods(fabric, Off()), **tfserving_methods(fabric)}
    replies: list[Buffers | OffloadError] = []
    method = methods[f"/{path}"]
    assert callable(method)
    method(message, Context(ALL, None, {"traceparent": HEADER}), replies.append)
    assert not isinstance(replies[0], OffloadError), replies
    assert context.text_of(fabric.calls[0].trace) == HEADER


def test_messages_of_a_stream_belong_to_its_trace() -> None:
    fabric = FakeFabric(X)
    method = oip_methods(fabric, Off())["/inference.GRPCInferenceService/ModelStreamInfer"]
    assert isinstance(method, Streaming)
    stream = method.begin(Context(ALL, None, {"traceparent": HEADER}), Mock())
    stream.message(open_inference())
    stream.message(open_inference())
    assert [context.text_of(call.trace) for call in fabric.calls] == [HEADER] * 2


def test_heads_with_a_trace_do_not_push_out_those_that_are_remembered() -> None:
    heads = Heads(Limits(body_bytes=1, held_bytes=1, header_bytes=1000, connections=1, idle=1.0, receive=1.0))
    usual = b"GET / HTTP/1.1\r\nhost: h\r\n\r\n"
    remembered = heads.parse(usual)
    for number in range(1000):
        heads.parse(b"GET / HTTP/1.1\r\nhost: h\r\ntraceparent: 00-%032x-01-01\r\n\r\n" % number)
    assert heads.parse(usual) is remembered


def test_a_span_of_a_gateway_is_sent_as_it_is() -> None:
    span = Span("infer m", "server", bytes(16), bytes(8), b"", 0.0, 1.0, {})
    assert as_it_is(span, lambda: b"") == (span,)
