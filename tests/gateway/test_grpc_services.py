"""gRPC's health checks and reflection, without sockets."""

from __future__ import annotations

import pytest
from google.protobuf import descriptor_pb2, descriptor_pool

from tests.gateway.fake_fabric import ALL, FakeFabric, model
from zmq_offload.errors import (
    Internal,
    InvalidArgument,
    NotFound,
    OffloadError,
    ResourceExhausted,
    Unauthenticated,
    Unavailable,
)
from zmq_offload.gateway.access.decisions import HEALTH
from zmq_offload.gateway.grpc import health, reflection
from zmq_offload.gateway.grpc.calls import Context
from zmq_offload.protobuf.messages import message_class
from zmq_offload.protocol.tensors import TensorSpec

X = TensorSpec("x", "FP32", (3,))
SERVICES = ["inference.GRPCInferenceService", "grpc.health.v1.Health"]
CONTEXT = Context(ALL, None, {})


class Client:
    """The writer of a streaming call."""

    def __init__(self, response):
        self.response = message_class(response)
        self.sent, self.closed = [], []

    def send(self, message):
        assert not self.closed
        self.sent.append(self.response.FromString(b"".join(message)))

    def close(self, error=None):
        assert not self.closed
        self.closed.append(error)


@pytest.fixture
def fabric():
    return FakeFabric(model("echo", X, outputs=(X,)))


# --- health -----------------------------------------------------------------------------------------------------


class Timers:
    """Timers that end when the test says so."""

    def __init__(self):
        self.waiting = {}

    def later(self, seconds, call):
        assert seconds == health.EVERY
        number = len(self.waiting)
        self.waiting[number] = call
        return lambda: self.waiting.pop(number)

    def tick(self):
        waiting, self.waiting = self.waiting, {}
        for call in waiting.values():
            call()


class Health:
    """A client of the health service."""

    def __init__(self, fabric, context=CONTEXT):
        self.context = context
        self.timers = Timers()
        self.methods = health.methods(fabric, SERVICES, self.timers.later)

    def check(self, service=""):
        return self.send(self.request(service))

    def send(self, data):
        replies = []
        self.cancel = self.methods["/grpc.health.v1.Health/Check"](data, self.context, replies.append)
        if not replies:
            return None
        (reply,) = replies
        return reply if isinstance(reply, OffloadError) else self.response.FromString(b"".join(reply)).status

    def watch(self, service=""):
        client = Client("grpc.health.v1.HealthCheckResponse")
        client.stream = self.methods["/grpc.health.v1.Health/Watch"].begin(self.context, client)
        client.stream.message(self.request(service))
        client.stream.half_closed()
        return client

    def request(self, service):
        return message_class("grpc.health.v1.HealthCheckRequest")(service=service).SerializeToString()

    response = message_class("grpc.health.v1.HealthCheckResponse")


SERVING, NOT_SERVING, UNKNOWN = 1, 2, 3


@pytest.mark.parametrize("service", ["", *SERVICES, "echo"])
def test_gateway_services_and_models_serve(fabric, service):
    client = Health(fabric)
    assert client.check(service) == SERVING
    fabric.stopping = True
    assert client.check(service) == NOT_SERVING
    fabric.stopping = False
    fabric.catalog = Unavailable("no broker answers")
    assert client.check(service) == NOT_SERVING


def test_who_has_no_credential_learns_nothing_of_models(fabric):
    client = Health(fabric, Context(HEALTH, None, {}))
    for service in ("", *SERVICES):
        assert client.check(service) == SERVING
    for service in ("echo", "other"):
        assert isinstance(client.check(service), Unauthenticated)
        watcher = client.watch(service)
        assert [type(error) for error in watcher.closed] == [Unauthenticated] and not watcher.sent


def test_a_number_of_clients_may_watch(fabric, monkeypatch):
    monkeypatch.setattr(health, "WATCHING", 2)
    client = Health(fabric)
    first, second, third = (client.watch("") for _ in range(3))
    assert [type(error) for error in third.closed] == [ResourceExhausted] and not third.sent
    assert not first.closed and not second.closed
    first.stream.canceled()
    third.stream.canceled()
    assert not client.watch("").closed
    assert [type(error) for error in client.watch("").closed] == [ResourceExhausted]


def test_a_gateway_without_models_does_not_serve(fabric):
    fabric.catalog = FakeFabric().catalog
    client = Health(fabric)
    assert client.check() == NOT_SERVING
    assert isinstance(client.check("echo"), NotFound)


def test_an_unloaded_model_does_not_serve(fabric):
    fabric.control.closed.add("echo")
    assert Health(fabric).check("echo") == NOT_SERVING


def test_a_check_is_canceled(fabric):
    fabric.hold = True
    client = Health(fabric)
    assert client.check() is None
    client.cancel()
    assert fabric.canceled == 1


def test_bytes_that_are_no_check_are_refused(fabric):
    client = Health(fabric)
    assert isinstance(client.send(b"\xff"), Internal)
    watcher = Client("grpc.health.v1.HealthCheckResponse")
    stream = client.methods["/grpc.health.v1.Health/Watch"].begin(CONTEXT, watcher)
    stream.message(b"\xff")
    stream.message(client.request(""))
    stream.half_closed()
    (error,) = watcher.closed
    assert isinstance(error, Internal)
    assert watcher.sent == []


