"""Load on gateways over HTTP and gRPC; every answer is checked."""

from __future__ import annotations

import http.client
import itertools
import json
import queue
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import grpc
import numpy as np
from tritonclient.grpc import service_pb2

ELEMENTS = 1000
Array = np.ndarray[Any, Any]


class Refused(Exception):
    """Nobody listens at the address; nothing was sent."""


class Failed(Exception):
    """The gateway answered with an error, whose code is the argument."""


class Caller(Protocol):
    """A client that calls the model `echo`. Any other exception than the two above is a fault of the gateway."""

    def call(self, x: Array, timeout: float) -> Array: ...

    def close(self) -> None: ...


class HttpCaller:
    """One connection, kept as long as the gateway keeps it."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._connection: http.client.HTTPConnection | None = None

    def call(self, x: Array, timeout: float) -> Array:
        if self._connection is None:
            self._connection = http.client.HTTPConnection(self._address, timeout=timeout + 20)
            try:
                self._connection.connect()
            except ConnectionRefusedError as error:
                self._connection = None
                raise Refused from error
        given = {"name": "x", "datatype": "FP64", "shape": x.shape, "parameters": {"binary_data_size": x.nbytes}}
        parameters = {"binary_data_output": True, "timeout": round(timeout * 1e6)}
        head = json.dumps({"inputs": [given], "parameters": parameters}).encode()
        length = {"Inference-Header-Content-Length": str(len(head))}
        self._connection.request("POST", "/v2/models/echo/infer", head + x.tobytes(), length)
        response = self._connection.getresponse()
        body = response.read()
        if response.will_close:
            self._connection.close()
            self._connection = None
        if response.status != 200:
            assert json.loads(body)["error"], body
            raise Failed(str(response.status))
        return np.frombuffer(body[int(response.headers["Inference-Header-Content-Length"]) :], x.dtype)

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()


def _request(x: Array, timeout: float) -> service_pb2.ModelInferRequest:
    request = service_pb2.ModelInferRequest(model_name="echo", raw_input_contents=[x.tobytes()])
    request.inputs.add(name="x", datatype="FP64", shape=x.shape)
    request.parameters["timeout"].int64_param = round(timeout * 1e6)
    return request


def _raise(error: grpc.RpcError, new: bool = False) -> None:
    """`new`: whether the call is a stream without an answer yet."""
    details = str(error.details()).lower()  # type: ignore[attr-defined]
    if "refused" in details or "failed to connect" in details:
        raise Refused from error
    if new and "goaway received; error code: 0" in details:
        # gRPC's library began the call while it heard that the connection takes no more, and did not send it.
        raise Refused from error
    if any(word in details for word in ("reset", "socket closed", "goaway", "rst_stream")):
        raise error
    raise Failed(error.code().name) from error  # type: ignore[attr-defined]


class GrpcCaller:
    """One channel, to one address or to several in turns."""

    def __init__(self, *addresses: str) -> None:
        options = [("grpc.lb_policy_name", "round_robin"), ("grpc.use_local_subchannel_pool", 1)]
        self._channel = grpc.insecure_channel("ipv4:" + ",".join(addresses), options)
        self._method = self._channel.unary_unary(
            "/inference.GRPCInferenceService/ModelInfer",
            request_serializer=service_pb2.ModelInferRequest.SerializeToString,
            response_deserializer=service_pb2.ModelInferResponse.FromString,
        )

    def call(self, x: Array, timeout: float) -> Array:
        try:
            reply = self._method(_request(x, timeout), timeout=timeout + 20)
        except grpc.RpcError as error:
            _raise(error)
        return np.frombuffer(reply.raw_output_contents[0], x.dtype)

    def close(self) -> None:
        self._channel.close()


class StreamCaller:
    """One stream as long as it lasts, and a request in it at a time."""

    def __init__(self, address: str) -> None:
        self._channel = grpc.insecure_channel(address, [("grpc.use_local_subchannel_pool", 1)])
        self._requests: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._replies: Any = None

    def call(self, x: Array, timeout: float) -> Array:
        new = self._replies is None
        if new:
            self._requests = queue.SimpleQueue()
            method = self._channel.stream_stream(
                "/inference.GRPCInferenceService/ModelStreamInfer",
                request_serializer=service_pb2.ModelInferRequest.SerializeToString,
                response_deserializer=service_pb2.ModelStreamInferResponse.FromString,
            )
            self._replies = method(iter(self._requests.get, None))
        self._requests.put(_request(x, timeout))
        try:
            reply = next(self._replies, None)
        except grpc.RpcError as error:
            self._replies = None
            _raise(error, new)
        if reply is None:
            self._replies = None
            raise Failed("the stream ended")
        if reply.error_message:
            raise Failed("an error in the stream")
        return np.frombuffer(reply.infer_response.raw_output_contents[0], x.dtype)

    def close(self) -> None:
        self._requests.put(None)
        self._channel.close()


class Traffic:
    """Callers that call one after the other, each in a thread, until `stop`.

    A caller that is refused goes to the next of its kind's addresses, or tries again after a moment.
    """

    def __init__(self, makers: Sequence[Any], timeout: float = 5.0, elements: int = ELEMENTS) -> None:
        self._elements = elements
        self.served: Counter[str] = Counter()
        """Right answers, by the kind of the caller."""
        self.errors: Counter[str] = Counter()
        self.refused = 0
        self.faults: list[str] = []
        """What must not be: a wrong answer, a broken connection, an answer long after the deadline."""
        self._timeout = timeout
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=self._run, args=(n, make)) for n, make in enumerate(makers)]
        for thread in self._threads:
            thread.start()

    @property
    def total(self) -> int:
        return sum(self.served.values())

    def stop(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(self._timeout + 40)
            assert not thread.is_alive(), "a caller hangs"

    def __str__(self) -> str:
        return (
            f"served {dict(self.served)}, errors {dict(self.errors)}, {self.refused} refused, faults {self.faults[:5]}"
        )

    def _run(self, which: int, make: Any) -> None:
        caller: Caller = make()
        kind = type(caller).__name__
        for count in itertools.count():
            if self._stop.is_set():
                break
            x = np.full(self._elements, which * 1e9 + count)
            began = time.monotonic()
            try:
                right = np.array_equal(caller.call(x, self._timeout), x)
            except Refused:
                with self._lock:
                    self.refused += 1
                caller.close()
                self._stop.wait(0.05)
                caller = make()
                continue
            except Failed as error:
                with self._lock:
                    self.errors[str(error)] += 1
                right = True
            except Exception as error:
                with self._lock:
                    self.faults.append(f"{kind}: {type(error).__name__}: {error}")
                caller.close()
                caller = make()
                continue
            else:
                with self._lock:
                    self.served[kind] += 1
            if not right or time.monotonic() - began > self._timeout + 1:
                with self._lock:
                    self.faults.append(f"{kind}: {'late' if right else 'a wrong answer'}")
        caller.close()


@contextmanager
def traffic(makers: Sequence[Any], timeout: float = 5.0, elements: int = ELEMENTS) -> Iterator[Traffic]:
    """Load that runs while the body does."""
    running = Traffic(makers, timeout, elements)
    try:
        yield running
    finally:
        running.stop()
