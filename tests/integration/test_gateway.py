"""A gateway process: clients that go away, its stop, and what it answers without a broker."""

from __future__ import annotations

import http.client
import json
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

from tests.support.processes import (
    Fabric,
    Gateway,
    eventually,
    faulty_workers,
    running,
    running_broker,
    running_gateway,
    running_workers,
    status,
    wait_for_workers,
)
from zmq_offload.cli.main import main
from zmq_offload.protobuf.messages import message_class


@pytest.fixture(scope="module")
def slow_fabric() -> Iterator[Fabric]:
    """A worker that runs one request at a time, for as long as the request says."""
    with running_broker() as fabric, faulty_workers(fabric.backend, "--processes", "1", slots=1):
        wait_for_workers(fabric.frontend, 1)
        yield fabric


@pytest.fixture(scope="module")
def gateway(slow_fabric: Fabric) -> Iterator[Gateway]:
    with running_gateway(slow_fabric.frontend) as gateway:
        yield gateway


@contextmanager
def connected(gateway: Gateway) -> Iterator[http.client.HTTPConnection]:
    connection = http.client.HTTPConnection(gateway.http, timeout=20)
    connection.connect()
    try:
        yield connection
    finally:
        connection.close()


def refused(gateway: Gateway) -> bool:
    try:
        with connected(gateway):
            return False
    except ConnectionRefusedError:
        return True


def sleep(connection: http.client.HTTPConnection, seconds: float, **parameters: Any) -> None:
    """Send a request that sleeps in the worker."""
    tensor = {"name": "sleep", "datatype": "FP32", "shape": [], "data": [seconds]}
    connection.request("POST", "/v2/models/echo/infer", json.dumps({"inputs": [tensor], "parameters": parameters}))


def sleeping(seconds: float) -> bytes:
    """A gRPC request that sleeps in the worker."""
    tensor = {"name": "sleep", "datatype": "FP32", "contents": {"fp32_contents": [seconds]}}
    request = message_class("inference.ModelInferRequest")(model_name="echo", inputs=[tensor])
    return bytes(request.SerializeToString())


def queued(fabric: Fabric) -> int:
    return int(status(fabric.frontend)["requests"]["queued"])


def test_who_closes_the_connection_takes_the_request_out_of_the_queue(slow_fabric: Fabric, gateway: Gateway) -> None:
    with connected(gateway) as running, connected(gateway) as waiting:
        sleep(running, 0.7)
        eventually(lambda: status(slow_fabric.frontend)["requests"]["outstanding"] == 1)
        sleep(waiting, 60.0)
        eventually(lambda: queued(slow_fabric) == 1)
        waiting.close()
        eventually(lambda: queued(slow_fabric) == 0)
        assert running.getresponse().read()
        sleep(running, 0.0)
        assert running.getresponse().status == 200, "the worker is free"


def test_a_grpc_call_that_is_canceled_or_late_leaves_the_queue(slow_fabric: Fabric, gateway: Gateway) -> None:
    with connected(gateway) as running, grpc.insecure_channel(gateway.grpc) as channel:
        sleep(running, 0.7)
        eventually(lambda: status(slow_fabric.frontend)["requests"]["outstanding"] == 1)
        infer = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
        canceled, late = infer.future(sleeping(60.0)), infer.future(sleeping(60.0), timeout=0.4)
        eventually(lambda: queued(slow_fabric) == 2)
        canceled.cancel()
        assert late.code() == grpc.StatusCode.DEADLINE_EXCEEDED
        eventually(lambda: queued(slow_fabric) == 0)
        assert running.getresponse().read()
        sleep(running, 0.0)
        assert running.getresponse().status == 200, "the worker is free"


def test_a_stop_finishes_what_runs_and_resets_no_connection(slow_fabric: Fabric) -> None:
    with (
        running_gateway(slow_fabric.frontend) as gateway,
        connected(gateway) as busy,
        connected(gateway) as idle,
        grpc.insecure_channel(gateway.grpc) as channel,
    ):
        idle.request("GET", "/v2/health/live")
        assert idle.getresponse().read() == b'{"live":true}'
        called = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer").future(sleeping(0.1))
        sleep(busy, 0.4)
        eventually(lambda: status(slow_fabric.frontend)["requests"]["outstanding"] == 2)
        gateway.process.popen.terminate()
        gateway.process.wait_for("stopping: finishing 2 requests")
        eventually(lambda: refused(gateway))
        idle.request("GET", "/v2/health/ready")
        answer = idle.getresponse()
        assert answer.status == 400 and answer.getheader("Connection") == "close"
        assert json.loads(answer.read()) == {"error": "the gateway is stopping"}
        answer = busy.getresponse()
        assert answer.status == 200 and answer.getheader("Connection") == "close"
        answer.read()
        assert called.code() == grpc.StatusCode.OK
        assert gateway.process.wait() == 0
        assert not any("closed" in line for line in gateway.process.lines)


