"""The Open Inference Protocol over gRPC, without sockets: real messages of Triton's client, a fabric that echoes."""

from __future__ import annotations

import uuid
from pathlib import Path

import numpy as np
import pytest
from google.protobuf.json_format import MessageToDict
from hypothesis import given, settings
from hypothesis import strategies as st
from tritonclient.grpc import service_pb2
from tritonclient.utils import serialize_byte_tensor

from tests.gateway.fake_fabric import ALL, FakeFabric, model
from zmq_offload.client.results import Timings
from zmq_offload.errors import (
    DeadlineExceeded,
    Internal,
    InvalidArgument,
    NotFound,
    OffloadError,
    Unavailable,
    Unimplemented,
)
from zmq_offload.gateway.grpc.calls import Context
from zmq_offload.gateway.oip import grpc_stream
from zmq_offload.gateway.oip.grpc_service import SERVICE, methods
from zmq_offload.gateway.regions.files import Off, System
from zmq_offload.protocol.tensors import DATATYPES, TensorSpec

X = TensorSpec("x", "FP32", (-1, 3))
ROW = np.array([[1, 2, 3]], "<f4")
ALL_METHODS = service_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"].methods_by_name


@pytest.fixture
def fabric():
    return FakeFabric(model("identity", X, outputs=(X,)))


class Caller:
    """Calls methods as a client does."""

    def __init__(self, fabric, memory=None):
        self.methods = methods(fabric, memory or Off())
        self.replies = []
        self.cancel = None

    def __call__(self, method, timeout=None, **fields):
        request = getattr(service_pb2, ALL_METHODS[method].input_type.name)(**fields)
        return self.send(method, request.SerializeToString(), timeout)

    def send(self, method, data, timeout=None):
        """The reply as a message, or the error; None if there is no reply yet."""
        self.replies.clear()
        self.cancel = self.methods[f"/{SERVICE}/{method}"](data, Context(ALL, timeout, {}), self.replies.append)
        if not self.replies:
            return None
        (reply,) = self.replies
        if isinstance(reply, OffloadError):
            return reply
        return getattr(service_pb2, ALL_METHODS[method].output_type.name).FromString(b"".join(reply))


@pytest.fixture
def call(fabric):
    return Caller(fabric)


def request(**changes):
    """The fields of a request to run the model."""
    fields = {
        "model_name": "identity",
        "inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 3]}],
        "raw_input_contents": [ROW.tobytes()],
    }
    return {name: value for name, value in (fields | changes).items() if value is not None}


def x(**changes):
    """The input, described otherwise."""
    return [{"name": "x", "datatype": "FP32", "shape": [1, 3]} | changes]


SIZE = {"shared_memory_byte_size": {"int64_param": 12}}


def test_every_method_of_the_service_is_there(call):
    assert set(call.methods) == {f"/{SERVICE}/{name}" for name in ALL_METHODS}


# --- inference --------------------------------------------------------------------------------------------------


def test_a_model_runs_on_raw_contents(call, fabric):
    reply = call("ModelInfer", **request(id="7", model_version="1"))
    assert (reply.model_name, reply.model_version, reply.id) == ("identity", "1", "7")
    assert not reply.parameters
    assert reply.raw_output_contents == [ROW.tobytes()]
    (output,) = reply.outputs
    assert (output.name, output.datatype, list(output.shape)) == ("x", "FP32", [1, 3])
    (sent,) = fabric.calls
    assert (sent.model, sent.version, sent.timeout, sent.priority) == ("identity", 1, None, 0)


@pytest.mark.parametrize("datatype", DATATYPES)
@pytest.mark.parametrize("shape", [(), (0, 3), (2, 1, 3), (1100,)])
def test_raw_contents_of_every_datatype_come_back(call, datatype, shape):
    data = (np.arange(np.prod(shape, dtype=int)).reshape(shape) % 2).astype(DATATYPES[datatype]).tobytes()
    reply = call("ModelInfer", **request(inputs=x(datatype=datatype, shape=shape), raw_input_contents=[data]))
    assert (reply.outputs[0].datatype, tuple(reply.outputs[0].shape)) == (datatype, shape)
    assert reply.raw_output_contents == [data]


