"""TensorFlow Serving's gRPC methods: requests read as protobuf reads them, tensors of every kind, answers, errors."""

from __future__ import annotations

import math
import random
from typing import Any

import numpy as np
import pytest
from google.protobuf import descriptor_pb2
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from ovmsclient.tfs_compat.grpc.tensors import make_ndarray
from ovmsclient.tfs_compat.protos.tensorflow.core.framework import tensor_pb2
from ovmsclient.tfs_compat.protos.tensorflow.core.protobuf import error_codes_pb2, meta_graph_pb2
from ovmsclient.tfs_compat.protos.tensorflow_serving.apis import (
    get_model_metadata_pb2,
    get_model_status_pb2,
    predict_pb2,
)
from ovmsclient.tfs_compat.protos.tensorflow_serving.util import status_pb2

from tests.gateway.fake_fabric import ALL, FakeFabric, model
from zmq_offload.errors import DeadlineExceeded, Internal, OffloadError, Unavailable
from zmq_offload.gateway.catalog import Model
from zmq_offload.gateway.grpc.calls import Context
from zmq_offload.gateway.tfserving import predict_request
from zmq_offload.gateway.tfserving.grpc import methods
from zmq_offload.gateway.tfserving.predict_request import PredictRequest, read_predict
from zmq_offload.protobuf.messages import message_class, pool
from zmq_offload.protobuf.packing import varints
from zmq_offload.protobuf.tensorflow import DATATYPES, FIELDS, field_of
from zmq_offload.protobuf.varints import field
from zmq_offload.protocol import tensors as ours
from zmq_offload.protocol.tensors import TensorSpec

Array = np.ndarray[Any, Any]
REQUEST = message_class("tensorflow.serving.PredictRequest")
RESPONSE = message_class("tensorflow.serving.PredictResponse")
PREDICT = "/tensorflow.serving.PredictionService/Predict"
METADATA = "/tensorflow.serving.PredictionService/GetModelMetadata"
STATUS = "/tensorflow.serving.ModelService/GetModelStatus"
X = TensorSpec("x", "FP32", (-1, 2))


def ask(fabric: FakeFabric, path: str, message: Any, timeout: float | None = None) -> bytes | OffloadError:
    replies: list[Any] = []
    data = message if isinstance(message, bytes) else message.SerializeToString()
    methods(fabric)[path](data, Context(ALL, timeout, {}), replies.append)  # type: ignore[operator]
    (reply,) = replies
    return reply if isinstance(reply, OffloadError) else b"".join(reply)


def predicted(request: Any) -> Any:
    reply = ask(FakeFabric(model("m", X)), PREDICT, request)
    assert isinstance(reply, bytes), reply
    return RESPONSE.FromString(reply)


def refused(path: str, message: Any, fabric: FakeFabric | None = None) -> tuple[str, str]:
    reply = ask(fabric or FakeFabric(model("m", X)), path, message)
    assert isinstance(reply, OffloadError)
    return reply.code.value, reply.message


def request_of(array: Array | None = None, *, content: bool = True, name: str = "x") -> Any:
    """A request for the model m with one input."""
    request = REQUEST()
    request.model_spec.name = "m"
    if array is not None:
        fill(request.inputs[name], array, content)
    return request


def fill(tensor: Any, array: Array, content: bool) -> None:
    tensor.dtype = number = DATATYPES[ours.datatype_of(array.dtype)][1]
    tensor.tensor_shape.SetInParent()
    for extent in array.shape:
        tensor.tensor_shape.dim.add(size=extent)
    if content:
        tensor.tensor_content = array.tobytes()
    else:
        values = array.view(np.uint16) if array.dtype == np.float16 else array
        getattr(tensor, field_of(number)).extend(values.ravel().tolist())


@st.composite
def arrays(draw: st.DrawFn) -> Array:
    datatype = draw(st.sampled_from(sorted(ours.DATATYPES)))
    shape = draw(hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=3))
    return draw(hnp.arrays(ours.DATATYPES[datatype], shape))