def test_what_does_not_end_in_time_is_told_so_and_taken_back(slow_fabric: Fabric) -> None:
    with (
        running_gateway(slow_fabric.frontend, options=("--grace", "0.2")) as gateway,
        connected(gateway) as busy,
        connected(gateway) as partial,
        grpc.insecure_channel(gateway.grpc) as channel,
    ):
        sleep(busy, 0.7)
        called = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer").future(sleeping(60.0))
        partial.putrequest("POST", "/v2/models/echo/infer")
        partial.putheader("Content-Length", "100")
        partial.endheaders(b"{")
        eventually(lambda: status(slow_fabric.frontend)["requests"]["outstanding"] == 2)
        assert gateway.process.end() == 0
        assert any("closing 3 connections that did not end within 0.2 s" in line for line in gateway.process.lines)
        answer = busy.getresponse()
        assert answer.status == 503 and "the gateway has stopped" in json.loads(answer.read())["error"]
        assert called.code() == grpc.StatusCode.UNAVAILABLE and "the gateway has stopped" in str(called.details())
        with pytest.raises((http.client.RemoteDisconnected, ConnectionResetError)):
            partial.getresponse()
    eventually(lambda: status(slow_fabric.frontend)["requests"]["outstanding"] == 0)


def test_a_request_waits_for_a_lost_worker_in_every_dialect() -> None:
    """TensorFlow Serving's form and requests for classes need the model's signature, which nobody serves meanwhile."""
    x = {"name": "x", "datatype": "FP32", "shape": [1], "data": [7]}
    classes = [{"name": "x", "parameters": {"classification": 1}}]
    requests = {
        "/v1/models/echo:predict": {"inputs": {"x": [7.0]}},
        "/v2/models/echo/infer": {"inputs": [x], "outputs": classes},
    }
    with running_broker("--worker-grace", "20") as fabric, running_gateway(fabric.frontend) as gateway:
        with running_workers(fabric.backend, "--executor", "echo", "--processes", "1"):
            wait_for_workers(fabric.frontend, 1)
            with connected(gateway) as connection:
                connection.request("GET", "/v2/models/echo/ready")
                assert connection.getresponse().status == 200
        eventually(lambda: not status(fabric.frontend)["models"])
        with ExitStack() as stack:
            connections = [stack.enter_context(connected(gateway)) for _ in requests]
            for connection, (path, body) in zip(connections, requests.items(), strict=True):
                connection.request("POST", path, json.dumps(body))
            eventually(lambda: queued(fabric) == 2)
            stack.enter_context(running_workers(fabric.backend, "--executor", "echo", "--processes", "1"))
            answers = [connection.getresponse() for connection in connections]
            assert [answer.status for answer in answers] == [200, 200]
            assert json.loads(answers[0].read()) == {"outputs": [7.0]}


def test_the_requests_timeout_is_the_brokers_budget(slow_fabric: Fabric, gateway: Gateway) -> None:
    with connected(gateway) as connection:
        sleep(connection, 0.3, timeout=100_000)
        answer = connection.getresponse()
        assert answer.status == 504
        assert "deadline" in json.loads(answer.read())["error"]
    eventually(lambda: status(slow_fabric.frontend)["requests"]["outstanding"] == 0)


def test_clients_that_vanish_are_noticed(gateway: Gateway) -> None:
    """The kernel probes silent connections: a stream may be silent for days, and its client without power."""
    for address in gateway.http, gateway.grpc:
        host, port = address.split(":")
        with socket.create_connection((host, int(port))) as client:
            ends = [f":{int(port):04X}", f":{client.getsockname()[1]:04X}"]

            def keepalive(ends: list[str] = ends) -> int:
                """Ticks until the next probe; 0 if the connection's timer, which has other uses, is not for it now."""
                for line in Path("/proc/net/tcp").read_text().splitlines():
                    _, local, remote, _, _, timer, *_ = line.split()
                    if [local[-5:], remote[-5:]] == ends and timer.startswith("02:"):
                        return int(timer[3:], 16)
                return 0

            assert eventually(keepalive) <= 60 * os.sysconf("SC_CLK_TCK")


def test_without_a_broker_the_gateway_lives_and_is_not_ready() -> None:
    nobody = running_gateway("tcp://127.0.0.1:9", options=("--timeout", "0.3"))
    with nobody as gateway, connected(gateway) as connection:
        connection.request("GET", "/v2/health/live")
        assert connection.getresponse().read() == b'{"live":true}'
        sleep(connection, 0.0)
        answer = connection.getresponse()
        assert answer.status == 503
        assert "no broker answered at tcp://127.0.0.1:9" in json.loads(answer.read())["error"]
        connection.request("GET", "/v2/health/ready")
        answer = connection.getresponse()
        assert answer.status == 503 and "no broker answered" in json.loads(answer.read())["error"]


def test_an_address_that_is_taken_is_one_clear_line() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with running("-m", "zmq_offload.gateway", "--http", address) as process:
            assert process.wait() == 1
            what = f"cannot listen at {address}: Address already in use"
            assert process.lines == [f"gateway: error: {what}; choose another address with --http, or none"]


def test_without_the_extra_one_line_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "uvloop", None)
    monkeypatch.delitem(sys.modules, "zmq_offload.gateway.server", raising=False)
    assert main(["gateway"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("gateway: error: a package is missing (") and "uvloop" in line
    assert line.endswith("install it with pip install 'zmq-offload[gateway]'")