@pytest.mark.parametrize(
    ("datatype", "field", "values"),
    [
        ("BOOL", "bool_contents", [True, False, True]),
        ("INT8", "int_contents", [-128, 0, 127]),
        ("INT16", "int_contents", [-(2**15), 0, 2**15 - 1]),
        ("INT32", "int_contents", [-(2**31), 0, 2**31 - 1]),
        ("INT64", "int64_contents", [-(2**63), 0, 2**63 - 1]),
        ("UINT8", "uint_contents", [0, 1, 255]),
        ("UINT16", "uint_contents", [0, 1, 2**16 - 1]),
        ("UINT32", "uint_contents", [0, 1, 2**32 - 1]),
        ("UINT64", "uint64_contents", [0, 1, 2**64 - 1]),
        ("FP32", "fp32_contents", [1.5, float("inf"), -0.0]),
        ("FP64", "fp64_contents", [1e300, float("-inf"), 0.1]),
    ],
)
@pytest.mark.parametrize("rows", [1, 2000])
def test_typed_contents_come_back(call, datatype, field, values, rows):
    inputs = x(datatype=datatype, shape=[rows, 3], contents={field: values * rows})
    reply = call("ModelInfer", **request(inputs=inputs, raw_input_contents=None))
    array = np.frombuffer(reply.raw_output_contents[0], DATATYPES[datatype])
    assert array.tolist() == values * rows
    assert list(reply.outputs[0].shape) == [rows, 3]


def test_no_values_in_contents_are_an_empty_tensor(call):
    inputs = [
        x(shape=[0, 3], contents={})[0],
        x(name="y", datatype="INT8", shape=[1], contents={"int_contents": [7]})[0],
    ]
    reply = call("ModelInfer", **request(inputs=inputs, raw_input_contents=None))
    assert reply.raw_output_contents == [b"", b"\x07"]


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"model_name": None}, NotFound, "model '' is not served, and no model can have this name"),
        ({"model_version": "first"}, InvalidArgument, "version 'first' is not a whole number from 1 to 2147483647"),
        ({"model_version": "99999999999"}, InvalidArgument, "is not a whole number from 1 to"),
        ({"inputs": x(shape=[1, 4])}, InvalidArgument, r"input 'x': FP32\[1, 4\] has 16 bytes, not 12"),
        ({"inputs": x(shape=[-1, 3])}, InvalidArgument, r"input 'x' has shape \[-1, 3\]; an extent is a number"),
        ({"inputs": x(datatype="BYTES")}, InvalidArgument, "has datatype 'BYTES', which no model here takes"),
        ({"inputs": x(datatype="FLOAT")}, InvalidArgument, "has datatype 'FLOAT', which is not known"),
        ({"inputs": x() + x()}, InvalidArgument, "two inputs have the name 'x'; names must differ"),
        ({"outputs": [{"name": "z"}]}, InvalidArgument, "model 'identity' has no output 'z'; it has 'x'"),
        ({"outputs": [{"name": "x"}] * 2}, InvalidArgument, "output 'x' is requested twice"),
        ({"raw_input_contents": None}, InvalidArgument, "input 'x' has no data; add it to raw_input_contents"),
        ({"inputs": x(contents={"fp32_contents": [1]})}, InvalidArgument, "contents beside raw_input_contents"),
        ({"parameters": {"timeout": {"string_param": "1"}}}, InvalidArgument, "parameter 'timeout' is '1'"),
        ({"parameters": {"triton_x": {"bool_param": True}}}, InvalidArgument, "parameter 'triton_x' is reserved"),
        (
            {"parameters": {"triton_enable_empty_final_response": {"int64_param": 1}}},
            InvalidArgument,
            "parameter 'triton_enable_empty_final_response' is 1; use true or false",
        ),
        (
            {"inputs": x(contents={}, parameters={"shared_memory_region": {"string_param": "r"}, **SIZE})},
            InvalidArgument,
            "input 'x' has contents and shared_memory_region; use one of them",
        ),
        (
            {"inputs": x(parameters={"shared_memory_region": {"string_param": "r"}, **SIZE})},
            Unimplemented,
            "is switched off",
        ),
        (
            {"outputs": [{"name": "x", "parameters": {"shared_memory_region": {"string_param": "r"}, **SIZE}}]},
            Unimplemented,
            "is switched off",
        ),
        ({"parameters": {"color": {}}}, InvalidArgument, "parameter 'color' is null"),
    ],
)
def test_a_bad_request_is_refused(call, changes, error, message):
    with pytest.raises(error, match=message):
        raise call("ModelInfer", **request(**changes))