def test_a_watch_without_a_request_is_refused(fabric):
    watcher = Client("grpc.health.v1.HealthCheckResponse")
    Health(fabric).methods["/grpc.health.v1.Health/Watch"].begin(CONTEXT, watcher).half_closed()
    (error,) = watcher.closed
    assert isinstance(error, InvalidArgument)


def test_a_watch_tells_each_change_once(fabric):
    client = Health(fabric)
    known, unknown = client.watch("echo"), client.watch("nobody")
    client.timers.tick()
    fabric.control.closed.add("echo")
    client.timers.tick()
    client.timers.tick()
    fabric.control.closed.clear()
    client.timers.tick()
    assert [answer.status for answer in known.sent] == [SERVING, NOT_SERVING, SERVING]
    assert [answer.status for answer in unknown.sent] == [UNKNOWN]
    assert known.closed == unknown.closed == []


def test_a_watch_takes_one_request_only(fabric):
    client = Health(fabric)
    watcher = client.watch()
    watcher.stream.message(client.request("nobody"))
    assert [answer.status for answer in watcher.sent] == [SERVING]
    assert len(client.timers.waiting) == 1


def test_a_watch_ends_when_the_gateway_stops(fabric):
    client = Health(fabric)
    watcher = client.watch()
    fabric.stopping = True
    client.timers.tick()
    assert [answer.status for answer in watcher.sent] == [SERVING, NOT_SERVING]
    (error,) = watcher.closed
    assert isinstance(error, Unavailable)
    assert client.timers.waiting == {}


def test_a_watch_of_a_client_that_is_gone_ends(fabric):
    client = Health(fabric)
    watcher = client.watch()
    watcher.stream.canceled()
    assert client.timers.waiting == {}
    fabric.hold = True
    watcher = client.watch()
    watcher.stream.canceled()
    fabric.release()
    assert (watcher.sent, client.timers.waiting) == ([], {})


# --- reflection -------------------------------------------------------------------------------------------------


class Reflection(Client):
    """A client of the reflection service."""

    def __init__(self, package="grpc.reflection.v1"):
        super().__init__(f"{package}.ServerReflectionResponse")
        self.package = package
        found = reflection.methods([*SERVICES, "some.Service"])
        self.stream = found[f"/{package}.ServerReflection/ServerReflectionInfo"].begin(CONTEXT, self)

    def ask(self, **fields):
        request = message_class(f"{self.package}.ServerReflectionRequest")(host="here", **fields)
        self.stream.message(request.SerializeToString())
        response = self.sent.pop()
        assert response.original_request == request
        assert response.valid_host == "here"
        return response


@pytest.fixture(params=reflection.PACKAGES)
def client(request):
    return Reflection(request.param)


def test_services_are_listed(client):
    names = [service.name for service in client.ask(list_services="").list_services_response.service]
    assert names == sorted([*SERVICES, *(f"{package}.ServerReflection" for package in reflection.PACKAGES)])


@pytest.mark.parametrize(
    "question",
    [
        {"file_by_filename": "grpc_service.proto"},
        {"file_containing_symbol": "inference.GRPCInferenceService"},
        {"file_containing_symbol": "inference.GRPCInferenceService.ModelInfer"},
        {"file_containing_symbol": "inference.ModelInferRequest.InferInputTensor"},
    ],
)
def test_files_come_with_those_that_they_import(client, question):
    files = client.ask(**question).file_descriptor_response.file_descriptor_proto
    protos = [descriptor_pb2.FileDescriptorProto.FromString(file) for file in files]
    assert [proto.name for proto in protos] == ["grpc_service.proto", "model_config.proto"]
    pool = descriptor_pool.DescriptorPool()
    for file in reversed(files):
        pool.AddSerializedFile(file)
    assert len(pool.FindServiceByName("inference.GRPCInferenceService").methods) == 20


@pytest.mark.parametrize(
    "question",
    [
        {"file_by_filename": "nothing.proto"},
        {"file_containing_symbol": "inference.Nothing"},
        {"file_containing_symbol": "inference.GRPCInferenceService.Nothing"},
        {"file_containing_symbol": ""},
        {"file_containing_extension": {"containing_type": "inference.ModelInferRequest", "extension_number": 100}},
        {"file_containing_extension": {"containing_type": "inference.Nothing", "extension_number": 100}},
        {"all_extension_numbers_of_type": "inference.Nothing"},
    ],
)
def test_what_is_not_known_is_an_error_and_the_stream_lives_on(client, question):
    assert client.ask(**question).error_response.error_code == 5
    assert client.closed == []


def test_messages_have_no_extensions(client):
    response = client.ask(all_extension_numbers_of_type="inference.ModelInferRequest").all_extension_numbers_response
    assert (response.base_type_name, list(response.extension_number)) == ("inference.ModelInferRequest", [])


def test_a_request_for_nothing_is_an_error(client):
    assert client.ask().error_response.error_code == 3


def test_the_stream_ends_with_the_last_request(client):
    client.stream.half_closed()
    assert client.closed == [None]


def test_bytes_that_are_no_request_end_the_stream(client):
    client.stream.message(b"\xff")
    client.stream.message(b"\xff")
    client.stream.half_closed()
    (error,) = client.closed
    assert isinstance(error, Internal)


def test_a_client_that_is_gone_gets_nothing(client):
    client.stream.canceled()
    client.stream.half_closed()
    client.stream.message(b"")
    assert (client.sent, client.closed) == ([], [])
