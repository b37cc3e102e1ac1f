"""The transport against TVM's own RPC server, in a process of its own."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import signal
import socket
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

import zmq_offload
from tests.transports.tvmrpc.servers import free_port, our_server, program
from zmq_offload.client.results import Outputs
from zmq_offload.errors import (
    DeadlineExceeded,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    OffloadError,
    ProtocolError,
    Unauthenticated,
    Unavailable,
)
from zmq_offload.protocol import messages
from zmq_offload.protocol.payload import encode_body
from zmq_offload.protocol.tensors import Latest, signature_of
from zmq_offload.testing import Fabric
from zmq_offload.transports.client import ServerClient
from zmq_offload.transports.tvmrpc import parcel, wire
from zmq_offload.transports.tvmrpc.server import main
from zmq_offload.transports.tvmrpc.values import Handle, encode_values

if TYPE_CHECKING:
    from zmq_offload.compile import Compiled

X = np.random.default_rng(0).standard_normal((2, 8)).astype("f4")


@pytest.fixture(scope="module")
def server(compiled_mlp: Compiled) -> Iterator[str]:
    with our_server(compiled_mlp.device.parent / "repository") as (url, _):
        yield url


@pytest.mark.load
def test_a_bundle_gives_what_it_gives_with_a_broker_to_the_last_bit(server: str, compiled_mlp: Compiled) -> None:
    with zmq_offload.load(compiled_mlp.device, server=server) as model:
        over_rpc = [model(X * k) for k in range(3)]
    with (
        Fabric(compiled_mlp.device.parent / "repository") as fabric,
        zmq_offload.load(compiled_mlp.device, fabric.frontend) as model,
    ):
        over_broker = [model(X * k) for k in range(3)]
    for one, other in zip(over_rpc, over_broker, strict=True):
        np.testing.assert_array_equal(one, other)


INPUTS = {"h2": np.ones((2, 16), "f4")}


def failed(urls: str | list[str], kind: type[OffloadError], text: str, timeout: float = 1.0) -> None:
    """A call at these servers fails with this error, whose message has this text, and in time."""
    began = time.monotonic()
    with ServerClient(urls) as client, pytest.raises(kind, match=text):
        client.infer("mlp", INPUTS, timeout=timeout)
    assert time.monotonic() - began < timeout + 5


def retried(client: ServerClient) -> Outputs:
    """The answer of a server that is starting."""
    for _ in range(100):
        with contextlib.suppress(Unavailable):
            return client.infer("mlp", INPUTS)
        time.sleep(0.1)
    pytest.fail("the server does not serve")


@pytest.mark.load
def test_calls_share_a_connection_and_each_gets_its_own_answer(server: str) -> None:
    with ServerClient(server) as client:
        futures = [client.submit("mlp", {"h2": np.full((2, 16), k / 50, "f4")}) for k in range(50)]
        alone = [client.infer("mlp", {"h2": np.full((2, 16), k / 50, "f4")}) for k in range(50)]
    for future, one in zip(futures, alone, strict=True):
        np.testing.assert_array_equal(future.result()["h4"], one["h4"])
    assert one.version == 1


@pytest.mark.load
def test_results_are_written_to_the_arrays_that_are_given(server: str) -> None:
    place = {"h4": np.zeros((2, 8), "f4")}
    with ServerClient(server) as client:
        outputs = client.infer("mlp", INPUTS, outputs=place)
    assert outputs["h4"] is place["h4"] and place["h4"].any()


@pytest.mark.load
def test_errors_of_the_server_keep_their_class(server: str) -> None:
    with ServerClient(server) as client:
        with pytest.raises(NotFound, match="model 'other' is not in the repository; its models are mlp"):
            client.infer("other", INPUTS)
        with pytest.raises(NotFound, match="version 7 is not in the repository; its versions are 1"):
            client.infer("mlp", INPUTS, version=7)
        with pytest.raises(InvalidArgument, match="input 'h2' has shape"):
            client.infer("mlp", {"h2": np.ones((2, 15), "f4")})
        with pytest.raises(FailedPrecondition, match="fits the signature"):
            client.infer("mlp", INPUTS, version=zmq_offload.Latest(bytes(16)))
        assert client.infer("mlp", INPUTS)["h4"].shape == (2, 8)


@pytest.mark.load
def test_a_new_version_is_found_and_a_damaged_one_refused(fresh_mlp: Path) -> None:
    repository = fresh_mlp / "repository"
    with our_server(repository) as (url, _), ServerClient(url) as client:
        assert client.infer("mlp", INPUTS).version == 1
        library = repository / "mlp" / "1" / "subgraph.so"
        content = library.read_bytes()
        library.unlink()  # the server has the file in its memory
        library.write_bytes(content[:-1])
        os.utime(repository / "mlp" / "1" / "model.json")
        with pytest.raises(FailedPrecondition, match="is damaged"):
            client.infer("mlp", INPUTS)


@pytest.mark.load
def test_a_call_that_is_given_up_leaves_the_connection_in_order(fresh_mlp: Path) -> None:
    with our_server(fresh_mlp / "repository") as (url, pid), ServerClient(url) as client:
        wanted = client.infer("mlp", INPUTS)["h4"]
        os.killpg(pid, signal.SIGSTOP)
        futures = [client.submit("mlp", {"h2": np.zeros((2, 16), "f4")}, timeout=0.2) for _ in range(8)]
        for future in futures:
            with pytest.raises(DeadlineExceeded):
                future.result(timeout=10)
        os.killpg(pid, signal.SIGCONT)
        np.testing.assert_array_equal(client.infer("mlp", INPUTS)["h4"], wanted)


@pytest.mark.load
def test_a_lost_server_is_unavailable_and_the_next_one_answers(server: str, fresh_mlp: Path) -> None:
    with (
        our_server(fresh_mlp / "repository") as (url, pid),
        ServerClient([url, server]) as both,
        ServerClient(url) as alone,
    ):
        both.infer("mlp", INPUTS)
        os.killpg(pid, signal.SIGKILL)
        assert both.infer("mlp", INPUTS)["h4"].shape == (2, 8)
        with pytest.raises(Unavailable):
            alone.infer("mlp", INPUTS)


@pytest.mark.load
def test_a_server_serves_one_client_at_a_time_and_says_so(server: str) -> None:
    with ServerClient(server) as first:
        first.infer("mlp", INPUTS)
        failed([server, "tcp://127.0.0.1:1"], OffloadError, "may have one")
    with ServerClient(server) as second:
        assert second.infer("mlp", INPUTS)["h4"].shape == (2, 8)


@pytest.mark.load
def test_a_client_that_is_lost_does_not_end_the_server(server: str) -> None:
    host, _, port = server.removeprefix("tvmrpc://").rpartition(":")
    with ServerClient(server) as client:
        client.infer("mlp", INPUTS)
    with socket.create_connection((host, int(port))) as connection:
        connection.settimeout(20)
        connection.sendall(struct.pack("<ii", 0xFF271, 7) + b"client:")
        assert connection.recv(4) == struct.pack("<i", 0xFF271)
        connection.sendall(struct.pack("<Q", 100) + b"part of a packet")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    with ServerClient(server) as client:
        assert retried(client)["h4"].shape == (2, 8)


@pytest.mark.load
def test_another_key_is_refused(compiled_mlp: Compiled) -> None:
    with our_server(compiled_mlp.device.parent / "repository", "--key", "board") as (url, _):
        failed(url + "?key=other", Unauthenticated, "has another key than 'other'", 10)
        with ServerClient(url + "?key=board") as client:
            assert client.infer("mlp", INPUTS)["h4"].shape == (2, 8)


@contextlib.contextmanager
def answering(data: bytes) -> Iterator[str]:
    """A server that sends these bytes to each client and is silent then."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        held = []

        def run() -> None:
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = listener.accept()
                    held.append(connection)
                    connection.sendall(data)

        thread = threading.Thread(target=run)
        thread.start()
        yield f"tvmrpc://127.0.0.1:{listener.getsockname()[1]}"
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()
        for connection in held:
            connection.close()


