"""Messages of gRPC that are written and read without protobuf, against those that protobuf writes and reads."""

from __future__ import annotations

import contextlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from zmq_offload.errors import FailedPrecondition, OffloadError, ProtocolError, ResourceExhausted
from zmq_offload.protobuf.messages import message_class
from zmq_offload.protobuf.wire import FIELDS, fields
from zmq_offload.protocol.tensors import DATATYPES, TensorSpec
from zmq_offload.transports.oip.messages import (
    infer_request,
    infer_response,
    is_ready,
    metadata_response,
    model_request,
)

MOST = 1 << 20

names = st.text(st.characters(exclude_categories=["C", "Z"]), min_size=1, max_size=20)
shapes = st.lists(st.integers(0, 4), max_size=4)
versions = st.none() | st.integers(1, 2**31 - 1)


@st.composite
def arrays(draw: st.DrawFn, datatypes: tuple[str, ...] = tuple(DATATYPES)) -> np.ndarray[Any, Any]:
    dtype = DATATYPES[draw(st.sampled_from(datatypes))]
    shape = draw(shapes)
    size = int(np.prod(shape)) * dtype.itemsize
    data = draw(st.binary(min_size=size, max_size=size))
    if dtype.kind == "b":
        data = bytes(byte & 1 for byte in data)
    return np.frombuffer(data, dtype).reshape(shape)


def response(**fields: Any) -> Any:
    return message_class("inference.ModelInferResponse")(**fields)


def y(shape: list[int], datatype: str = "FP32", **more: Any) -> dict[str, Any]:
    return {"name": "y", "datatype": datatype, "shape": shape, **more}


def read(message: Any, most: int = MOST, places: Any = None) -> Any:
    return infer_response(message if isinstance(message, bytes) else message.SerializeToString(), most, places)


# --- requests -------------------------------------------------------------------------------------------------


@given(names, versions, st.dictionaries(names, arrays(), max_size=4), st.integers(-100, 100))
def test_protobuf_reads_what_is_written(
    model: str, version: int | None, inputs: dict[str, np.ndarray[Any, Any]], priority: int
) -> None:
    request = message_class("inference.ModelInferRequest").FromString(infer_request(model, version, inputs, priority))
    assert (request.model_name, request.model_version) == (model, str(version or ""))
    assert [one.name for one in request.inputs] == list(inputs)
    for one, raw, array in zip(request.inputs, request.raw_input_contents, inputs.values(), strict=True):
        assert DATATYPES[one.datatype] == array.dtype
        assert tuple(one.shape) == array.shape and raw == array.tobytes()
    found = {name: one.uint64_param for name, one in request.parameters.items()}
    assert found == ({"priority": 101 - priority} if priority else {})
    asked = message_class("inference.ModelMetadataRequest").FromString(model_request(model, version))
    assert (asked.name, asked.version) == (model, str(version or ""))


# --- answers --------------------------------------------------------------------------------------------------


@given(st.dictionaries(names, arrays(), max_size=4), versions, st.booleans())
def test_what_protobuf_writes_is_read(
    outputs: dict[str, np.ndarray[Any, Any]], version: int | None, described: bool
) -> None:
    datatypes = {dtype: name for name, dtype in DATATYPES.items()}
    message = response(model_name="m", model_version=str(version or ""), id="7" * described)
    for name, array in outputs.items():
        one = message.outputs.add(name=name, datatype=datatypes[array.dtype], shape=array.shape)
        if described:
            one.parameters["color"].string_param = "red"
        message.raw_output_contents.append(array.tobytes())
    answer = read(message)
    assert answer.version == version and list(answer.outputs) == list(outputs)
    for name, array in outputs.items():
        found = answer.outputs[name]
        assert found.dtype == array.dtype and found.shape == array.shape and found.tobytes() == array.tobytes()
        assert found.flags.writeable and found.flags.owndata


_TYPED = {
    "BOOL": "bool_contents", "INT8": "int_contents", "INT16": "int_contents", "INT32": "int_contents",
    "INT64": "int64_contents", "UINT8": "uint_contents", "UINT16": "uint_contents", "UINT32": "uint_contents",
    "UINT64": "uint64_contents", "FP32": "fp32_contents", "FP64": "fp64_contents",
}  # fmt: skip


