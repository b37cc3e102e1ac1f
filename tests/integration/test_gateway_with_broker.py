"""A gateway with a broker in its process: all who connect to either are served, lost workers, overload, the end."""

from __future__ import annotations

import http.client
import json
import os
import signal
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple

import grpc
import numpy as np
import pytest

from tests.support.processes import (
    Fabric,
    Gateway,
    eventually,
    faulty_workers,
    running,
    running_gateway,
    running_gateway_with_broker,
    status,
    wait_for_workers,
)
from zmq_offload import Client
from zmq_offload.protobuf.messages import message_class

INFER = "/inference.GRPCInferenceService/ModelInfer"


class Both(NamedTuple):
    gateway: Gateway
    fabric: Fabric


@contextmanager
def both(*options: str, workers: int = 2, **environment: str) -> Iterator[Both]:
    with (
        running_gateway_with_broker(*options, **environment) as (gateway, fabric),
        faulty_workers(fabric.backend, "--processes", str(workers), slots=1),
    ):
        wait_for_workers(fabric.frontend, workers)
        yield Both(gateway, fabric)


@pytest.fixture(scope="module")
def served() -> Iterator[Both]:
    with both() as served:
        yield served


def post(gateway: Gateway, tensors: Mapping[str, np.ndarray[Any, Any]], **parameters: Any) -> tuple[int, Any]:
    """Status and body of a request over HTTP, with its tensors as JSON."""
    inputs = [
        {"name": name, "datatype": "FP32", "shape": list(tensor.shape), "data": tensor.ravel().tolist()}
        for name, tensor in tensors.items()
    ]
    connection = http.client.HTTPConnection(gateway.http, timeout=20)
    try:
        connection.request("POST", "/v2/models/echo/infer", json.dumps({"inputs": inputs, "parameters": parameters}))
        response = connection.getresponse()
        return response.status, json.loads(response.read())
    finally:
        connection.close()