GREETING = struct.pack("<ii", 0xFF271, 7) + b"server:"


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"HTTP/1.1 400 Bad Request", "is not a TVM RPC server"),
        (struct.pack("<ii", 0xFF271, -5), "its key would have -5 bytes"),
        (GREETING + struct.pack("<Q", 2**40), "sends a packet of 1099511627776 bytes"),
        (GREETING + struct.pack("<QiB", 5, 4, 0), "ends within a value"),
        (GREETING + struct.pack("<Qi", 4, 77), "a packet with code 77 is no answer"),
    ],
)
def test_garbage_is_a_protocol_error(data: bytes, text: str) -> None:
    with answering(data) as url:
        failed(url, ProtocolError, text, 10)


@pytest.mark.parametrize(
    "models",
    [5, None, [5], [{"name": "mlp"}], [{"name": "mlp", "version": "x", "inputs": [], "outputs": []}],
     [{"name": "mlp", "version": 1, "inputs": [{"name": "x"}], "outputs": []}]],
)  # fmt: skip
def test_what_is_no_list_of_models_is_a_protocol_error(models: object) -> None:
    answer = b"".join(parcel.pack([messages.encode(messages.Answer(parcel.SESSION, 0)), encode_body(models)]))
    function = wire.packet(wire.RETURN, encode_values((Handle(7),)))
    data = GREETING + wire.return_of_nothing() + function + wire.return_of_bytes(len(answer)) + answer
    with (
        answering(data) as url,
        ServerClient(url, timeout=10) as client,
        pytest.raises(ProtocolError, match="is no list of models"),
    ):
        client.infer("mlp", INPUTS, version=Latest(signature_of([], [])))


