"""Servers of TensorFlow Serving's protocols that answer what they should not."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import grpc
import numpy as np
import pytest

from tests.transports.test_oip_hostile import (
    GrpcServer,
    HttpAnswer,
    HttpServer,
    failing,
    plain,
    running,
)
from tests.transports.test_tfserving_messages import metadata as metadata_message
from tests.transports.test_tfserving_messages import response, tensor
from zmq_offload.errors import (
    DeadlineExceeded,
    FailedPrecondition,
    Internal,
    InvalidArgument,
    NotFound,
    OffloadError,
    ProtocolError,
    ResourceExhausted,
    Unavailable,
)
from zmq_offload.protobuf.messages import message_class
from zmq_offload.protocol.tensors import Latest, TensorSpec, signature_of
from zmq_offload.transports.client import ServerClient
from zmq_offload.transports.outputs import LARGEST, LARGEST_JSON
from zmq_offload.transports.registry import opened
from zmq_offload.transports.transport import Options

X = np.ones((1, 3), np.float32)
MOST = 1 << 20
SIGNATURE = Latest(signature_of([TensorSpec("x", "FP32", (2,))], [TensorSpec("y", "FP32", (2,))]))
MISSING = "Servable not found for request: Latest(m)"


def infer(url: str, **options: Any) -> Any:
    with ServerClient(url, max_frame_bytes=MOST) as client:
        return client.infer("m", {"x": X}, timeout=10, **options)


def loading(*states: int) -> Any:
    found = message_class("tensorflow.serving.GetModelStatusResponse")()
    for version, state in enumerate(states, 1):
        found.model_version_status.add(version=version, state=state)
    return found


# --- gRPC -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def grpc_server() -> Iterator[GrpcServer]:
    server = GrpcServer()
    server.url = f"tfs+{server.url}"
    yield server
    server.stop()


@pytest.mark.parametrize(
    ("answer", "kind", "says"),
    [
        (b"\xff", ProtocolError, "no tensorflow.serving.PredictResponse"),
        (response(y=tensor(np.ones(MOST // 4 + 1, np.float32), True)), ResourceExhausted, "at most max_frame_bytes"),
        (bytes(3 * MOST), ResourceExhausted, "larger than max"),
        (failing(grpc.StatusCode.INVALID_ARGUMENT, "input size does not match signature"), InvalidArgument, "size"),
        (failing(grpc.StatusCode.FAILED_PRECONDITION, "Default serving signature key"), FailedPrecondition, "Default"),
        (failing(grpc.StatusCode.UNAVAILABLE, "Task size 9 is larger"), Unavailable, "Task size"),
        (failing(grpc.StatusCode.DEADLINE_EXCEEDED, "too late"), DeadlineExceeded, "too late"),
        (failing(grpc.StatusCode.INTERNAL, "XLA failed"), Internal, "XLA failed"),
    ],
)
def test_what_a_grpc_server_answers_is_a_typed_error(
    grpc_server: GrpcServer, answer: Any, kind: type[OffloadError], says: str
) -> None:
    grpc_server.answers(Predict=answer)
    with pytest.raises(kind, match=says) as caught:
        infer(grpc_server.url)
    assert type(caught.value) is kind and len(caught.value.message) < 2200 and "\n" not in caught.value.message


def test_a_grpc_server_that_is_loading_a_version_is_unavailable(grpc_server: GrpcServer) -> None:
    missing = failing(grpc.StatusCode.NOT_FOUND, MISSING)
    grpc_server.answers(Predict=missing, GetModelStatus=loading(30, 20))
    with pytest.raises(Unavailable, match="version 2 is LOADING: Servable not found"):
        infer(grpc_server.url, version=2)
    with pytest.raises(NotFound, match="Servable not found"):
        infer(grpc_server.url, version=1)
    grpc_server.answers(Predict=missing, GetModelStatus=missing)
    with pytest.raises(NotFound, match="Servable not found"):
        infer(grpc_server.url)


def test_the_metadata_of_a_grpc_server_say_what_differs(grpc_server: GrpcServer) -> None:
    grpc_server.answers(GetModelStatus=loading(30), GetModelMetadata=metadata_message())
    with pytest.raises(FailedPrecondition, match=r"version 7 takes x FP32\[\?,3\] and returns y UINT32\[\]"):
        infer(grpc_server.url, version=SIGNATURE)
    grpc_server.answers(GetModelStatus=loading(30), GetModelMetadata=bytes(LARGEST + 1))
    with pytest.raises(ProtocolError, match="at most 1048576 are taken"):
        infer(grpc_server.url, version=SIGNATURE)


def test_a_label_stands_for_a_version_over_grpc(grpc_server: GrpcServer) -> None:
    asked: list[Any] = []

    def saying(kind: str, answer: bytes) -> Any:
        def say(request: bytes, _context: Any) -> bytes:
            asked.append(message_class(f"tensorflow.serving.{kind}Request").FromString(request).model_spec)
            return answer

        return say

    grpc_server.answers(
        Predict=saying("Predict", response(7, y=tensor(X, True)).SerializeToString()),
        GetModelMetadata=saying("GetModelMetadata", metadata_message()),
    )
    url = f"{grpc_server.url}?label=stable"
    assert infer(url).version == 7
    with pytest.raises(FailedPrecondition, match="version 7 takes"):
        infer(url, version=SIGNATURE)
    assert [(spec.version_label, spec.version.value) for spec in asked] == [("stable", 0)] * 2


# --- REST -----------------------------------------------------------------------------------------------------

MODEL = "/v1/models/m"
METADATA = {
    "model_spec": {"version": "7"},
    "metadata": {
        "signature_def": {
            "signature_def": {
                "serving_default": {
                    name: {
                        key: {"dtype": "DT_FLOAT", "tensor_shape": {"dim": [{"size": "-1"}, {"size": "3"}]}}
                        for key in keys
                    }
                    for name, keys in (("inputs", "x"), ("outputs", "y"))
                }
            }
        }
    },
}


def states(*found: str) -> HttpAnswer:
    listed = [{"version": str(version), "state": state} for version, state in enumerate(found, 1)]
    return plain({"model_version_status": listed})


@pytest.fixture(scope="module")
def http_server() -> Iterator[HttpServer]:
    with running() as server:
        yield server


def answers(server: HttpServer, predict: HttpAnswer, **more: HttpAnswer) -> str:
    """Let it answer so, and return its URL. `more` has paths below the model's."""
    server.asked.clear()
    server.found = {f"{MODEL}:predict": predict, f"{MODEL}/metadata": plain(METADATA)}
    server.found |= {f"{MODEL}{path}": one for path, one in more.items()}
    return f"tfs+{server.url}"