@pytest.mark.parametrize(
    ("datatype", "contents", "message"),
    [
        ("FP32", {"fp32_contents": [1, 2]}, r"input 'x': FP32\[1, 3\] has 12 bytes, not 8"),
        ("FP32", {"int_contents": [1, 2, 3]}, "input 'x' is FP32, but has int_contents; use fp32_contents"),
        ("FP32", {"fp32_contents": [1, 2, 3], "int_contents": [1]}, "but has int_contents; use fp32_contents"),
        ("FP32", {"bytes_contents": [b"1"]}, "input 'x' is FP32, but has bytes_contents; use fp32_contents"),
        ("FP16", {"fp32_contents": [1, 2, 3]}, "is FP16, for which contents have no field; use raw_input_contents"),
        ("INT8", {"int_contents": [1, 2, 128]}, "input 'x' has a value in int_contents that is not INT8"),
        ("UINT16", {"uint_contents": [1, 2, 65536]}, "input 'x' has a value in uint_contents that is not UINT16"),
    ],
)
def test_bad_contents_are_refused(call, datatype, contents, message):
    inputs = x(datatype=datatype, contents=contents)
    with pytest.raises(InvalidArgument, match=message):
        raise call("ModelInfer", **request(inputs=inputs, raw_input_contents=None))


def test_more_raw_contents_than_inputs_are_not_used(call):
    reply = call("ModelInfer", **request(raw_input_contents=[ROW.tobytes(), b"more"]))
    assert reply.raw_output_contents == [ROW.tobytes()]


def test_unusual_bytes_are_read_as_protobuf_reads_them(call):
    text = service_pb2.ModelInferRequest(**request(id="7")).SerializeToString() + b"\x98\x06\x01"
    reply = call.send("ModelInfer", text)
    assert (reply.id, reply.raw_output_contents) == ("7", [ROW.tobytes()])


def test_bytes_that_are_no_message_are_refused(call):
    for method in ("ModelInfer", "ModelMetadata"):
        with pytest.raises(Internal, match=rf"the bytes are no inference\.{method}Request"):
            raise call.send(method, b"\xff")


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(sorted(ALL_METHODS)), st.binary(max_size=40), st.data())
def test_any_bytes_have_one_reply(method, tail, data):
    """Fields that are written over, dropped or added: an answer or an error, and nothing is raised."""
    fields = {} if ALL_METHODS[method].input_type.name != "ModelInferRequest" else request(outputs=CLASSES)
    text = bytearray(getattr(service_pb2, ALL_METHODS[method].input_type.name)(**fields).SerializeToString() + tail)
    for _ in range(data.draw(st.integers(0, 3)) if text else 0):
        text[data.draw(st.integers(0, len(text) - 1))] = data.draw(st.integers(0, 255))
    fabric = FakeFabric(model("identity", X, outputs=(X,)))
    if method == "ModelStreamInfer":
        client = Client(fabric)
        client.stream.message(bytes(text))
        assert len(client.answers) + len(client.closed) == 1
    else:
        assert Caller(fabric).send(method, bytes(text)) is not None


def test_a_large_request_without_tensors_is_refused(call):
    with pytest.raises(InvalidArgument, match=r"the inference\.ModelReadyRequest has .* bytes; at most 1048576"):
        raise call("ModelReady", name="x" * (1 << 20))


def test_what_goes_wrong_is_the_reply(call, fabric):
    fabric.run = lambda call: NotFound("model 'identity' is not served")
    assert isinstance(call("ModelInfer", **request()), NotFound)


