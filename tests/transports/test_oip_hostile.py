"""Servers that answer in the right protocol, but not what they should."""

from __future__ import annotations

import http.server
import json
import select
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import Any

import grpc
import numpy as np
import pytest

from tests.support.processes import eventually
from zmq_offload.errors import (
    FailedPrecondition,
    Internal,
    NotFound,
    OffloadError,
    ProtocolError,
    ResourceExhausted,
    Unauthenticated,
    Unavailable,
)
from zmq_offload.protobuf.messages import message_class
from zmq_offload.protocol.tensors import Latest, TensorSpec, signature_of
from zmq_offload.transports.client import ServerClient
from zmq_offload.transports.outputs import LARGEST_JSON

X = np.ones(2, np.float32)
Y = {"name": "y", "datatype": "FP32", "shape": [2]}
MOST = 1 << 20
SIGNATURE = Latest(signature_of([TensorSpec("x", "FP32", (2,))], [TensorSpec("y", "FP32", (2,))]))


# --- gRPC -----------------------------------------------------------------------------------------------------

GrpcAnswer = Callable[[bytes, grpc.ServicerContext], bytes]


class _AnyMethod(grpc.GenericRpcHandler):
    def __init__(self, answers: dict[str, GrpcAnswer]) -> None:
        self.answers = answers

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler | None:
        answer = self.answers.get(details.method.rpartition("/")[2])
        return None if answer is None else grpc.unary_unary_rpc_method_handler(answer)


class GrpcServer:
    """Answers methods as `answers` says, with any bytes."""

    def __init__(self, port: int = 0) -> None:
        self._handler = _AnyMethod({})
        self._server = grpc.server(ThreadPoolExecutor(4), handlers=[self._handler])
        self.port = self._server.add_insecure_port(f"127.0.0.1:{port}")
        self.url = f"grpc://127.0.0.1:{self.port}"
        self._server.start()
        self.stop = lambda: self._server.stop(None).wait()

    def answers(self, **answers: bytes | Any) -> None:
        self._handler.answers = {name: one if callable(one) else _saying(one) for name, one in answers.items()}


def _saying(message: Any) -> GrpcAnswer:
    data = message if isinstance(message, bytes) else message.SerializeToString()
    return lambda _request, _context: data


def failing(code: grpc.StatusCode, text: str) -> GrpcAnswer:
    def answer(_request: bytes, context: grpc.ServicerContext) -> bytes:
        context.abort(code, text)
        raise AssertionError

    return answer


def message(name: str, **fields: Any) -> Any:
    return message_class(f"inference.{name}")(**fields)


@pytest.fixture(scope="module")
def grpc_server() -> Iterator[GrpcServer]:
    server = GrpcServer()
    yield server
    server.stop()


def infer(url: str, **options: Any) -> Any:
    with ServerClient(url, max_frame_bytes=MOST) as client:
        return client.infer("m", {"x": X}, timeout=10, **options)


@pytest.mark.parametrize(
    ("answer", "kind", "says"),
    [
        (b"\xff", ProtocolError, "no inference.ModelInferResponse"),
        (bytes(3 * MOST), ResourceExhausted, "larger than max"),
        (failing(grpc.StatusCode.INTERNAL, "it broke\n\nAt:\n  model.py(13)"), Internal, "it broke At: model"),
        (failing(grpc.StatusCode.UNKNOWN, ""), Internal, "status UNKNOWN"),
        (failing(grpc.StatusCode.UNAVAILABLE, "loading"), Unavailable, "loading"),
        (failing(grpc.StatusCode.UNAUTHENTICATED, "who?"), Unauthenticated, "who?"),
        (failing(grpc.StatusCode.CANCELLED, "no more"), Unavailable, "no more"),
        (failing(grpc.StatusCode.DATA_LOSS, "x" * 5000), Internal, "xxx"),
    ],
)
def test_what_a_grpc_server_answers_is_a_typed_error(
    grpc_server: GrpcServer, answer: Any, kind: type[OffloadError], says: str
) -> None:
    grpc_server.answers(ModelInfer=answer)
    with pytest.raises(kind, match=says) as caught:
        infer(grpc_server.url)
    assert len(caught.value.message) < 2200 and "\n" not in caught.value.message


def test_a_grpc_server_without_the_service_is_said_to_be_none(grpc_server: GrpcServer) -> None:
    grpc_server.answers()
    with pytest.raises(OffloadError, match="Method not found") as caught:
        infer(grpc_server.url, version=SIGNATURE)
    assert caught.value.code.value == "UNIMPLEMENTED"


