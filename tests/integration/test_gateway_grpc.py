"""The gRPC port of a real gateway: streams of Triton's clients, deadlines, cancellation, health checks, reflection."""

from __future__ import annotations

import asyncio
import queue
from collections.abc import AsyncIterator, Iterator
from typing import Any

import grpc
import numpy as np
import pytest
import tritonclient.grpc
import tritonclient.grpc.aio
from google.protobuf import descriptor_pb2
from tritonclient.utils import InferenceServerException

from tests.support.processes import (
    Fabric,
    Gateway,
    eventually,
    faulty_workers,
    running_broker,
    running_gateway,
    status,
    wait_for_workers,
)
from zmq_offload.protobuf.messages import message_class


@pytest.fixture(scope="module")
def fabric() -> Iterator[Fabric]:
    """Two workers that run one request at a time each, for as long as the request says."""
    with running_broker() as fabric, faulty_workers(fabric.backend, "--processes", "2", slots=1):
        wait_for_workers(fabric.frontend, 2)
        yield fabric


@pytest.fixture(scope="module")
def gateway(fabric: Fabric) -> Iterator[Gateway]:
    with running_gateway(fabric.frontend) as gateway:
        yield gateway


@pytest.fixture
def client(gateway: Gateway) -> Iterator[Any]:
    with tritonclient.grpc.InferenceServerClient(gateway.grpc) as client:
        yield client


@pytest.fixture
def channel(gateway: Gateway) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(gateway.grpc) as channel:
        yield channel


def tensor(seconds: float, name: str = "sleep") -> list[tritonclient.grpc.InferInput]:
    """The input of a request that takes this time in the worker."""
    given = tritonclient.grpc.InferInput(name, [], "FP32")
    given.set_data_from_numpy(np.array(seconds, np.float32))
    return [given]


def outstanding(fabric: Fabric) -> int:
    return int(status(fabric.frontend)["requests"]["outstanding"])


def canceled(fabric: Fabric) -> int:
    return int(status(fabric.frontend)["requests"]["failed"].get("CANCELLED", 0))


# --- streams ----------------------------------------------------------------------------------------------------


class Stream:
    """A stream of Triton's client, and what came of its requests."""

    def __init__(self, client: Any) -> None:
        self.client = client
        self.answers: queue.Queue[tuple[Any, Any]] = queue.Queue()
        client.start_stream(lambda result, error: self.answers.put((result, error)))

    def ask(self, seconds: float, request_id: str = "", **options: Any) -> None:
        self.client.async_stream_infer("echo", tensor(seconds), request_id=request_id, **options)

    def answer(self) -> Any:
        """The next answer. Raises what a request failed with."""
        result, error = self.answers.get(timeout=20)
        if error is not None:
            raise error
        return result.get_response()


def test_answers_of_a_stream_overtake_each_other_if_they_have_ids(client: Any) -> None:
    stream = Stream(client)
    stream.ask(0.3, "slow")
    stream.ask(0.0, "fast", enable_empty_final_response=True)
    answers = [stream.answer() for _ in range(2)]
    assert [answer.id for answer in answers] == ["fast", "slow"]
    assert all(answer.parameters["triton_final_response"].bool_param for answer in answers)
    client.stop_stream()


def test_answers_of_a_stream_without_ids_keep_their_order(client: Any) -> None:
    stream = Stream(client)
    for seconds in (0.2, 0.0, 0.1):
        stream.ask(seconds)
    values = [np.frombuffer(stream.answer().raw_output_contents[0], "<f4").item() for _ in range(3)]
    assert values == [np.float32(0.2), 0.0, np.float32(0.1)]
    client.stop_stream()


def test_a_stream_lives_on_after_an_error(client: Any) -> None:
    stream = Stream(client)
    stream.ask(0.0, "0", outputs=[tritonclient.grpc.InferRequestedOutput("nothing")])
    with pytest.raises(InferenceServerException, match="model 'echo' has no output 'nothing'; it has 'sleep'"):
        stream.answer()
    stream.ask(0.0, "1")
    assert stream.answer().id == "1"
    client.stop_stream()


def test_a_stream_takes_more_requests_than_may_be_under_way(client: Any) -> None:
    stream = Stream(client)
    for number in range(600):
        stream.ask(0.0, str(number))
    assert sorted(int(stream.answer().id) for _ in range(600)) == list(range(600))
    client.stop_stream()


def test_a_canceled_stream_takes_its_requests_out_of_the_queue(client: Any, fabric: Fabric) -> None:
    before = canceled(fabric)
    stream = Stream(client)
    for number in range(4):
        stream.ask(1.0, str(number))
    eventually(lambda: outstanding(fabric) == 4)
    client.stop_stream(cancel_requests=True)
    eventually(lambda: canceled(fabric) == before + 4)