@given(arrays(tuple(_TYPED)))
def test_values_that_are_not_raw_are_read_too(array: np.ndarray[Any, Any]) -> None:
    datatype = {dtype: name for name, dtype in DATATYPES.items()}[array.dtype]
    contents = {_TYPED[datatype]: array.ravel().tolist()}
    found = read(response(outputs=[y(list(array.shape), datatype, contents=contents)])).outputs["y"]
    assert found.dtype == array.dtype
    np.testing.assert_array_equal(found, array)


def test_outputs_go_to_arrays_that_fit() -> None:
    message = response(outputs=[y([2])], raw_output_contents=[np.float32([1, 2]).tobytes()])
    place = np.zeros(2, np.float32)
    assert read(message, places={"y": place}).outputs["y"] is place
    assert place.tolist() == [1, 2]
    spread = np.zeros(4, np.float32)[::2]
    for other in (np.zeros(3, np.float32), np.zeros(2), spread):
        assert read(message, places={"y": other}).outputs["y"] is not other
        assert not other.any()
    assert read(message, places={}).outputs["y"].tolist() == [1, 2]


def test_numbers_of_a_shape_need_not_be_packed() -> None:
    tensor = b"\x0a\x01y\x12\x04FP32\x18\x02\x18\x01"
    found = infer_response(b"\x2a" + bytes((len(tensor),)) + tensor + b"\x32\x08" + bytes(8), MOST, None)
    assert found.outputs["y"].shape == (2, 1)


_EIGHT = [bytes(8)]


@pytest.mark.parametrize(
    ("message", "kind", "says"),
    [
        (b"\xff", ProtocolError, "no inference.ModelInferResponse: a number is cut off"),
        (b"\xff" * 11, ProtocolError, "a number is cut off or too long"),
        (b"\x07", ProtocolError, "a field has the number 0"),
        (b"\x0b", ProtocolError, "a field has the wire type 3"),
        (b"\x0a\x05abc", ProtocolError, "a field of 5 bytes is cut off"),
        (b"\x32\xff\xff\xff\xff\xff\xff\xff\xff\x7f", ProtocolError, "is cut off"),
        (b"\x12\x01\xff", ProtocolError, "codec can't decode"),
        (b"\x18\x01" * (FIELDS + 1), ProtocolError, f"more than {FIELDS} fields"),
        (response(outputs=[y([2])], raw_output_contents=[bytes(7)]), ProtocolError, "has 7 bytes; it must have 8"),
        (response(outputs=[y([2])], raw_output_contents=[bytes(9)]), ProtocolError, "has 9 bytes; it must have 8"),
        (response(outputs=[y([2])]), ProtocolError, "has 0 bytes; it must have 8"),
        (response(outputs=[y([2])], raw_output_contents=_EIGHT * 2), ProtocolError, "1 outputs and the bytes of 2"),
        (response(outputs=[y([2])] * 2, raw_output_contents=_EIGHT * 2), ProtocolError, "have the same name"),
        (response(outputs=[y([0], name=f"{n}") for n in range(257)]), ProtocolError, "has 257 outputs"),
        (response(outputs=[y([-1])], raw_output_contents=_EIGHT), ProtocolError, r"has shape \[-1\]"),
        (response(outputs=[y([1] * 17)], raw_output_contents=_EIGHT), ProtocolError, "more than 16 numbers"),
        (response(outputs=[y([2**40])], raw_output_contents=_EIGHT), ProtocolError, "has shape"),
        (response(outputs=[y([0] + [2**39] * 9)]), ProtocolError, "is too large"),
        (response(outputs=[y([2**39])], raw_output_contents=_EIGHT), ResourceExhausted, "at most max_frame_bytes="),
        (response(outputs=[y([2], "BF16")], raw_output_contents=_EIGHT), FailedPrecondition, "has datatype BF16"),
        (response(outputs=[y([2], "F" * 40)], raw_output_contents=_EIGHT), ProtocolError, "has datatype 'FFF"),
        (response(outputs=[y([2], name="")], raw_output_contents=_EIGHT), ProtocolError, "with the name ''"),
        (response(outputs=[y([2], name="a\nb")], raw_output_contents=_EIGHT), ProtocolError, r"the name 'a\\nb'"),
        (response(outputs=[y([2], contents={"int_contents": [1, 2]})]), ProtocolError, "of another datatype"),
        (response(outputs=[y([2], contents={"bytes_contents": [b"a"]})]), ProtocolError, "of another datatype"),
        (response(outputs=[y([2], contents={"fp32_contents": [1]})]), ProtocolError, "has 4 bytes"),
        (response(outputs=[y([2], contents={"fp32_contents": [1, 2, 3]})]), ProtocolError, "has 12 bytes"),
        (response(outputs=[y([1], "INT8", contents={"int_contents": [1, 2]})]), ProtocolError, "has 2 bytes"),
        (response(outputs=[y([1], "INT8", contents={"int_contents": [200]})]), ProtocolError, "that do not fit"),
    ],
)
def test_what_is_wrong_with_an_answer_is_said(message: Any, kind: type[OffloadError], says: str) -> None:
    with pytest.raises(kind, match=says) as caught:
        read(message)
    assert type(caught.value) is kind
    assert len(caught.value.message) < 600 and "\n" not in caught.value.message