def test_messages_are_those_of_a_client():
    """Fields, enums and services that are here have the names, numbers and types that OpenVINO's client has."""

    def facts(container: Any, found: dict[str, Any], outer: str = "") -> dict[str, Any]:
        for message in container.message_type if hasattr(container, "message_type") else container.nested_type:
            for entry in message.field:
                kind = entry.type_name.replace(".ovmsclient", ".tensorflow")
                first, *others = entry.name.split("_")
                json_name = entry.json_name or first + "".join(map(str.capitalize, others))
                found[f"{outer}{message.name}.{entry.name}"] = (entry.number, entry.label, entry.type, kind, json_name)
            facts(message, found, f"{outer}{message.name}.")
        for enum in container.enum_type:
            found |= {f"{outer}{enum.name}.{value.name}": value.number for value in enum.value}
        return found

    def of_file(file: Any, found: dict[str, Any]) -> dict[str, Any]:
        proto = descriptor_pb2.FileDescriptorProto()
        file.CopyToProto(proto)
        for imported in file.dependencies:
            of_file(imported, found)
        return facts(proto, found)

    theirs: dict[str, Any] = {}
    for module in (predict_pb2, get_model_metadata_pb2, get_model_status_pb2, tensor_pb2, meta_graph_pb2):
        of_file(module.DESCRIPTOR, theirs)
    of_file(status_pb2.DESCRIPTOR, of_file(error_codes_pb2.DESCRIPTOR, theirs))
    ours_: dict[str, Any] = {}
    for name in ("tensorflow.proto", "tensorflow_error.proto", "tensorflow_serving.proto"):
        proto = descriptor_pb2.FileDescriptorProto()
        pool().FindFileByName(name).CopyToProto(proto)
        facts(proto, ours_)
    assert len(ours_) > 90
    assert ours_ == {name: theirs[name] for name in ours_}


@example(np.ones(2, np.float16), False)
@example(np.ones(2, np.float32), False)
@example(np.ones(2, np.int32), False)
@given(arrays(), st.booleans())
def test_every_datatype_and_shape_comes_back(array: Array, content: bool) -> None:
    request = request_of(array, content=content)
    fabric = FakeFabric()
    reply = ask(fabric, PREDICT, request)
    assert isinstance(reply, bytes)
    sent = fabric.calls[0].inputs["x"]
    assert (sent.dtype, sent.shape, sent.tobytes()) == (array.dtype, array.shape, array.tobytes())
    response = predict_pb2.PredictResponse.FromString(reply)
    (tensor,) = response.outputs.values()
    back = make_ndarray(tensor)  # as a client reads it
    assert (back.dtype, back.shape, back.tobytes()) == (array.dtype, array.shape, array.tobytes())
    assert bool(tensor.tensor_content) == (content and array.size > 0)
    spec = response.model_spec
    assert (spec.name, spec.version.value, spec.signature_name) == ("m", 1, "serving_default")


def test_large_tensors_are_views() -> None:
    array = np.arange(5000, dtype=np.float32)
    fabric = FakeFabric()
    replies: list[Any] = []
    for content in (True, False):
        data = request_of(array, content=content).SerializeToString()
        methods(fabric)[PREDICT](data, Context(ALL, None, {}), replies.append)  # type: ignore[operator]
        assert not fabric.calls[-1].inputs["x"].flags.owndata
        assert any(isinstance(part, memoryview) and part.nbytes == array.nbytes for part in replies[-1])


def plain(request: PredictRequest) -> object:
    """A reading, to the bit."""

    def bits(values: Any) -> bytes | None:
        return None if values is None else values.tobytes() if isinstance(values, np.ndarray) else bytes(values)

    return request._replace(inputs={}), {
        name: tensor._replace(values=bits(tensor.values)) for name, tensor in request.inputs.items()
    }