def test_a_grpc_server_that_comes_back_is_called_again() -> None:
    answer = message("ModelInferResponse", outputs=[Y], raw_output_contents=[X.tobytes()])
    first = GrpcServer()
    first.answers(ModelInfer=answer)
    with ServerClient(first.url) as client:
        assert client.infer("m", {"x": X})["y"].tolist() == [1, 1]
        first.stop()
        with pytest.raises(Unavailable):
            client.infer("m", {"x": X}, timeout=5)
        second = GrpcServer(first.port)
        second.answers(ModelInfer=answer)

        def called() -> bool:
            with suppress(Unavailable):
                return bool(client.infer("m", {"x": X})["y"].tolist() == [1, 1])
            return False

        eventually(called, 5)
        second.stop()


@pytest.mark.parametrize("ready", [True, False])
def test_a_grpc_server_that_is_not_ready_is_unavailable(grpc_server: GrpcServer, ready: bool) -> None:
    missing = failing(grpc.StatusCode.NOT_FOUND, "Request for unknown model: 'm' is not found")
    grpc_server.answers(
        ModelInfer=missing, ModelMetadata=missing, ServerReady=message("ServerReadyResponse", ready=ready)
    )
    for version in (None, SIGNATURE):
        with pytest.raises(NotFound if ready else Unavailable, match="unknown model: 'm'"):
            infer(grpc_server.url, version=version)
    grpc_server.answers(ModelInfer=missing)
    with pytest.raises(NotFound):
        infer(grpc_server.url)


def test_the_metadata_of_a_grpc_server_says_what_differs(grpc_server: GrpcServer) -> None:
    tensor = {"name": "x", "datatype": "FP16", "shape": [2]}
    grpc_server.answers(ModelMetadata=message("ModelMetadataResponse", versions=["3"], inputs=[tensor]))
    with pytest.raises(FailedPrecondition, match=r"version 3 takes x FP16\[2\] and returns nothing"):
        infer(grpc_server.url, version=SIGNATURE)
    grpc_server.answers(ModelMetadata=bytes(MOST + 5))
    with pytest.raises(ProtocolError, match="at most 1048576 are taken"):
        infer(grpc_server.url, version=SIGNATURE)


# --- HTTP -----------------------------------------------------------------------------------------------------

HttpAnswer = tuple[int, dict[str, str], bytes]
SERVER = json.dumps({"name": "s", "extensions": ["binary_tensor_data"]}).encode()
BINARY = json.dumps({"outputs": [Y | {"parameters": {"binary_data_size": 8}}]}).encode()
LENGTH = "Inference-Header-Content-Length"


def plain(body: Any, status: int = 200, **headers: str) -> HttpAnswer:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return status, {"Content-Length": str(len(data))} | headers, data


def binary(tail: bytes, length: str = str(len(BINARY)), head: bytes = BINARY, **headers: str) -> HttpAnswer:
    return 200, {LENGTH: length, "Content-Length": str(len(head + tail))} | headers, head + tail


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: HttpServer

    def do_GET(self) -> None:
        self.server.body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.server.asked.append(self.path)
        status, headers, body = self.server.found.get(self.path, plain({"error": "Not Found"}, 404))
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)
        self.close_connection = headers.get("Connection") == "close" or "Content-Length" not in headers

    do_POST = do_GET

    def log_message(self, *_: object) -> None:
        """Nothing."""


class HttpServer(http.server.ThreadingHTTPServer):
    """Answers paths as `found` says."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.found: dict[str, HttpAnswer] = {}
        self.asked: list[str] = []
        self.body = b""

    def get_request(self) -> tuple[socket.socket, Any]:
        self.latest, address = super().get_request()
        return self.latest, address

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def answers(self, answer: HttpAnswer, **more: HttpAnswer) -> None:
        self.asked.clear()
        self.found = {"/v2": plain(SERVER), "/v2/models/m/infer": answer}
        self.found |= {f"/v2/{path.replace('_', '/')}": one for path, one in more.items()}

    def handle_error(self, *_: Any) -> None:
        """A client that hangs up is no news."""


@contextmanager
def running() -> Iterator[HttpServer]:
    server = HttpServer()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(scope="module")
def http_server() -> Iterator[HttpServer]:
    with running() as server:
        yield server


def test_a_binary_answer_is_read_with_and_without_its_length(http_server: HttpServer) -> None:
    http_server.answers(binary(X.tobytes()))
    assert infer(http_server.url)["y"].tolist() == [1, 1]
    place = np.zeros(2, np.float32)
    assert infer(http_server.url, outputs={"y": place})["y"] is place
    status, headers, body = binary(X.tobytes())
    chunks = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in (body[:7], body[7:])) + b"0\r\n\r\n"
    http_server.answers((status, {LENGTH: headers[LENGTH], "Transfer-Encoding": "chunked"}, chunks))
    assert infer(http_server.url)["y"].tolist() == [1, 1]


def test_a_server_is_asked_again_whether_it_takes_binary_tensors(
    http_server: HttpServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A proxy says 404 while the server behind it starts."""
    monkeypatch.setattr("zmq_offload.transports.oip.infer_http.FRESH", 0.0)
    http_server.answers(plain({"outputs": [Y | {"data": [1, 1]}]}))
    http_server.found["/v2"] = plain(b"<html>", 404)
    with ServerClient(http_server.url) as client:
        client.infer("m", {"x": X})
        assert not http_server.body.endswith(X.tobytes())
        http_server.found["/v2"] = plain(SERVER)
        client.infer("m", {"x": X})
        assert http_server.body.endswith(X.tobytes())


