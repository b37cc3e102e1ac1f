"""TensorFlow Serving's messages of gRPC, written and read without protobuf, against those of OpenVINO's client, which
come from TensorFlow Serving's own definitions."""

from __future__ import annotations

import contextlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from ovmsclient.tfs_compat.grpc.requests import make_predict_request
from ovmsclient.tfs_compat.grpc.tensors import make_ndarray
from ovmsclient.tfs_compat.protos.tensorflow.core.framework import tensor_pb2
from ovmsclient.tfs_compat.protos.tensorflow.core.protobuf import meta_graph_pb2
from ovmsclient.tfs_compat.protos.tensorflow_serving.apis import (
    get_model_metadata_pb2,
    get_model_status_pb2,
    predict_pb2,
)

from tests.transports.test_oip_messages import MOST, arrays, names, versions
from zmq_offload.errors import (
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    OffloadError,
    ProtocolError,
    ResourceExhausted,
    Unavailable,
)
from zmq_offload.protobuf.tensorflow import DATATYPES as TENSORFLOW
from zmq_offload.protobuf.tensorflow import field_of
from zmq_offload.protobuf.varints import field
from zmq_offload.protocol.tensors import TensorSpec, datatype_of
from zmq_offload.transports.tfserving.messages import (
    metadata_request,
    metadata_response,
    predict_request,
    predict_response,
    status_request,
    status_response,
)
from zmq_offload.transports.tfserving.metadata import Status, available, label_of, meant
from zmq_offload.transports.transport import Served
from zmq_offload.transports.url import parse

Array = np.ndarray[Any, Any]


def tensor(array: Array, content: bool) -> Any:
    """A TensorProto as TensorFlow writes it."""
    number = TENSORFLOW[datatype_of(array.dtype)][1]
    found = tensor_pb2.TensorProto(dtype=number)
    found.tensor_shape.SetInParent()
    for extent in array.shape:
        found.tensor_shape.dim.add(size=extent)
    if content:
        found.tensor_content = array.tobytes()
    else:
        values = array.view(np.uint16) if array.dtype == np.float16 else array
        getattr(found, field_of(number)).extend(values.ravel().tolist())
    return found


def response(version: int | None = None, **outputs: Any) -> Any:
    found = predict_pb2.PredictResponse()
    found.model_spec.name = "m"
    if version is not None:
        found.model_spec.version.value = version
    for name, one in outputs.items():
        found.outputs[name].CopyFrom(one)
    return found


def read(message: Any, places: dict[str, Array] | None = None, most: int = MOST) -> Any:
    return predict_response(message if isinstance(message, bytes) else message.SerializeToString(), most, places)


# --- requests -------------------------------------------------------------------------------------------------


@given(names, versions, st.dictionaries(names, arrays(), max_size=4), st.sampled_from(["", "stable"]))
def test_protobuf_reads_what_is_written(model: str, version: int | None, inputs: dict[str, Array], label: str) -> None:
    request = predict_pb2.PredictRequest.FromString(predict_request(model, version, label, inputs))
    assert request.inputs.keys() == inputs.keys()
    for name, array in inputs.items():
        one = request.inputs[name]
        assert TENSORFLOW[datatype_of(array.dtype)][1] == one.dtype and one.tensor_content == array.tobytes()
        assert tuple(dim.size for dim in one.tensor_shape.dim) == array.shape and not one.tensor_shape.unknown_rank
    metadata = get_model_metadata_pb2.GetModelMetadataRequest.FromString(metadata_request(model, version, label))
    assert list(metadata.metadata_field) == ["signature_def"]
    for spec in (request.model_spec, metadata.model_spec):
        assert (spec.name, spec.signature_name, spec.version.value) == (model, "", version or 0)
        assert spec.version_label == ("" if version else label)
    status = get_model_status_pb2.GetModelStatusRequest.FromString(status_request(model))
    assert status.model_spec.name == model and status.model_spec.WhichOneof("version_choice") is None


def test_a_request_is_the_one_of_openvinos_client() -> None:
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    theirs = make_predict_request({"x": x}, "m", 3).raw_request.SerializeToString()
    ours = predict_pb2.PredictRequest.FromString(predict_request("m", 3, "", {"x": x}))
    assert ours == predict_pb2.PredictRequest.FromString(theirs)
    np.testing.assert_array_equal(make_ndarray(ours.inputs["x"]), x)


# --- answers --------------------------------------------------------------------------------------------------


@given(st.dictionaries(names, arrays(), max_size=4), versions, st.booleans(), st.booleans())
def test_what_protobuf_writes_is_read(
    outputs: dict[str, Array], version: int | None, content: bool, placed: bool
) -> None:
    places = {name: np.zeros_like(array) for name, array in outputs.items()} if placed else None
    answer = read(response(version, **{name: tensor(array, content) for name, array in outputs.items()}), places)
    assert answer.version == version and answer.outputs.keys() == outputs.keys()
    for name, array in outputs.items():
        found = answer.outputs[name]
        assert (found.dtype, found.shape) == (array.dtype, array.shape) and found.flags.writeable
        if content or array.dtype.kind != "f":
            assert found.tobytes() == array.tobytes()
        else:  # a number of Python has no NaNs of its own
            np.testing.assert_array_equal(found, array)
        assert places is None or found is places[name]