def test_an_answer_of_a_real_server_is_read(http_server: HttpServer) -> None:
    """As TensorFlow Serving's RapidJSON writes it: indented, floats with a point, NaN and infinities without quotes."""
    body = (
        b'{\n    "outputs": [\n        [\n            NaN,\n            -Infinity,\n'
        + b"            1e-07\n        ]\n    ]\n}"
    )
    url = answers(http_server, plain(body))
    np.testing.assert_array_equal(infer(url)["y"], np.array([[np.nan, -np.inf, 1e-7]], np.float32))
    assert json.loads(http_server.body) == {"inputs": {"x": [[1.0, 1.0, 1.0]]}}


@pytest.mark.parametrize(
    ("answer", "kind", "says"),
    [
        (plain(b"<html>"), ProtocolError, "is not JSON"),
        (plain({"outputs": [[1, 2], [3]]}), ProtocolError, "is no tensor"),
        (plain({"outputs": [["a", "b", "c"]]}), ProtocolError, "values of another datatype"),
        (plain({"outputs": {"z": [[1]]}}), ProtocolError, "another datatype"),
        (plain({}), ProtocolError, "has no 'outputs'"),
        ((200, {"Content-Length": str(1 << 50)}, b"{"), ResourceExhausted, "bytes; at most"),
        ((200, {"Connection": "close"}, bytes(LARGEST_JSON + 1)), ResourceExhausted, "has more than 16777216 bytes"),
        ((200, {"Content-Length": "100", "Connection": "close"}, b"{"), ProtocolError, "ends after 1 of 100"),
        (plain({"error": "JSON Value: ... Type: String"}, 400), InvalidArgument, "JSON Value"),
        (plain({"error": "Deadline"}, 504), DeadlineExceeded, "Deadline"),
        (plain({"error": "Batching queue is full"}, 503), Unavailable, "queue is full"),
        (plain(bytes(LARGEST + 1), 500), Internal, "HTTP status 500"),
        (plain({"error": ["?"]}, 501), OffloadError, "HTTP status 501"),
    ],
)  # fmt: skip
def test_what_an_http_server_answers_is_a_typed_error(
    http_server: HttpServer, answer: HttpAnswer, kind: type[OffloadError], says: str
) -> None:
    url = answers(http_server, answer)
    with pytest.raises(kind, match=says) as caught:
        infer(url)
    assert len(caught.value.message) < 2200 and "\n" not in caught.value.message