def read(data: bytes, reader: Any) -> PredictRequest | None:
    try:
        return reader(data)  # type: ignore[no-any-return]
    except Internal:
        return None


def check_reading(data: bytes) -> bool:
    """Compare with protobuf's own reading. Returns whether the message is one."""
    expected = read(data, predict_request._parsed)
    found = read(data, read_predict)
    assert (found is None) == (expected is None), data.hex()
    if found is None or expected is None:
        return False
    assert plain(found) == plain(expected), data.hex()
    return True


def sample() -> bytes:
    """A message with something of everything."""
    request = request_of(np.arange(6, dtype=np.float32).reshape(2, 3))
    for datatype in ours.DATATYPES.values():
        fill(request.inputs[f"t{datatype}"], np.ones((2, 1), datatype), content=False)
    request.inputs["s"].string_val.append(b"text")
    request.inputs["none"].dtype = 3
    request.model_spec.signature_name = "serving_default"
    request.model_spec.version.value = 3
    request.output_filter.append("y")
    return request.SerializeToString()


def test_damaged_messages_are_read_as_protobuf_reads_them() -> None:
    rng = random.Random(1)
    whole, taken = sample(), 0
    for _ in range(1500):
        data = bytearray(whole)
        for _ in range(rng.randint(1, 3)):
            at = rng.randrange(len(data))
            kind = rng.randrange(4)
            if kind == 0:
                data[at] = rng.randrange(256)
            elif kind == 1:
                data[at] ^= 1 << rng.randrange(8)
            elif kind == 2:
                del data[at : at + rng.randint(1, 4)]
            else:
                data[at:at] = rng.randbytes(rng.randint(1, 3))
        taken += check_reading(bytes(data))
    assert 100 < taken < 1400


@given(st.binary(max_size=60))
def test_any_bytes_are_read_as_protobuf_reads_them(data: bytes) -> None:
    check_reading(data)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x12\x00",  # an input without a name and a tensor
        b"\x12\x03\x0a\x01x",  # without a tensor
        b"\x12\x05\x12\x00\x0a\x01x",  # the name after the tensor
        b"\x12\x05\x0a\x01x\x12\x00" * 2,  # a name twice
        b"\x12\x09\x0a\x01x\x12\x04\x2d\x00\x00\x80",  # a float that is not packed, too short
        b"\x12\x0a\x0a\x01x\x12\x05\x2d\x00\x00\x80\x3f",  # a float that is not packed
        b"\x12\x0b\x0a\x01x\x12\x06\x22\x01a\x22\x01b",  # tensor_content twice
        b"\x12\x0b\x0a\x01x\x12\x06\x22\x01a\x3a\x01\x05",  # tensor_content and int_val
        b"\x12\x0b\x0a\x01x\x12\x06\x3a\x01\x05\x52\x01\x06",  # two fields
        b"\x12\x08\x0a\x01x\x12\x03\x3a\x01\x85",  # a number that does not end
        b"\x12\x07\x0a\x01x\x12\x02\x22\x05",  # a value that is longer than its tensor
        b"\x12\x07\x0a\x01x\x12\x02\x22\x00",  # no values
        b"\x12\x05\x0a\x01\xff\x12\x00",  # a name that is not UTF-8
        b"\x32\x01a",  # an unknown field
        b"\x80\x01\x01",  # an unknown field with a long tag
        b"\x12\x05\x0a\x01x\x12\x00" * 1100,  # more fields than are looked at
        field(0x12, b"\x0a\x01x" + field(0x12, b"\x08\x01" * 1100)),  # the same in a tensor
    ],
)
def test_odd_messages_are_read_as_protobuf_reads_them(data: bytes) -> None:
    check_reading(data)