ONES = np.ones(2, np.float32)


def changed(content: bool = True, array: Array = ONES, **fields: Any) -> Any:
    found = tensor(array, content)
    for name, value in fields.items():
        setattr(found, name, value)
    return response(y=found)


def shaped(*extents: int, unknown: bool = False) -> Any:
    found = tensor_pb2.TensorProto(dtype=1)
    found.tensor_shape.unknown_rank = unknown
    for extent in extents:
        found.tensor_shape.dim.add(size=extent, name="batch")
    return response(y=found)


def listed(array: Array, **values: list[int]) -> Any:
    found = tensor(array, True)
    found.ClearField("tensor_content")
    for name, numbers in values.items():
        getattr(found, name).extend(numbers)
    return response(y=found)


BYTES = np.ones(2, np.int8)


@pytest.mark.parametrize(
    ("message", "kind", "says"),
    [
        (b"\xff", ProtocolError, "is no tensorflow.serving.PredictResponse"),
        (b"\x0a\x02\x0a", ProtocolError, "is no tensorflow.serving.PredictResponse"),
        (b"\x0a\x00", ProtocolError, "a tensor with the name ''"),
        (b"\x0a\x04\x0a\x02\xff\xff", ProtocolError, "is no tensorflow.serving.PredictResponse"),
        (changed(dtype=2), ProtocolError, r"output 'y' FP64\[2\] of the server's answer has 8 bytes; it must have 16"),
        (changed(dtype=7), FailedPrecondition, "output 'y' has datatype STRING; a bundle takes BOOL"),
        (changed(dtype=8), FailedPrecondition, "output 'y' has datatype number8"),
        (changed(tensor_content=bytes(7)), ProtocolError, "has 7 bytes; it must have 8"),
        (changed(tensor_content=b""), ProtocolError, "has 0 bytes; it must have 8"),
        (shaped(-1), ProtocolError, r"has shape \[-1\]"),
        (shaped(1 << 40), ProtocolError, "has shape"),
        (shaped(*[1] * 33), ProtocolError, "has shape|more than"),
        (shaped(1 << 30), ResourceExhausted, "at most max_frame_bytes=1048576 are taken"),
        (shaped(0, *[(1 << 31) - 1] * 3), ProtocolError, "a shape that is too large"),
        (shaped(unknown=True), ProtocolError, "has no shape"),
        (listed(ONES, double_val=[1, 1]), ProtocolError, "has 0 bytes; it must have 8"),
        (listed(ONES, float_val=[1]), ProtocolError, "has 4 bytes; it must have 8"),
        (listed(BYTES, int_val=[1, 2, 3]), ProtocolError, "has 3 bytes; it must have 2"),
        (listed(BYTES, int_val=[1, 128]), ProtocolError, "has values that do not fit its datatype"),
        (response(y=tensor(ONES, True)).SerializeToString() * 2, ProtocolError, "have the same name"),
        (response(**{f"y{i}": tensor(ONES, True) for i in range(300)}), ProtocolError, "has 300 outputs; at most"),
    ],
)
def test_answers_that_are_none_are_typed_errors(message: Any, kind: type[OffloadError], says: str) -> None:
    with pytest.raises(kind, match=says) as caught:
        read(message)
    assert type(caught.value) is kind and len(caught.value.message) < 1500


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    for reading in (read, metadata_response, status_response):
        with contextlib.suppress(OffloadError):
            reading(data)