def test_the_asyncio_client_streams(gateway: Gateway) -> None:
    async def requests() -> AsyncIterator[dict[str, Any]]:
        for number in range(5):
            model = "nobody" if number == 2 else "echo"
            yield {"model_name": model, "inputs": tensor(0.0), "request_id": str(number)}

    async def run() -> dict[str, str]:
        found = {}
        async with tritonclient.grpc.aio.InferenceServerClient(gateway.grpc) as client:
            async for result, error in client.stream_infer(requests()):
                if error is None:
                    found[result.get_response().id] = ""
                else:
                    found[""] = str(error)
        return found

    found = asyncio.run(run())
    assert found.keys() == {"0", "1", "3", "4", ""}
    assert "model 'nobody'" in found[""]


# --- deadlines and cancellation ---------------------------------------------------------------------------------


def test_deadline_of_a_call_and_timeout_of_a_request_are_the_brokers_budget(client: Any, fabric: Fabric) -> None:
    errors: queue.Queue[Any] = queue.Queue()
    for options in ({"client_timeout": 1.0}, {"timeout": 1_000_000}):
        client.async_infer("echo", tensor(1.5), lambda result, error: errors.put(error), **options)
    for _ in range(2):
        assert errors.get(timeout=20).status() == "StatusCode.DEADLINE_EXCEEDED"
    eventually(lambda: outstanding(fabric) == 0)


def test_a_canceled_call_takes_its_request_out_of_the_queue(client: Any, fabric: Fabric) -> None:
    before = canceled(fabric)
    calls = [client.async_infer("echo", tensor(1.0), lambda result, error: None) for _ in range(4)]
    eventually(lambda: outstanding(fabric) == 4)
    for call in calls:
        call.cancel()
    eventually(lambda: canceled(fabric) == before + 4)


# --- health checks and reflection -------------------------------------------------------------------------------


def stub(channel: grpc.Channel, kind: str, path: str, request: str, response: str) -> Any:
    """A method of gRPC's own client."""
    return getattr(channel, kind)(
        path,
        request_serializer=lambda fields: message_class(request)(**fields).SerializeToString(),
        response_deserializer=message_class(response).FromString,
    )


def health(channel: grpc.Channel, method: str, kind: str) -> Any:
    package = "grpc.health.v1"
    names = (f"{package}.HealthCheckRequest", f"{package}.HealthCheckResponse")
    return stub(channel, kind, f"/{package}.Health/{method}", *names)


SERVING, NOT_SERVING, SERVICE_UNKNOWN = 1, 2, 3


@pytest.mark.parametrize(
    "service", ["", "echo", "inference.GRPCInferenceService", "tensorflow.serving.PredictionService"]
)
def test_a_health_check_finds_gateway_services_and_models_serving(channel: grpc.Channel, service: str) -> None:
    assert health(channel, "Check", "unary_unary")({"service": service}).status == SERVING


def test_a_health_check_of_an_unknown_service_fails(channel: grpc.Channel) -> None:
    with pytest.raises(grpc.RpcError) as raised:
        health(channel, "Check", "unary_unary")({"service": "nobody"})
    assert raised.value.code() is grpc.StatusCode.NOT_FOUND  # type: ignore[attr-defined]


def test_a_watch_tells_of_changes_and_ends_with_the_gateway(fabric: Fabric) -> None:
    with (
        running_gateway(fabric.frontend, options=("--model-control",)) as gateway,
        grpc.insecure_channel(gateway.grpc) as channel,
        tritonclient.grpc.InferenceServerClient(gateway.grpc) as client,
    ):
        watch, unknown = (health(channel, "Watch", "unary_stream")({"service": name}) for name in ("echo", "nobody"))
        assert next(watch).status == SERVING
        assert next(unknown).status == SERVICE_UNKNOWN
        client.unload_model("echo")
        assert next(watch).status == NOT_SERVING
        unknown.cancel()
        gateway.process.popen.terminate()
        with pytest.raises(grpc.RpcError) as raised:
            next(watch)
        assert raised.value.code() is grpc.StatusCode.UNAVAILABLE  # type: ignore[attr-defined]
        assert gateway.process.wait() == 0
        assert not any("closed" in line for line in gateway.process.lines)


@pytest.mark.parametrize("package", ["grpc.reflection.v1", "grpc.reflection.v1alpha"])
def test_reflection_has_the_definitions_of_all_services(channel: grpc.Channel, package: str) -> None:
    service = f"{package}.ServerReflection"
    names = (f"{package}.ServerReflectionRequest", f"{package}.ServerReflectionResponse")
    ask = stub(channel, "stream_stream", f"/{service}/ServerReflectionInfo", *names)
    (listed,) = ask(iter([{"list_services": ""}]))
    services = [entry.name for entry in listed.list_services_response.service]
    known = {"grpc.health.v1.Health", "inference.GRPCInferenceService", "tensorflow.serving.PredictionService"}
    assert known | {service} < set(services)
    answers = list(ask({"file_containing_symbol": name} for name in services))
    for name, answer in zip(services, answers, strict=True):
        file = descriptor_pb2.FileDescriptorProto.FromString(answer.file_descriptor_response.file_descriptor_proto[0])
        assert name.removeprefix(f"{file.package}.") in [entry.name for entry in file.service]
