"""A fault of the gateway's own while an answer is encoded: on each way in, who waits is told INTERNAL."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from tritonclient.grpc import service_pb2

from tests.gateway.fake_fabric import ALL, FakeFabric, model
from zmq_offload.errors import Internal
from zmq_offload.gateway.application import grpc_methods, http_handler
from zmq_offload.gateway.calls import FAILED
from zmq_offload.gateway.grpc.calls import Context, Streaming
from zmq_offload.gateway.http.messages import Request, Response
from zmq_offload.gateway.regions.files import Off
from zmq_offload.protobuf.messages import message_class
from zmq_offload.protocol.packed import Packed
from zmq_offload.protocol.tensors import TensorSpec

X = TensorSpec("x", "FP32", (-1,))
OIP = {"model_name": "m", "inputs": [{"name": "x", "datatype": "FP32", "shape": [1]}], "raw_input_contents": [b"1234"]}
CONTEXT = Context(ALL, None, {})


def over_http(fabric: FakeFabric, path: str, body: object) -> None:
    responses: list[Response] = []
    http_handler(fabric, Off())(Request("POST", path, "", {}, json.dumps(body).encode(), ALL), responses.append)
    fabric.release()
    (response,) = responses
    assert (response.status, json.loads(b"".join(response.body))) == (500, {"error": FAILED})


def oip_http(fabric: FakeFabric) -> None:
    over_http(fabric, "/v2/models/m/infer", {"inputs": [OIP["inputs"][0] | {"data": [1]}]})  # type: ignore[index, operator]


def tensorflow_rest(fabric: FakeFabric) -> None:
    fabric.hold = False  # it asks for the models first
    over_http(fabric, "/v1/models/m:predict", {"inputs": [1]})


def unary(fabric: FakeFabric, path: str, message: Any) -> None:
    replies: list[Any] = []
    method = grpc_methods(fabric, Off())[path]
    assert not isinstance(method, Streaming)
    method(message.SerializeToString(), CONTEXT, replies.append)
    fabric.release()
    (reply,) = replies
    assert isinstance(reply, Internal) and reply.message == FAILED


def oip_grpc(fabric: FakeFabric) -> None:
    unary(fabric, "/inference.GRPCInferenceService/ModelInfer", service_pb2.ModelInferRequest(**OIP))


def tensorflow_grpc(fabric: FakeFabric) -> None:
    request = message_class("tensorflow.serving.PredictRequest")()
    request.model_spec.name = "m"
    request.inputs["x"].dtype = 1
    request.inputs["x"].float_val.append(1)
    request.inputs["x"].tensor_shape.dim.add(size=1)
    unary(fabric, "/tensorflow.serving.PredictionService/Predict", request)


class _Writer:
    def __init__(self) -> None:
        self.sent: list[Any] = []

    def send(self, message: Any) -> None:
        self.sent.append(service_pb2.ModelStreamInferResponse.FromString(b"".join(message)))


def oip_stream(fabric: FakeFabric) -> None:
    """The stream lives on."""
    method = grpc_methods(fabric, Off())["/inference.GRPCInferenceService/ModelStreamInfer"]
    assert isinstance(method, Streaming)
    writer = _Writer()
    stream = method.begin(CONTEXT, writer)  # type: ignore[arg-type]
    for name in ("one", "two"):
        stream.message(service_pb2.ModelInferRequest(id=name, **OIP).SerializeToString())
    fabric.release()
    assert [(each.error_message, each.infer_response.id) for each in writer.sent] == [(FAILED, "one"), (FAILED, "two")]


@pytest.mark.parametrize(
    "way", [oip_http, tensorflow_rest, oip_grpc, oip_stream, tensorflow_grpc], ids=lambda way: way.__name__
)
def test_who_waits_is_told(way: Callable[[FakeFabric], None], caplog: pytest.LogCaptureFixture) -> None:
    broken = Packed(None, (1,))  # type: ignore[arg-type]
    fabric = FakeFabric(model("m", X, outputs=(X,)), run=lambda _call: broken)
    fabric.hold = True
    way(fabric)
    assert "an answer cannot be returned" in caplog.text