def test_parameters_say_how_a_request_is_queued(call, fabric):
    parameters = {"priority": {"uint64_param": 1}, "timeout": {"int64_param": 2_000_000}}
    call("ModelInfer", **request(parameters=parameters))
    assert (fabric.calls[-1].priority, fabric.calls[-1].timeout) == (100, 2.0)


@pytest.mark.parametrize(("deadline", "given", "used"), [(1.5, 0, 1.5), (1.5, 1_000_000, 1.0), (0.5, 1_000_000, 0.5)])
def test_the_shorter_of_deadline_and_timeout_counts(call, fabric, deadline, given, used):
    call("ModelInfer", deadline, **request(parameters={"timeout": {"int64_param": given}}))
    assert fabric.calls[-1].timeout == used


def test_a_canceled_request_is_taken_back(call, fabric):
    fabric.hold = True
    assert call("ModelInfer", **request()) is None
    call.cancel()
    assert fabric.canceled == 1


def test_requested_outputs_come_in_their_order(call):
    inputs = [x()[0], x(name="y", shape=[1])[0]]
    raw = [ROW.tobytes(), b"abcd"]
    reply = call("ModelInfer", **request(inputs=inputs, raw_input_contents=raw, outputs=[{"name": "y"}]))
    assert reply.raw_output_contents == [b"abcd"]
    outputs = [{"name": "y"}, {"name": "x"}]
    reply = call("ModelInfer", **request(inputs=inputs, raw_input_contents=raw, outputs=outputs))
    assert reply.raw_output_contents == [b"abcd", ROW.tobytes()]


CLASSES = [{"name": "x", "parameters": {"classification": {"int64_param": 2}}}]


def test_an_output_can_be_returned_as_its_classes(call):
    reply = call("ModelInfer", **request(outputs=CLASSES))
    assert (reply.outputs[0].datatype, list(reply.outputs[0].shape)) == ("BYTES", [1, 2])
    texts = np.array([b"3.000000:2", b"2.000000:1"], object)
    assert reply.raw_output_contents == [serialize_byte_tensor(texts).item()]


def test_an_output_is_returned_as_it_is_beside_classes_of_another(call, fabric):
    whole = np.arange(3000, dtype="f4")
    fabric.run = lambda call: {"x": np.array([[1, 2, 3]], "f4"), "y": whole}
    reply = call("ModelInfer", **request(outputs=[{"name": "y"}, *CLASSES]))
    assert [(output.name, output.datatype) for output in reply.outputs] == [("y", "FP32"), ("x", "BYTES")]
    assert reply.raw_output_contents[0] == whole.tobytes()


def test_classes_of_an_output_without_order_are_refused(call, fabric):
    fabric.run = lambda call: {"x": np.array([True])}
    with pytest.raises(InvalidArgument, match="classification is for"):
        raise call("ModelInfer", **request(outputs=CLASSES))


def test_a_request_for_classes_waits_for_the_list_of_models(call, fabric):
    fabric.hold = True
    assert call("ModelInfer", **request(outputs=CLASSES)) is None
    call.cancel()
    assert (fabric.canceled, fabric.calls) == (1, [])
    assert call("ModelInfer", **request(outputs=CLASSES)) is None
    fabric.release()
    assert len(fabric.calls) == 1
    call.cancel()
    assert fabric.canceled == 2


@pytest.mark.parametrize("catalog", [Unavailable("no broker answers"), FakeFabric().catalog])
def test_classes_of_an_unknown_model_are_refused(call, fabric, catalog):
    fabric.catalog = catalog
    with pytest.raises((Unavailable, NotFound)):
        raise call("ModelInfer", **request(outputs=CLASSES))


# --- streams ----------------------------------------------------------------------------------------------------


class Client:
    """The writer of a stream, with the stream's requests."""

    def __init__(self, fabric, timeout=None):
        self.answers, self.closed, self.pauses = [], [], []
        begin = methods(fabric, Off())[f"/{SERVICE}/ModelStreamInfer"].begin
        self.context = Context(ALL, timeout, {})
        self.stream = begin(self.context, self)

    def send(self, message):
        assert not self.closed
        self.answers.append(service_pb2.ModelStreamInferResponse.FromString(b"".join(message)))

    def close(self, error=None):
        assert not self.closed
        self.closed.append(error)

    def pause(self):
        self.pauses.append("pause")

    def resume(self):
        self.pauses.append("resume")

    def ask(self, **changes):
        """Send a request."""
        self.stream.message(service_pb2.ModelInferRequest(**request(**changes)).SerializeToString())

    @property
    def ids(self):
        return [answer.infer_response.id for answer in self.answers]