def test_interim_answers_are_passed_over(http_server: HttpServer) -> None:
    status, headers, body = binary(X.tobytes())
    head = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    final = f"HTTP/1.1 {status} OK\r\n{head}\r\n".encode() + body
    hints = b"HTTP/1.1 103 Early Hints\r\nLink: </style.css>\r\n\r\nHTTP/1.1 102 Processing\r\n\r\n"
    http_server.answers((100, {}, hints + final))
    http_server.found["/v2"] = plain(SERVER)
    with ServerClient(http_server.url) as client:
        for _ in range(2):
            assert client.infer("m", {"x": X})["y"].tolist() == [1, 1]


def test_all_outputs_together_fit_the_limit(http_server: HttpServer) -> None:
    many = [Y | {"name": f"y{n}", "shape": [MOST // 4], "parameters": {"binary_data_size": MOST}} for n in range(2)]
    head = json.dumps({"outputs": many}).encode()
    chunk = b"%x\r\n%b\r\n0\r\n\r\n" % (len(head) + 2 * MOST, head + bytes(2 * MOST))
    for framing, body in (
        ({"Transfer-Encoding": "chunked"}, chunk),
        ({"Content-Length": str(len(head) + 2 * MOST)}, head + bytes(2 * MOST)),
    ):
        http_server.answers((200, {LENGTH: str(len(head))} | framing, body))
        with pytest.raises(ResourceExhausted, match=f"have {2 * MOST} bytes; at most max_frame_bytes={MOST}"):
            infer(http_server.url)


def test_a_large_request_goes_in_pieces(http_server: HttpServer) -> None:
    http_server.answers(binary(X.tobytes()))
    x = np.arange(4 << 20, dtype=np.float32)
    with ServerClient(http_server.url) as client:
        assert client.infer("m", {"w": X, "x": x})["y"].tolist() == [1, 1]
    assert http_server.body.endswith(X.tobytes() + x.tobytes())


def test_a_kept_connection_that_the_server_gave_up_is_not_used_again(http_server: HttpServer) -> None:
    http_server.answers(binary(X.tobytes()))
    with ServerClient(http_server.url) as client:
        for _ in range(3):
            assert client.infer("m", {"x": X})["y"].tolist() == [1, 1]
            [connection] = client._servers._transports[0]._connections._idle  # type: ignore[attr-defined]
            # As proxies do that have waited for a request for too long.
            http_server.latest.sendall(b"HTTP/1.1 408 Request Timeout\r\nContent-Length: 0\r\n\r\n")
            http_server.latest.shutdown(socket.SHUT_RDWR)
            eventually(lambda: select.select([connection], [], [], 0)[0])  # noqa: B023


def test_a_server_without_binary_tensors_gets_json(http_server: HttpServer) -> None:
    for server in (plain({"name": "s"}), plain({"error": "no such path"}, 404)):
        http_server.answers(plain({"outputs": [Y | {"data": [1, 2]}], "model_version": "4"}))
        http_server.found["/v2"] = server
        outputs = infer(http_server.url)
        assert outputs["y"].tolist() == [1, 2] and outputs.version == 4


@pytest.mark.parametrize(
    ("answer", "kind", "says"),
    [
        (plain(b""), ProtocolError, "is not as the protocol has it"),
        (plain({"outputs": [Y]}), ProtocolError, "neither data nor a binary_data_size"),
        (plain(BINARY), ProtocolError, "has 0 bytes of tensors; it must have 8"),
        (binary(bytes(7)), ProtocolError, "has 7 bytes of tensors; it must have 8"),
        (binary(bytes(9)), ProtocolError, "has 9 bytes of tensors; it must have 8"),
        (binary(bytes(8), "-1"), ProtocolError, "has Inference-Header-Content-Length '-1'"),
        (binary(bytes(8), "99999"), ProtocolError, "is right"),
        (binary(bytes(8), "9" * 5000), ProtocolError, "is right"),
        (binary(bytes(8), "5"), ProtocolError, "is not as the protocol has it"),
        (binary(b"", **{"Content-Length": str(len(BINARY) + 8), "Connection": "close"}), ProtocolError, "ends after 0"),
        (binary(bytes(8), **{"Content-Length": str(2**50)}), ResourceExhausted, "bytes; at most"),
        (plain(bytes(LARGEST_JSON + 1)), ResourceExhausted, "has 16777217 bytes; at most 16777216 are taken"),
        ((200, {"Connection": "close"}, bytes(LARGEST_JSON + 1)), ResourceExhausted, "has more than 16777216 bytes"),
        ((200, {LENGTH: str(len(BINARY))}, BINARY + bytes(9)), ProtocolError, "more than 8 bytes"),
        (plain(bytes(MOST + 5), 500), Internal, "HTTP status 500"),
        ((200, {"Transfer-Encoding": "chunked", LENGTH: "5"}, b"zz\r\n"), ProtocolError, "does not answer in HTTP"),
        (plain({"error": "it broke"}, 500), Internal, r"it broke \(from http://"),
        (plain(b"<html>Bad Gateway</html>", 502), Unavailable, "HTTP status 502"),
        (plain(b"[" * 100_000, 503), Unavailable, "HTTP status 503"),
        (plain({"error": "who?"}, 401), Unauthenticated, "who?"),
        (plain(b"", 302, Location="http://elsewhere"), Internal, "HTTP status 302"),
    ],
)  # fmt: skip
def test_what_an_http_server_answers_is_a_typed_error(
    http_server: HttpServer, answer: HttpAnswer, kind: type[OffloadError], says: str
) -> None:
    http_server.answers(answer)
    with pytest.raises(kind, match=says) as caught:
        infer(http_server.url)
    assert type(caught.value) is kind
    assert len(caught.value.message) < 2200 and "\n" not in caught.value.message


def test_a_port_that_does_not_speak_http_is_named_without_its_raw_bytes() -> None:
    def settings() -> None:
        connection, _ = listener.accept()
        with connection:
            connection.recv(65536)
            connection.sendall(b"\0\0\6\4\0\0\0\0\0\0\3\0\0\1\x1b")  # HTTP/2, as a port for gRPC begins
            connection.shutdown(socket.SHUT_WR)
            connection.recv(1)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = threading.Thread(target=settings, daemon=True)
        server.start()
        with pytest.raises(ProtocolError, match="use the server's port for HTTP") as caught:
            infer(f"http://127.0.0.1:{listener.getsockname()[1]}")
        server.join(10)
    assert caught.value.message.isprintable()


@pytest.mark.parametrize("ready", [200, 503])
def test_an_http_server_that_is_not_ready_is_unavailable(http_server: HttpServer, ready: int) -> None:
    missing = plain({"error": "Request for unknown model: 'm' is not found"}, 404)
    http_server.answers(missing, models_m=missing, health_ready=plain(b"", ready))
    for version in (None, SIGNATURE):
        with pytest.raises(NotFound if ready == 200 else Unavailable, match="unknown model: 'm'"):
            infer(http_server.url, version=version)


def test_the_metadata_of_an_http_server_says_what_differs(http_server: HttpServer) -> None:
    metadata = {"versions": ["3"], "inputs": [Y | {"datatype": "BYTES"}], "outputs": []}
    http_server.answers(plain(b""), models_m=plain(metadata))
    with pytest.raises(FailedPrecondition, match=r"version 3 takes y BYTES\[2\] and returns nothing"):
        infer(http_server.url, version=SIGNATURE)
    http_server.answers(plain(b""), models_m=plain(bytes(MOST + 5)))
    with pytest.raises(ResourceExhausted, match="more than 1048576 bytes"):
        infer(http_server.url, version=SIGNATURE)


def test_a_path_before_that_of_the_protocol_is_kept(http_server: HttpServer) -> None:
    http_server.answers(plain(b""))
    with pytest.raises(NotFound):
        infer(f"{http_server.url}/behind/a%20%C3%BC%0D%0AX:%20y/", version=2)
    prefix = "/behind/a%20%C3%BC%0D%0AX%3A%20y/v2"
    assert http_server.asked[:2] == [prefix, f"{prefix}/models/m/versions/2/infer"]


def test_a_lost_server_is_left_for_one_of_another_kind(grpc_server: GrpcServer) -> None:
    answer = message("ModelInferResponse", outputs=[Y], raw_output_contents=[X.tobytes()])
    grpc_server.answers(ModelInfer=answer)
    with running() as server:
        server.answers(binary(bytes(X)))
        with ServerClient([server.url, grpc_server.url]) as client:
            assert client.infer("m", {"x": X})["y"].tolist() == [1, 1]
            server.answers(plain(b"", 503))
            began = time.monotonic()
            assert client.infer("m", {"x": X})["y"].tolist() == [1, 1]
            assert client.infer("m", {"x": X})["y"].tolist() == [1, 1]
            assert server.asked == ["/v2/models/m/infer"], "a server that failed is left alone for a pause"
            assert time.monotonic() - began < 5