def test_a_model_is_described_once_until_an_answer_does_not_fit(http_server: HttpServer) -> None:
    with ServerClient(answers(http_server, plain({"outputs": [[1, 2, 3]]}))) as client:
        for _ in range(3):
            client.infer("m", {"x": X})
        assert http_server.asked == [f"{MODEL}/metadata", *[f"{MODEL}:predict"] * 3]
        answers(http_server, plain({"outputs": {"y": [[1]], "z": [[1]]}}))
        for _ in range(2):
            with pytest.raises(ProtocolError):
                client.infer("m", {"x": X})
        assert http_server.asked == [f"{MODEL}:predict", f"{MODEL}/metadata", f"{MODEL}:predict"]


def test_inputs_are_checked_here_because_json_has_no_datatypes(http_server: HttpServer) -> None:
    url = answers(http_server, plain({"outputs": [[1, 2, 3]]}))
    with ServerClient(url) as client, pytest.raises(InvalidArgument, match=r"model 'm' version 7.*'x'"):
        client.infer("m", {"x": X.astype(np.float64)})
    assert http_server.asked == [f"{MODEL}/metadata"]


def test_inputs_of_a_model_that_has_changed_are_not_refused(http_server: HttpServer) -> None:
    with ServerClient(answers(http_server, plain({"outputs": [[1, 2, 3]]}))) as client:
        client.infer("m", {"x": X})
        wider = json.dumps(METADATA).replace('"3"', '"4"').encode()
        answers(http_server, plain({"outputs": [[1, 2, 3, 4]]}), **{"/metadata": plain(wider)})
        assert client.infer("m", {"x": np.ones((1, 4), np.float32)})["y"].tolist() == [[1, 2, 3, 4]]
        with pytest.raises(InvalidArgument, match="'x'"):
            client.infer("m", {"x": X})
        assert http_server.asked == [f"{MODEL}/metadata", f"{MODEL}:predict", f"{MODEL}/metadata"]


def test_an_http_server_that_is_loading_a_version_is_unavailable(http_server: HttpServer) -> None:
    missing = plain({"error": MISSING}, 404)
    url = answers(http_server, missing, **{"": states("AVAILABLE", "LOADING"), "/metadata": missing})
    with pytest.raises(Unavailable, match="version 2 is LOADING: Not Found"):
        infer(url, version=2)
    with pytest.raises(NotFound, match="Not Found"):
        infer(url, version=1)
    url = answers(http_server, missing)
    with pytest.raises(NotFound, match="Servable not found"):
        infer(url)


def test_the_metadata_of_an_http_server_say_what_differs(http_server: HttpServer) -> None:
    url = answers(http_server, plain(b""), **{"": states("AVAILABLE"), "/versions/1/metadata": plain(METADATA)})
    with pytest.raises(FailedPrecondition, match=r"version 7 takes x FP32\[\?,3\] and returns y FP32\[\?,3\]"):
        infer(url, version=SIGNATURE)
    url = answers(http_server, plain(b""), **{"": states("END")})
    with pytest.raises(NotFound, match="version 1 is END"):
        infer(url, version=SIGNATURE)
    url = answers(http_server, plain(b""), **{"": plain(bytes(LARGEST + 1))})
    with pytest.raises(ResourceExhausted, match="more than 1048576 bytes"):
        infer(url, version=SIGNATURE)


def test_a_label_stands_for_a_version_over_http(http_server: HttpServer) -> None:
    there = {"/labels/a%20b/metadata": plain(METADATA), "/labels/a%20b:predict": plain({"outputs": [[1, 2, 3]]})}
    url = answers(http_server, plain(b""), **there) + "?label=a%20b"
    assert infer(url)["y"].tolist() == [[1, 2, 3]]
    with pytest.raises(FailedPrecondition, match="version 7 takes"):
        infer(url, version=SIGNATURE)
    with pytest.raises(NotFound):
        infer(url, version=3)
    assert http_server.asked[:3] == [MODEL + path for path in [*there, "/labels/a%20b/metadata"]]
    assert http_server.asked[3] == f"{MODEL}/versions/3/metadata"


@pytest.mark.parametrize("scheme", ["tfs+grpc", "tfs+http", "tfs+grpcs", "tfs+https"])
def test_a_url_has_no_other_keys(scheme: str) -> None:
    with pytest.raises(InvalidArgument, match="known are ca, cert, key, token_file, label"):
        opened(f"{scheme}://edge:1?signature=x", Options(MOST))