def over_http(gateway: Gateway, tensor: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    given = {"name": "x", "datatype": "FP32", "shape": list(tensor.shape)}
    given["parameters"] = {"binary_data_size": tensor.nbytes}
    head = json.dumps({"inputs": [given], "parameters": {"binary_data_output": True}}).encode()
    connection = http.client.HTTPConnection(gateway.http, timeout=20)
    headers = {"Inference-Header-Content-Length": str(len(head))}
    connection.request("POST", "/v2/models/echo/infer", head + tensor.tobytes(), headers)
    response = connection.getresponse()
    body, length = response.read(), int(response.headers["Inference-Header-Content-Length"])
    connection.close()
    return np.frombuffer(body[length:], np.float32).reshape(tensor.shape)


def over_grpc(gateway: Gateway, tensor: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    request = message_class("inference.ModelInferRequest")(
        model_name="echo",
        inputs=[{"name": "x", "datatype": "FP32", "shape": tensor.shape}],
        raw_input_contents=[tensor.tobytes()],
    )
    with grpc.insecure_channel(gateway.grpc) as channel:
        reply = channel.unary_unary(INFER)(request.SerializeToString())
    found = message_class("inference.ModelInferResponse").FromString(reply)
    return np.frombuffer(found.raw_output_contents[0], np.float32).reshape(tensor.shape)


def over_zeromq(fabric: Fabric, tensor: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    with Client(fabric.frontend) as client:
        return client.infer("echo", {"x": tensor})["x"]


@pytest.mark.parametrize("count", [256, 40_000, 500_000])
def test_all_ways_in_are_served_alike(served: Both, count: int) -> None:
    gateway, fabric = served
    tensor = np.random.default_rng(count).standard_normal((1, count), np.float32)
    with running_gateway(fabric.frontend) as other, ThreadPoolExecutor() as pool:
        answers = [
            pool.submit(over_http, gateway, tensor),
            pool.submit(over_grpc, gateway, tensor),
            pool.submit(over_zeromq, fabric, tensor),
            pool.submit(over_http, other, tensor),
        ]
        assert all(np.array_equal(answer.result(30), tensor) for answer in answers)


def test_a_lost_workers_request_is_sent_to_another(served: Both) -> None:
    gateway, fabric = served
    busy = wait_for_workers(fabric.frontend, 2)
    with ThreadPoolExecutor() as pool:
        answers = [pool.submit(post, gateway, {"sleep": np.array(0.5, np.float32)}) for _ in range(2)]
        eventually(lambda: status(fabric.frontend)["requests"]["outstanding"] == 2)
        os.kill(busy[0], signal.SIGKILL)
        assert [answer.result(30)[0] for answer in answers] == [200, 200]
    wait_for_workers(fabric.frontend, 2)


def test_deadlines_and_closed_connections_take_requests_out_of_the_queue(served: Both) -> None:
    gateway, fabric = served
    code, body = post(gateway, {"sleep": np.array(0.5, np.float32)}, timeout=200_000)
    assert (code, "deadline exceeded" in body["error"]) == (504, True)
    waiting = http.client.HTTPConnection(gateway.http, timeout=20)
    with ThreadPoolExecutor() as pool:
        running = [pool.submit(post, gateway, {"sleep": np.array(0.7, np.float32)}) for _ in range(2)]
        eventually(lambda: status(fabric.frontend)["requests"]["outstanding"] == 2)
        waiting.request(
            "POST", "/v2/models/echo/infer", '{"inputs":[{"name":"x","datatype":"FP32","shape":[1],"data":[1]}]}'
        )
        eventually(lambda: status(fabric.frontend)["requests"]["queued"] == 1)
        waiting.close()
        eventually(lambda: status(fabric.frontend)["requests"]["queued"] == 0)
        assert [answer.result(30)[0] for answer in running] == [200, 200]


def test_overload_and_the_end() -> None:
    """The broker's options that are no options of the gateway come from their variables."""
    with both(workers=1, ZMQ_OFFLOAD_MAX_QUEUED="1") as (gateway, fabric), ThreadPoolExecutor() as pool:
        assert post(gateway, {"x": np.zeros(1, np.float32)})[0] == 200
        running = pool.submit(post, gateway, {"sleep": np.array(0.6, np.float32)})
        eventually(lambda: status(fabric.frontend)["requests"]["outstanding"] == 1)
        queued = pool.submit(post, gateway, {"sleep": np.array(0.1, np.float32)})
        eventually(lambda: status(fabric.frontend)["requests"]["queued"] == 1)
        code, body = post(gateway, {"x": np.zeros(1, np.float32)})
        assert code == 429, body
        with Client(fabric.frontend) as client:
            late = client.submit("echo", {"sleep": np.float32(0.0)}, timeout=5)
            assert late.exception(10) is not None
        gateway.process.popen.terminate()
        gateway.process.wait_for("stopping: finishing 2 requests")
        assert (running.result(30)[0], queued.result(30)[0]) == (200, 200)
        assert gateway.process.wait() == 0


BROKEN = """
import sys
import broker.core
from zmq_offload.gateway.__main__ import main

works = broker.core.Core.decide

def decide(self, event, now):
    if type(event).__name__ == EVENT:
        raise ZeroDivisionError
    return works(self, event, now)

broker.core.Core.decide = decide
sys.exit(main())
"""


@pytest.mark.parametrize("event", ["FromClient", "Stop"])
def test_a_broker_that_breaks_ends_the_process(event: str) -> None:
    """As it would its own: a gateway that nobody answers would look healthy. Also if it is stopping already."""
    local = "127.0.0.1:0"
    program = f"EVENT = {event!r}\n{BROKEN}"
    with running(
        "-c", program, "--with-broker", f"tcp://{local},tcp://{local}", "--http", local, "--grpc", "none"
    ) as process:
        address = process.wait_for(r"ready http=(\S+)")[1]
        if event == "Stop":
            process.popen.send_signal(signal.SIGTERM)
        else:
            with suppress(
                http.client.RemoteDisconnected, ConnectionResetError, ConnectionRefusedError
            ):  # an answer may come, or not
                assert post(Gateway(process, address, ""), {"x": np.zeros(1, np.float32)})[0] == 503
        assert process.wait() == 1
        assert process.lines[-1].endswith("ZeroDivisionError")


@pytest.mark.parametrize(
    ("options", "environment", "says"),
    [
        (["--with-broker", "tcp://*:5555"], {}, "is not two endpoints; use FRONTEND,BACKEND"),
        (["--with-broker", "--broker=tcp://edge:5555"], {}, "uses the broker in its process, so give one of them"),
        (["--with-broker", "--client-key", "a", "--broker-key", "b"], {}, "a broker in this process has no keys"),
        (
            ["--with-broker"],
            {"SERVER_KEY": "s", "AUTHORIZED_CLIENTS": "c", "AUTHORIZED_WORKERS": "w"},
            "run it as a process of its own: zmq-offload broker",
        ),
        (["--with-broker", "tcp://0.0.0.0:0,tcp://127.0.0.1:0"], {}, "can be reached from other machines without keys"),
        (["--with-broker", "tcp://127.0.0.1:0,{taken}"], {}, "cannot bind"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(
    served: Both, options: list[str], environment: dict[str, str], says: str
) -> None:
    given = [option.format(taken=served.fabric.backend) for option in options]
    variables = {f"ZMQ_OFFLOAD_{name}": value for name, value in environment.items()}
    with running(
        "-m", "zmq_offload.gateway", "--http", "127.0.0.1:0", "--grpc", "none", *given, **variables
    ) as process:
        assert process.wait() in (1, 2)
        assert says in process.lines[-1]
