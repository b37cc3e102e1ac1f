"""The protocol's JSON, and what is decided of a server's metadata."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given

from tests.transports.test_oip_messages import MOST, arrays
from zmq_offload.errors import FailedPrecondition, NotFound, OffloadError, ProtocolError, ResourceExhausted, Unavailable
from zmq_offload.protocol.tensors import DATATYPES, TensorSpec, datatype_of
from zmq_offload.transports.codes import error_text
from zmq_offload.transports.oip.json_messages import (
    infer_request,
    infer_response,
    metadata_response,
    takes_binary,
)
from zmq_offload.transports.oip.metadata import Metadata, meant, served_versions, urgency
from zmq_offload.transports.versions import numbers_of


def answer(*outputs: dict[str, Any], **more: Any) -> bytes:
    return json.dumps({"outputs": outputs, **more}).encode()


def y(shape: list[int], datatype: str = "FP32", **more: Any) -> dict[str, Any]:
    return {"name": "y", "datatype": datatype, "shape": shape, **more}


def test_a_binary_request_says_where_its_tensors_are() -> None:
    x = np.arange(6, dtype=np.int16).reshape(2, 3)
    assert json.loads(infer_request({"x": x}, 1, 0.25, True)) == {
        "inputs": [{"name": "x", "datatype": "INT16", "shape": [2, 3], "parameters": {"binary_data_size": 12}}],
        "parameters": {"timeout": 250000, "binary_data_output": True, "priority": 100},
    }
    assert json.loads(infer_request({}, 0, 1e-9, True))["parameters"] == {"timeout": 1, "binary_data_output": True}


@given(arrays())
def test_values_in_json_keep_every_bit(array: np.ndarray[Any, Any]) -> None:
    [tensor] = json.loads(infer_request({"y": array}, 0, 1, False))["inputs"]
    assert len(tensor["data"]) == array.size
    if array.dtype.kind == "f":
        np.testing.assert_array_equal(np.array(tensor["data"], np.float64).astype(array.dtype), array.ravel())
        array = np.nan_to_num(array, posinf=0, neginf=0)  # an answer's JSON has no name for these
        [tensor] = json.loads(infer_request({"y": array}, 0, 1, False))["inputs"]
    [(output, found)] = infer_response(answer(tensor, model_version="7"), MOST).outputs
    assert found is not None and found.dtype == array.dtype and found.shape == array.shape == output.shape
    np.testing.assert_array_equal(found, array)


def test_an_answer_may_be_binary_or_nested_lists() -> None:
    read = infer_response(
        answer(y([2, 2], data=[[1, 2], [3, 4]]), y([3], name="z", parameters={"binary_data_size": 12})), MOST
    )
    (_, values), (binary, nothing) = read.outputs
    assert values is not None and values.tolist() == [[1, 2], [3, 4]] and values.dtype == np.float32
    assert nothing is None and (binary.name, binary.nbytes) == ("z", 12)
    assert read.version is None
    assert [infer_response(answer(model_version=given), MOST).version for given in ("4", 4, "v4", "", None)] == [
        4,
        4,
        None,
        None,
        None,
    ]
    [(_, odd)] = infer_response(answer(y([3], data=[math.nan, math.inf, -math.inf])), MOST).outputs
    assert odd is not None and np.isnan(odd[0]) and odd[1:].tolist() == [math.inf, -math.inf], (
        "as Python's json has them"
    )
    [(_, empty)] = infer_response(answer(y([0, 3], data=[])), MOST).outputs
    assert empty is not None and empty.shape == (0, 3)


@pytest.mark.parametrize(
    ("body", "kind", "says"),
    [
        (b"", ProtocolError, "is not as the protocol has it"),
        (b"[" * 100_000, ProtocolError, "is not as the protocol has it"),
        (b"[]" * (1 << 21), ResourceExhausted, "has 2097152 lists and objects of JSON; at most 1048576 are taken"),
        (b"{}", ProtocolError, "missing required field `outputs`"),
        (answer({"name": "y"}), ProtocolError, "missing required field"),
        (answer(y([1])), ProtocolError, "neither data nor a binary_data_size"),
        (answer(y([1], parameters={"binary_data_size": True})), ProtocolError, "neither data"),
        (answer(y([1], parameters={"binary_data_size": 5})), ProtocolError, "has 5 bytes; it must have 4"),
        (answer(y([1], parameters={"binary_data_size": 2**80})), ProtocolError, "bytes; it must have 4"),
        (answer(y([2**38], parameters={"binary_data_size": 2**40})), ResourceExhausted, "max_frame_bytes="),
        (answer(y([1], "BYTES", data=["a"])), FailedPrecondition, "has datatype BYTES"),
        (answer(y([2], data=[1])), ProtocolError, "has 4 bytes; it must have 8"),
        (answer(y([1], data=["a"])), ProtocolError, "of another datatype"),
        (answer(y([1], data=[None])), ProtocolError, "of another datatype"),
        (answer(y([2], data=[[1], 2])), ProtocolError, "numbers beside lists"),
        (answer(y([1], data=[1e300])), ProtocolError, "do not fit its datatype"),
        (answer(y([1], "INT8", data=[200])), ProtocolError, "do not fit its datatype"),
        (answer(y([1], "INT64", data=[1.5])), ProtocolError, "of another datatype"),
        (answer(y([1], "INT64", data=[2**63])), ProtocolError, "do not fit its datatype"),
        (answer(y([1], data=[1]), y([1], data=[1])), ProtocolError, "have the same name"),
    ],
)
def test_what_is_wrong_with_an_answer_is_said(body: bytes, kind: type[OffloadError], says: str) -> None:
    with pytest.raises(kind, match=says) as caught:
        infer_response(body, MOST)
    assert type(caught.value) is kind and "\n" not in caught.value.message


def test_metadata_is_read() -> None:
    found = metadata_response(
        b'{"name":"m","versions":["1","2"],"platform":"","inputs":[{"name":"x","datatype":"FP32","shape":[-1,3]}],'
        b'"outputs":[{"name":"t","datatype":"BYTES","shape":[]}]}'
    )
    assert found == (["1", "2"], [TensorSpec("x", "FP32", (-1, 3))], [TensorSpec("t", "BYTES", ())])
    assert metadata_response(b'{"inputs":[],"outputs":[]}') == ([], [], [])
    with pytest.raises(ProtocolError, match="describes 257 tensors"):
        metadata_response(json.dumps({"inputs": [y([1])] * 257, "outputs": []}).encode())


def test_a_server_says_whether_it_takes_binary_tensors() -> None:
    assert takes_binary(b'{"name":"triton","extensions":["classification","binary_tensor_data"]}')
    assert not takes_binary(b'{"name":"other"}')


def test_the_text_of_an_error() -> None:
    assert error_text(b'{"error": "no such model"}') == "no such model"
    assert error_text(b"<html>") == "" == error_text(b'{"error": 5}')


# --- decisions ------------------------------------------------------------------------------------------------


def test_versions_without_numbers_are_not_asked_for() -> None:
    assert numbers_of(["2", "10", "2", "v3", "0", "-1", str(2**31), "9" * 400, "٣"]) == [10, 2]


def described(*versions: str, gone: int = 0) -> tuple[list[int | None], list[int | None]]:
    """The versions that are found, and those that the server was asked for."""
    asked: list[int | None] = []

    def describe(version: int | None) -> Metadata:
        asked.append(version)
        if version == gone:
            raise NotFound("it is not served")
        return Metadata(versions, [], [])

    return [one.version for one in served_versions(describe)], asked


def test_each_version_is_described_the_latest_first() -> None:
    assert described() == ([None], [None])
    assert described("v1", "v2") == ([None], [None])
    assert described("7") == ([7], [None])
    assert described("7", "9") == ([9, 7], [None, 9, 7])
    assert described("7", "9", gone=9) == ([7], [None, 9, 7])


def test_priorities_are_those_of_triton() -> None:
    assert [urgency(priority) for priority in (0, 100, 1, -1, -100)] == [0, 1, 100, 102, 201]


def test_a_model_that_is_missing_may_not_be_there_yet() -> None:
    missing, other = NotFound("no such model"), ProtocolError("what?")
    assert meant(missing, True) is missing
    assert meant(other, False) is other
    later = meant(missing, False)
    assert isinstance(later, Unavailable) and later.message == "the server is not ready: no such model"


def test_all_datatypes_have_their_names() -> None:
    for name, dtype in DATATYPES.items():
        assert datatype_of(dtype) == name