def test_long_names_are_not_kept() -> None:
    request = request_of(np.ones(2, np.float32), name="n" * 5000)
    request.output_filter.append("f" * 5000)
    kept = [cache.cache_info().currsize for cache in (predict_request._known, predict_request._known_entry)]
    assert check_reading(request.SerializeToString())
    assert kept == [cache.cache_info().currsize for cache in (predict_request._known, predict_request._known_entry)]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"\xff", "no tensorflow.serving.PredictRequest"),
        (b"\x32\x81\x80\x80\x08" + bytes(1 + (16 << 20)), "16777222 bytes beside packed tensors"),
        (
            request_of().SerializeToString() + b"".join(b"\x12\x07\x0a\x03%03d\x12\x00" % i for i in range(300)),
            "300 inp",
        ),
    ],
)
def test_what_is_beyond_a_limit_is_refused(text: bytes, words: str) -> None:
    assert words in refused(PREDICT, text)[1]


@given(hnp.arrays(st.sampled_from([np.uint64, np.int64, np.uint32, np.int32, np.int8, np.bool_]), st.integers(0, 20)))
def test_numbers_are_written_as_protobuf_writes_them(values: Array) -> None:
    name = {"u": "uint64_val", "i": "int64_val", "b": "bool_val"}[values.dtype.kind]
    tensor = message_class("tensorflow.TensorProto")(**{name: values.tolist()})
    expected = tensor.SerializeToString()
    data = varints(values)
    assert expected.endswith(data) and len(expected) - len(data) in (0, 2, 3, 4)


def test_many_numbers_are_written_in_pieces() -> None:
    values = np.arange(150_000, dtype=np.int32) - 75_000
    tensor = message_class("tensorflow.TensorProto")(int_val=values.tolist())
    assert tensor.SerializeToString().endswith(varints(values))


@pytest.mark.parametrize(
    ("shape", "values", "expected"),
    [((3,), [1.0, 2.0], [1.0, 2.0, 2.0]), ((2,), [], [0.0, 0.0]), ((), [4.0], 4.0), ((0,), [], [])],
)
def test_the_last_value_fills_the_rest(shape: tuple[int, ...], values: list[float], expected: object) -> None:
    request = request_of()
    tensor = request.inputs["x"]
    tensor.dtype = 1
    for extent in shape:
        tensor.tensor_shape.dim.add(size=extent)
    tensor.float_val.extend(values)
    fabric = FakeFabric()
    ask(fabric, PREDICT, request)
    assert fabric.calls[0].inputs["x"].tolist() == expected


@pytest.mark.parametrize(
    ("tensor", "words"),
    [
        ({"dtype": 7, "string_val": [b"a"]}, "datatype DT_STRING; models take DT_FLOAT"),
        ({"dtype": 99}, "datatype 99"),
        ({"dtype": 1, "float_val": [1, 2]}, "2 values, but its shape [] has 1"),
        ({"dtype": 1, "int_val": [1]}, "values in int_val; those of DT_FLOAT are in float_val or tensor_content"),
        ({"dtype": 1, "tensor_content": b"abc"}, "3 bytes of tensor_content, but DT_FLOAT of shape [] has 4"),
        ({"dtype": 6, "int_val": [128]}, "the value 128, which does not fit INT8"),
        ({"dtype": 19, "half_val": [65536]}, "the value 65536, which does not fit FP16"),
        ({"dtype": 1, "tensor_shape": {"dim": [{"size": -1}]}}, "a shape [-1]"),
        ({"dtype": 1, "tensor_shape": {"dim": [{"size": 1}] * 17}}, "at most 16 extents"),
        ({"dtype": 1, "tensor_shape": {"unknown_rank": True}}, "of unknown rank"),
        ({"dtype": 1, "tensor_shape": {"dim": [{"size": 2**39}]}}, "0 of its 549755813888 values"),
        ({"dtype": 1, "tensor_shape": {"dim": [{"size": s} for s in (0, 2**39, 2**39)]}}, "which is too large"),
    ],
)
def test_a_wrong_tensor_is_refused(tensor: dict[str, Any], words: str) -> None:
    request = request_of()
    request.inputs["x"].CopyFrom(message_class("tensorflow.TensorProto")(**tensor))
    code, text = refused(PREDICT, request)
    assert code == "INVALID_ARGUMENT" and text.startswith("input 'x' has") and words in text