def test_a_stream_answers_and_ends_after_the_last_answer(fabric):
    client = Client(fabric)
    client.ask(id="0", parameters={"triton_enable_empty_final_response": {"bool_param": True}})
    assert client.ids == ["0"]
    fabric.hold = True
    client.ask(id="1")
    client.stream.half_closed()
    assert client.closed == []
    fabric.release()
    assert (client.ids, client.closed) == (["0", "1"], [None])
    for answer in client.answers:
        assert not answer.error_message
        assert answer.infer_response.raw_output_contents == [ROW.tobytes()]
        assert answer.infer_response.parameters["triton_final_response"].bool_param


def test_requests_of_a_stream_have_the_time_that_the_stream_has(fabric):
    client = Client(fabric, timeout=5.0)
    client.ask()
    client.context.timeout = 1.0
    client.ask(parameters={"timeout": {"int64_param": 2_000_000}})
    client.ask(parameters={"timeout": {"int64_param": 500_000}})
    assert [call.timeout for call in fabric.calls] == [5.0, 1.0, 0.5]


def test_a_stream_without_requests_ends(fabric):
    client = Client(fabric)
    client.stream.half_closed()
    assert (client.answers, client.closed) == ([], [None])


def test_answers_come_as_soon_as_they_are_there(fabric):
    client = Client(fabric)
    fabric.hold = True
    client.ask(id="slow")
    fabric.hold = False
    client.ask(id="fast")
    assert client.ids == ["fast"]
    fabric.release()
    assert client.ids == ["fast", "slow"]


def test_answers_of_requests_without_an_id_keep_their_order(fabric):
    client = Client(fabric)
    fabric.hold = True
    client.ask(inputs=x(shape=[0, 3]), raw_input_contents=[b""])
    fabric.hold = False
    client.ask()
    client.ask(model_version="first")
    client.ask(id="7")
    assert client.ids == ["7"]
    fabric.release()
    assert [len(answer.infer_response.outputs) for answer in client.answers] == [1, 1, 1, 0]
    assert list(client.answers[1].infer_response.outputs[0].shape) == [0, 3]
    assert client.answers[3].error_message.startswith("version 'first'")


def test_a_stream_lives_on_after_a_request_that_fails(fabric):
    client = Client(fabric)
    client.ask(id="0", outputs=[{"name": "z"}])
    fabric.run = lambda call: DeadlineExceeded("the time is over")
    client.ask(id="1")
    fabric.run = lambda call: call.inputs
    client.ask(id="2")
    assert client.ids == ["0", "1", "2"]
    messages = [answer.error_message for answer in client.answers]
    assert messages == ["model 'identity' has no output 'z'; it has 'x'", "the time is over", ""]
    assert client.closed == []


def test_a_message_beyond_a_limit_is_answered(fabric):
    client = Client(fabric)
    client.ask(id="0", inputs=x() * 300)
    client.ask(id="1", raw_input_contents=[b""] * 300)
    assert [answer.error_message[:10] for answer in client.answers] == ["300 inputs", "300 raw_in"]
    assert client.closed == []


def test_bytes_that_are_no_message_end_the_stream_and_its_requests(fabric):
    client = Client(fabric)
    fabric.hold = True
    client.ask(id="0")
    client.ask()
    client.stream.message(b"\xff")
    client.stream.message(b"\xff")
    client.stream.half_closed()
    (error,) = client.closed
    assert isinstance(error, Internal)
    assert fabric.canceled == 2
    fabric.release()
    assert client.answers == []


def test_a_client_that_goes_away_takes_its_requests_back(fabric):
    client = Client(fabric)
    client.ask(id="0")
    fabric.hold = True
    client.ask(id="1")
    client.ask(id="2")
    client.stream.canceled()
    assert fabric.canceled == 2