@given(st.data())
def test_an_answer_that_is_damaged_is_read_or_refused(data: st.DataObject) -> None:
    message = bytearray(
        response(2, y=tensor(np.arange(4, dtype=np.int16), data.draw(st.booleans()))).SerializeToString()
    )
    for _ in range(data.draw(st.integers(1, 3))):
        message[data.draw(st.integers(0, len(message) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(OffloadError):
        read(bytes(message))


def test_fields_that_are_not_known_are_passed_over() -> None:
    more = b"\x78\x01"  # a number in field 15
    dim = field(0x12, b"\x08\x02" + more)
    one = b"\x08\x01" + field(0x12, dim + more) + field(0x22, ONES.tobytes()) + more
    output = field(0x0A, field(0x0A, b"y") + more + field(0x12, one))
    spec = field(0x12, field(0x12, b"\x08\x05" + more) + more)
    assert read(output + more + spec).version == 5 and read(output + spec).outputs["y"].tolist() == [1, 1]
    info = field(0x0A, field(0x0A, b"x") + field(0x12, b"\x10\x01" + more + field(0x1A, dim + more)))
    signature = field(0x0A, field(0x0A, b"serving_default") + field(0x12, info + more)) + more
    entry = field(0x0A, b"signature_def") + field(0x12, field(0x12, signature) + more)
    assert metadata_response(field(0x12, entry) + more + field(0x0A, more)) == Served(
        None, [TensorSpec("x", "FP32", (2,))], []
    )
    assert status_response(more + field(0x0A, more + b"\x08\x06")) == [Status("6", "UNKNOWN", "")]


# --- metadata -------------------------------------------------------------------------------------------------


def metadata(signature: str = "serving_default", unknown: bool = False, datatype: int = 1, inputs: int = 1) -> bytes:
    signatures = get_model_metadata_pb2.SignatureDefMap()
    one = signatures.signature_def[signature]
    one.method_name = "tensorflow/serving/predict"
    for number in range(inputs):
        info = one.inputs["x" if not number else f"x{number}"]
        info.name, info.dtype = "serving_default_x:0", datatype
        info.tensor_shape.unknown_rank = unknown
        for extent in () if unknown else (-1, 3):
            info.tensor_shape.dim.add(size=extent)
    one.outputs["y"].CopyFrom(meta_graph_pb2.TensorInfo(name="StatefulPartitionedCall:0", dtype=22))
    answer = get_model_metadata_pb2.GetModelMetadataResponse()
    answer.model_spec.version.value = 7
    answer.metadata["signature_def"].Pack(signatures)
    answer.metadata["another"].Pack(signatures)
    return bytes(answer.SerializeToString())


def test_metadata_say_what_a_version_takes_and_returns() -> None:
    served = metadata_response(metadata())
    assert served == Served(7, [TensorSpec("x", "FP32", (-1, 3))], [TensorSpec("y", "UINT32", ())])
    assert metadata_response(metadata(datatype=7)).inputs == [TensorSpec("x", "STRING", (-1, 3))]


@pytest.mark.parametrize(
    ("message", "kind", "says"),
    [
        (metadata("predict"), FailedPrecondition, "has no signature 'serving_default'; it has 'predict'$"),
        (b"", FailedPrecondition, "it has none$"),
        (metadata(unknown=True), FailedPrecondition, "tensor 'x' of the served model has any rank"),
        (metadata(inputs=300), ProtocolError, "the server describes 257 tensors; a model has at most 256"),
        (b"\xff", ProtocolError, "is no tensorflow.serving.GetModelMetadataResponse"),
    ],
)
def test_metadata_of_other_models_are_typed_errors(message: bytes, kind: type[OffloadError], says: str) -> None:
    with pytest.raises(kind, match=says):
        metadata_response(message)


def test_versions_are_those_that_are_available() -> None:
    answer = get_model_status_pb2.GetModelStatusResponse()
    for version, state in ((1, 30), (3, 30), (2, 50), (4, 20), (0, 30), (-5, 30), (6, 0)):
        answer.model_version_status.add(version=version, state=state)
    answer.model_version_status[2].status.error_message = "out of\nmemory"
    unknown = b"\x0a\x04\x08\x06\x20\x01"  # a version with a field that is not known
    statuses = status_response(answer.SerializeToString() + unknown)
    assert statuses[1:5] == [
        Status("3", "AVAILABLE", ""),
        Status("2", "END", "out of\nmemory"),
        Status("4", "LOADING", ""),
        Status("0", "AVAILABLE", ""),
    ]
    assert statuses[5:] == [Status("-5", "AVAILABLE", ""), Status("6", "UNKNOWN", ""), Status("6", "UNKNOWN", "")]
    assert available("m", statuses) == [3, 1]
    with pytest.raises(NotFound, match=r"no version of model 'm': version 2 is END \(out of memory\)$"):
        available("m", statuses[2:3])
    with pytest.raises(NotFound, match=r"it knows none$"):
        available("m", [])
    with pytest.raises(Unavailable, match="version 4 is LOADING: the server serves no version"):
        available("m", statuses[2:4])


def test_a_version_that_is_being_loaded_is_not_there_yet() -> None:
    missing, statuses = NotFound("Servable not found"), [Status("4", "LOADING", ""), Status("3", "AVAILABLE", "")]
    assert meant(missing, 3, statuses) is missing and meant(missing, None, []) is missing
    assert isinstance(meant(missing, 4, statuses), Unavailable)
    assert isinstance(meant(missing, None, statuses), Unavailable)


def test_a_url_may_name_a_label() -> None:
    assert label_of(parse("tfs+grpc://edge:1?label=stable")) == "stable" and label_of(parse("tfs+grpc://edge:1")) == ""
    for wrong in ("", "%00", "x" * 101):
        with pytest.raises(InvalidArgument, match="has a label that is none"):
            label_of(parse(f"tfs+grpc://edge:1?label={wrong}"))