@pytest.mark.parametrize(
    "answer",
    [
        b"[" * 100_000,
        b'[0, ["127.0.0.1", 99999, "k"]]',
        b'[0, ["127.0.0.1", -1, "k"]]',
        b'[0, ["127.0.0.1", 1e999, "k"]]',
    ],
    ids=len,
)
def test_what_a_tracker_does_not_say_is_a_protocol_error(answer: bytes) -> None:
    data = struct.pack("<i", wire.TRACKER_MAGIC)
    for one in (b'[0, {"server_info": [{"key": "server:k"}]}]', answer):
        data += struct.pack("<i", len(one)) + one
    with answering(data) as url:
        failed(f"{url}?tracker=k", ProtocolError, "what is no JSON|answers .0, .'127", 10)


def test_a_server_of_another_protocol_number_says_so() -> None:
    with answering(GREETING + wire.exception("Traceback\nClient protocol version mismatch")) as url:
        failed(url, Unavailable, "begins no session: Client protocol version mismatch", 10)


def test_a_silent_server_takes_no_longer_than_the_deadline() -> None:
    with answering(b"") as url:
        failed(url, DeadlineExceeded, "does not answer|deadline exceeded", 0.3)


def test_a_server_without_our_function_is_named() -> None:
    found = wire.packet(wire.RETURN, encode_values((None,)))
    with answering(GREETING + wire.return_of_nothing() + found) as url:
        failed(url, FailedPrecondition, "has no function 'zmq_offload.call'; start it by python -m", 10)


@pytest.mark.load
@pytest.mark.skipif(importlib.util.find_spec("tornado") is None, reason="TVM's tracker needs tornado")
def test_a_tracker_gives_a_server_by_its_key(compiled_mlp: Compiled) -> None:
    port = free_port()
    tracker = f"127.0.0.1:{port}"
    options = ("-m", "tvm.exec.rpc_tracker", "--host", "127.0.0.1", "--port", str(port), "--port-end", str(port + 1))
    repository = compiled_mlp.device.parent / "repository"
    with program(*options, ready="bind to"), our_server(repository, "--tracker", tracker, "--key", "board"):
        with ServerClient(f"tvmrpc://{tracker}?tracker=board") as client:
            assert retried(client)["h4"].shape == (2, 8)
            failed(f"tvmrpc://{tracker}?tracker=board", DeadlineExceeded, "no free server with the key 'board'")
        failed(
            f"tvmrpc://{tracker}?tracker=other", Unavailable, "no server with the key 'other'; its keys are board", 10
        )


@pytest.mark.parametrize(
    ("option", "code", "text"),
    [
        (("--port", "65536"), 2, "'65536' is not a port, from 0 to 65535"),
        (("--port", "-1"), 2, "'-1' is not a port, from 0 to 65535"),
        (("--tracker", "h:65536", "--key", "k"), 1, "--tracker 'h:65536' needs HOST:PORT"),
        (("--tracker", "h:1"), 1, "--tracker 'h:1' needs HOST:PORT, and a --key"),
    ],
)
def test_a_server_says_what_is_wrong_with_an_option(
    option: tuple[str, ...], code: int, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        found = main([*option, "--repository", "."])
    except SystemExit as end:
        found = end.code
    assert found == code
    assert text in capsys.readouterr().err


@pytest.mark.parametrize(
    ("url", "text"),
    [
        ("tvmrpc://h:1?keys=a", "has 'keys' after the question mark; known are key, tracker, repository"),
        ("tvmrpc://h:1?key=a&tracker=b", "has key and tracker"),
        ("tvmrpc://h:1?tracker=", "has an empty key for the tracker"),
        ("tvmrpc://h:1/path", "has a path"),
    ],
)
def test_a_wrong_url_is_refused(url: str, text: str) -> None:
    with pytest.raises(InvalidArgument, match=text.replace("?", "[?]")):
        ServerClient(url)