def test_answers_that_come_after_the_end_are_dropped(fabric):
    """A fabric may answer while it is being canceled."""
    client = Client(fabric)
    fabric.infer = lambda call, grant, ended: lambda: ended(Internal("too late"))
    client.ask(id="0")
    client.stream.canceled()
    assert client.answers == []


def test_a_client_waits_while_many_of_its_requests_are_under_way(fabric, monkeypatch):
    monkeypatch.setattr(grpc_stream, "MOST", 2)
    client = Client(fabric)
    fabric.hold = True
    client.ask(id="0")
    assert client.pauses == []
    client.ask(id="1")
    client.ask(id="2")
    assert client.pauses == ["pause"]
    fabric.release()
    assert client.pauses == ["pause", "resume"]
    assert client.ids == ["0", "1", "2"]


def test_a_client_waits_while_its_requests_have_many_bytes(fabric, monkeypatch):
    monkeypatch.setattr(grpc_stream, "MOST_BYTES", 50)
    client = Client(fabric)
    fabric.hold = True
    client.ask(id="0")
    client.ask(id="1")
    assert client.pauses == ["pause"]
    fabric.release()
    assert client.pauses == ["pause", "resume"]


# --- server, models, repository ---------------------------------------------------------------------------------


def test_the_server_is_live_and_ready_while_it_serves_models(call, fabric):
    assert call("ServerLive").live
    assert call("ServerReady").ready
    fabric.stopping = True
    assert not call("ServerReady").ready
    fabric.stopping = False
    fabric.catalog = FakeFabric().catalog
    assert not call("ServerReady").ready
    fabric.catalog = Unavailable("no broker answers")
    assert not call("ServerReady").ready
    assert call("ServerLive").live


def test_the_server_tells_its_name_and_extensions(call, fabric, tmp_path):
    reply = call("ServerMetadata")
    assert reply.name == "zmq-offload"
    assert "system_shared_memory" not in reply.extensions
    assert "system_shared_memory" in Caller(fabric, System())("ServerMetadata").extensions


def test_a_model_tells_whether_it_is_ready_and_what_it_takes(call):
    assert call("ModelReady", name="identity").ready
    assert call("ModelReady", name="identity", version="1").ready
    assert not call("ModelReady", name="nobody").ready
    reply = MessageToDict(call("ModelMetadata", name="identity"))
    tensor = {"name": "x", "datatype": "FP32", "shape": ["-1", "3"]}
    assert (reply["versions"], reply["inputs"], reply["outputs"]) == (["1"], [tensor], [tensor])
    assert call("ModelMetadata", name="identity", version="1").versions == ["1"]
    config = MessageToDict(call("ModelConfig", name="identity"), preserving_proto_field_name=True)["config"]
    assert config["name"] == "identity"
    assert config["input"] == [{"name": "x", "data_type": "TYPE_FP32", "dims": ["3"]}]
    assert config["max_batch_size"] > 0


@pytest.mark.parametrize(
    ("method", "fields", "error"),
    [
        ("ModelMetadata", {"name": "nobody"}, NotFound),
        ("ModelMetadata", {"name": "identity", "version": "9"}, NotFound),
        ("ModelMetadata", {}, NotFound),
        ("ModelConfig", {"name": "nobody"}, NotFound),
        ("ModelStatistics", {"name": "nobody"}, InvalidArgument),
        ("ModelStatistics", {"name": "identity", "version": "9"}, InvalidArgument),
        ("ModelReady", {"name": "identity", "version": "first"}, InvalidArgument),
        ("RepositoryModelLoad", {"model_name": "nobody"}, Internal),
        (
            "RepositoryModelLoad",
            {"model_name": "identity", "parameters": {"config": {"string_param": "{}"}}},
            Unimplemented,
        ),
        ("SystemSharedMemoryStatus", {}, Unimplemented),
        ("SystemSharedMemoryRegister", {"name": "r", "key": "/r", "byte_size": 1}, Unimplemented),
        ("SystemSharedMemoryUnregister", {}, Unimplemented),
        ("CudaSharedMemoryRegister", {"name": "r"}, Unimplemented),
        ("TraceSetting", {"settings": {"trace_rate": {"value": ["1"]}}}, Unimplemented),
        ("LogSettings", {}, Unimplemented),
    ],
)
def test_what_cannot_be_done_is_refused(call, method, fields, error):
    assert isinstance(call(method, **fields), error)