@pytest.mark.parametrize(
    ("spec", "code", "words"),
    [
        ({}, "INVALID_ARGUMENT", "no name"),
        ({"name": "m", "version_label": "a b"}, "INVALID_ARGUMENT", "label 'a b' is not 1 to 128 letters"),
        ({"name": "m", "signature_name": "classify"}, "FAILED_PRECONDITION", "signature 'classify' is not known"),
    ],
)
def test_a_wrong_model_spec_is_refused(spec: dict[str, Any], code: str, words: str) -> None:
    found, text = refused(PREDICT, REQUEST(model_spec=spec))
    assert found == code and words in text


def test_a_label_stands_for_its_version() -> None:
    old, new = Model("m", 3, (X,), (X,), 1, False, labels=("stable",)), Model("m", 12, (X,), (X,), 1, True)
    fabric = FakeFabric(old, new)
    spec = {"name": "m", "version_label": "stable"}
    ask(fabric, PREDICT, REQUEST(model_spec=spec))
    assert (fabric.calls[0].version, fabric.calls[0].label) == (None, "stable")
    for path, kind, more in (
        (STATUS, "GetModelStatus", {}),
        (METADATA, "GetModelMetadata", {"metadata_field": ["signature_def"]}),
    ):
        reply = ask(fabric, path, message_class(f"tensorflow.serving.{kind}Request")(model_spec=spec, **more))
        assert isinstance(reply, bytes)
        response = message_class(f"tensorflow.serving.{kind}Response").FromString(reply)
        versions = (
            [entry.version for entry in response.model_version_status]
            if path == STATUS
            else [response.model_spec.version.value]
        )
        assert versions == [3]


def test_what_a_call_needs_is_passed_on() -> None:
    fabric = FakeFabric()
    request = request_of(np.ones(1, np.float32))
    request.model_spec.signature_name = "serving_default"
    for version in (0, 7):
        request.model_spec.version.value = version
        ask(fabric, PREDICT, request, timeout=1.5)
    assert [(call.model, call.version, call.timeout) for call in fabric.calls] == [("m", None, 1.5), ("m", 7, 1.5)]


def test_outputs_are_filtered() -> None:
    request = request_of(np.ones(1, np.float32))
    fill(request.inputs["y"], np.ones(2, np.int64), content=False)
    assert set(predicted(request).outputs) == {"x", "y"}
    request.output_filter.append("y")
    assert predicted(request).outputs["y"].int64_val == [1, 1]  # not all inputs had tensor_content
    assert set(predicted(request).outputs) == {"y"}
    request.output_filter[0] = "z"
    code, text = refused(PREDICT, request)
    assert code == "INVALID_ARGUMENT" and text.startswith("model 'm' has no output 'z'; it has '")
    request.output_filter[:] = ["y", "y"]
    assert "twice" in refused(PREDICT, request)[1]


def test_errors_of_the_fabric_keep_their_meaning() -> None:
    fabric = FakeFabric(model("m"), run=lambda call: DeadlineExceeded("too late"))
    assert refused(PREDICT, request_of(), fabric) == ("DEADLINE_EXCEEDED", "too late")
    fabric.catalog = Unavailable("no broker")
    for path in (STATUS, METADATA):
        assert refused(path, request_of(), fabric) == ("UNAVAILABLE", "no broker")


def test_a_canceled_call_is_taken_back() -> None:
    fabric = FakeFabric(model("m"))
    fabric.hold = True
    for count, path in enumerate((PREDICT, STATUS, METADATA), 1):
        request = request_of()
        cancel = methods(fabric)[path](request.SerializeToString(), Context(ALL, None, {}), print)  # type: ignore[operator]
        assert cancel is not None
        cancel()
        assert fabric.canceled == count