_GOOD = response(
    model_version="3",
    outputs=[y([2]), y([1, 2], "INT16", name="z")],
    raw_output_contents=[bytes(8), bytes(4)],
).SerializeToString()


@given(st.binary(max_size=40) | st.builds(
    lambda at, byte: _GOOD[:at] + bytes((byte,)) + _GOOD[at + 1 :], st.integers(0, len(_GOOD) - 1), st.integers(0, 255)
))  # fmt: skip
def test_any_bytes_are_an_answer_or_an_error(message: bytes) -> None:
    for reader in (lambda: read(message), lambda: metadata_response(message), lambda: is_ready(message)):
        with contextlib.suppress(ProtocolError, FailedPrecondition, ResourceExhausted):
            reader()


# --- metadata -------------------------------------------------------------------------------------------------

_specs = st.lists(
    st.builds(
        TensorSpec, names, st.sampled_from([*DATATYPES, "BYTES", "BF16"]), st.lists(st.integers(-1, 9)).map(tuple)
    ),
    max_size=3,
)


@given(st.lists(names, max_size=3), _specs, _specs)
def test_metadata_is_read(known: list[str], inputs: list[TensorSpec], outputs: list[TensorSpec]) -> None:
    message = message_class("inference.ModelMetadataResponse")(name="m", versions=known, platform="tvm")
    for specs, there in ((inputs, message.inputs), (outputs, message.outputs)):
        for spec in specs:
            there.add(name=spec.name, datatype=spec.datatype, shape=spec.shape[:16])
    found = metadata_response(message.SerializeToString())
    assert found.versions == known
    assert [str(spec) for spec in found.inputs] == [f"{s.name} {s.datatype}[{_dims(s)}]" for s in inputs]
    assert found.outputs == [TensorSpec(s.name, s.datatype, s.shape[:16]) for s in outputs]


def _dims(spec: TensorSpec) -> str:
    return ",".join("?" if extent == -1 else str(extent) for extent in spec.shape[:16])


def test_metadata_that_is_none_is_refused() -> None:
    many = message_class("inference.ModelMetadataResponse")(inputs=[{"name": "x", "datatype": "FP32"}] * 257)
    for message in (many.SerializeToString(), b"\x12\x01\xff"):
        with pytest.raises(ProtocolError):
            metadata_response(message)
    with pytest.raises(ProtocolError, match=r"no inference\.ServerReadyResponse"):
        is_ready(b"\x08")


def test_a_server_is_ready_if_it_says_so() -> None:
    ready = message_class("inference.ServerReadyResponse")
    assert is_ready(ready(ready=True).SerializeToString())
    assert not is_ready(b"") and not is_ready(b"\x12\x00")


def test_fields_of_fixed_size_are_read() -> None:
    assert [(tag, bytes(value)) for tag, value in fields(memoryview(b"\x09abcdefgh\x0dabcd"))] == [  # type: ignore[arg-type]
        (9, b"abcdefgh"),
        (13, b"abcd"),
    ]