@pytest.mark.parametrize("method", ["ModelReady", "ModelMetadata", "ModelConfig", "ModelStatistics", "RepositoryIndex"])
def test_a_silent_broker_is_an_error(call, fabric, method):
    fabric.catalog = Unavailable("no broker answers")
    assert isinstance(call(method), Unavailable)


def test_statistics_count_the_requests_of_a_version(call, fabric):
    assert call("ModelStatistics", name="identity", version="1").model_stats[0].inference_count == 0
    fabric.statistics.count("identity", 1).succeeded(1, Timings(0.001, 0.002, 0.004, 0.005), now=12.5)
    for fields in ({"name": "identity"}, {}):
        (stats,) = call("ModelStatistics", **fields).model_stats
        assert (stats.name, stats.version, stats.inference_count, stats.last_inference) == ("identity", "1", 1, 12_500)
        assert (stats.inference_stats.queue.count, stats.inference_stats.queue.ns) == (1, 1_000_000)


def test_models_are_unloaded_and_loaded(call):
    assert isinstance(call("RepositoryModelUnload", model_name="identity"), service_pb2.RepositoryModelUnloadResponse)
    assert not call("ModelReady", name="identity").ready
    (entry,) = call("RepositoryIndex").models
    assert (entry.name, entry.version, entry.state) == ("identity", "1", "UNAVAILABLE")
    assert not call("RepositoryIndex", ready=True).models
    assert isinstance(call("RepositoryModelLoad", model_name="identity"), service_pb2.RepositoryModelLoadResponse)
    assert call("RepositoryIndex", ready=True).models[0].state == "READY"


def test_tracing_is_off(call):
    settings = call("TraceSetting").settings
    assert settings["trace_level"].value == ["OFF"]
    assert settings["trace_rate"].value == ["1000"]


def test_cuda_shared_memory_has_no_regions(call):
    assert not call("CudaSharedMemoryStatus").regions
    assert isinstance(call("CudaSharedMemoryUnregister"), service_pb2.CudaSharedMemoryUnregisterResponse)


@pytest.fixture
def key():
    """The name of a file of shared memory with 64 zero bytes."""
    path = Path("/dev/shm") / f"zo-test-{uuid.uuid4().hex}"
    path.write_bytes(bytes(64))
    yield f"/{path.name}"
    path.unlink()


def test_tensors_travel_in_system_shared_memory(fabric, key):
    call = Caller(fabric, System())
    registered = call("SystemSharedMemoryRegister", name="r", key=key, byte_size=64)
    assert isinstance(registered, service_pb2.SystemSharedMemoryRegisterResponse)
    region = call("SystemSharedMemoryStatus").regions["r"]
    assert (region.name, region.key, region.offset, region.byte_size) == ("r", key, 0, 64)
    assert list(call("SystemSharedMemoryStatus", name="r").regions) == ["r"]
    Path("/dev/shm" + key).write_bytes(ROW.tobytes() + bytes(52))
    inside = {"shared_memory_region": {"string_param": "r"}, **SIZE}
    outputs = [{"name": "x", "parameters": inside | {"shared_memory_offset": {"int64_param": 32}}}]
    reply = call("ModelInfer", **request(inputs=x(parameters=inside), outputs=outputs, raw_input_contents=None))
    assert reply.raw_output_contents == [b""] and not reply.outputs[0].parameters
    assert Path("/dev/shm" + key).read_bytes()[32:44] == ROW.tobytes()
    wrong = x(shape=[1, 4], parameters=inside)
    assert isinstance(call("ModelInfer", **request(inputs=wrong, raw_input_contents=None)), InvalidArgument)
    unregistered = call("SystemSharedMemoryUnregister", name="r")
    assert isinstance(unregistered, service_pb2.SystemSharedMemoryUnregisterResponse)
    assert isinstance(call("SystemSharedMemoryStatus", name="r"), NotFound)
    assert not call("SystemSharedMemoryStatus").regions