def test_status_lists_versions() -> None:
    fabric = FakeFabric(Model("m", 3, (), (), 1, False), Model("m", 12, (), (), 1, True))
    request = message_class("tensorflow.serving.GetModelStatusRequest")()
    request.model_spec.name = "m"

    def listed() -> list[tuple[int, int, int, str]]:
        reply = ask(fabric, STATUS, request)
        assert isinstance(reply, bytes)
        found = get_model_status_pb2.GetModelStatusResponse.FromString(reply).model_version_status
        return [(v.version, v.state, v.status.error_code, v.status.error_message) for v in found]

    assert listed() == [(3, 30, 0, ""), (12, 30, 0, "")]
    request.model_spec.version.value = 3
    assert listed() == [(3, 30, 0, "")]
    request.model_spec.version.value = 4
    assert refused(STATUS, request, fabric)[0] == "NOT_FOUND"


def test_metadata_has_the_signature() -> None:
    fabric = FakeFabric(model("m", X, TensorSpec("s", "BOOL", ()), outputs=(TensorSpec("y", "FP16", (3,)),), version=7))
    request = message_class("tensorflow.serving.GetModelMetadataRequest")(metadata_field=["signature_def"])
    request.model_spec.name = "m"
    reply = ask(fabric, METADATA, request)
    assert isinstance(reply, bytes)
    response = get_model_metadata_pb2.GetModelMetadataResponse.FromString(reply)
    assert (response.model_spec.name, response.model_spec.version.value) == ("m", 7)
    packed = response.metadata["signature_def"]
    assert packed.type_url == "type.googleapis.com/tensorflow.serving.SignatureDefMap"
    signature = get_model_metadata_pb2.SignatureDefMap.FromString(packed.value).signature_def["serving_default"]

    def tensors(entries: Any) -> dict[str, object]:
        return {n: (t.name, t.dtype, [dim.size for dim in t.tensor_shape.dim]) for n, t in entries.items()}

    assert tensors(signature.inputs) == {"x": ("x", 1, [-1, 2]), "s": ("s", 10, [])}
    assert tensors(signature.outputs) == {"y": ("y", 19, [3])}
    assert signature.method_name == "tensorflow/serving/predict"


@pytest.mark.parametrize(
    ("fields", "words"),
    [([], "no metadata_field"), (["signature_def", "graph"], "metadata_field 'graph' is not known")],
)
def test_other_metadata_is_refused(fields: list[str], words: str) -> None:
    request = message_class("tensorflow.serving.GetModelMetadataRequest")(metadata_field=fields)
    request.model_spec.name = "m"
    code, text = refused(METADATA, request)
    assert code == "INVALID_ARGUMENT" and words in text


def test_requests_without_tensors_are_short() -> None:
    assert "at most 1048576 are taken" in refused(STATUS, bytes((1 << 20) + 1))[1]
    assert refused(STATUS, b"\xff") == (
        "INTERNAL",
        "the bytes are no tensorflow.serving.GetModelStatusRequest; send what protobuf serializes",
    )


def test_other_methods_say_why_they_are_not_here() -> None:
    absent = set(methods(FakeFabric())) - {PREDICT, METADATA, STATUS}
    assert len(absent) == 5
    for path in absent:
        code, text = refused(path, b"")
        assert code == "UNIMPLEMENTED" and text.startswith(f"{path.rpartition('/')[2]} is not here: ")


def test_fields_have_the_numbers_of_the_definition() -> None:
    fields = message_class("tensorflow.TensorProto").DESCRIPTOR.fields_by_name
    assert {name: field.number for name, field in FIELDS.items()} == {name: fields[name].number for name in FIELDS}
    numbers = pool().FindEnumTypeByName("tensorflow.DataType").values_by_name
    assert all(numbers[name].number == number for name, number in DATATYPES.values())
    assert math.prod(len(d) for d in (DATATYPES, ours.DATATYPES)) == len(ours.DATATYPES) ** 2
