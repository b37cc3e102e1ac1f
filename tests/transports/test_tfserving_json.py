"""TensorFlow Serving's JSON."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.transports.test_oip_messages import MOST, arrays
from zmq_offload.errors import FailedPrecondition, OffloadError, ProtocolError, ResourceExhausted
from zmq_offload.protocol.tensors import TensorSpec, datatype_of
from zmq_offload.transports.codes import error_text
from zmq_offload.transports.oip.json_messages import infer_request
from zmq_offload.transports.tfserving.json_messages import (
    metadata_response,
    predict_request,
    predict_response,
    status_response,
)
from zmq_offload.transports.tfserving.metadata import Status
from zmq_offload.transports.transport import Served

Y, N = TensorSpec("y", "FP32", (-1, 2)), TensorSpec("n", "INT8", (2,))


def outputs(found: Any) -> bytes:
    return json.dumps({"outputs": found}).encode()


@given(arrays())
def test_every_value_comes_back(array: np.ndarray[Any, Any]) -> None:
    """Apart from the bits of a NaN, which JSON has no digits for."""
    sent = json.loads(predict_request({"y": array}))["inputs"]["y"]
    spec = TensorSpec("y", datatype_of(array.dtype), array.shape)
    found = predict_response(outputs(sent), [spec], MOST, None)["y"]
    assert found.dtype == array.dtype and found.shape == array.shape
    np.testing.assert_array_equal(found, array)
    finite = array[np.isfinite(array)]
    assert found[np.isfinite(array)].tobytes() == finite.tobytes()  # the sign of a zero, too


@pytest.mark.parametrize("bits", [0x7F800001, 0xFFC00000])
def test_a_nan_of_any_kind_is_one(bits: int) -> None:
    x = np.array([bits], np.uint32).view(np.float32)
    assert predict_request({"x": x}) == b'{"inputs":{"x":[NaN]}}'
    assert b'"data":[NaN]' in infer_request({"x": x}, 0, 1, False)


def test_several_outputs_have_names_and_one_has_none() -> None:
    both = predict_response(outputs({"n": [1, -2], "y": [[1, 2.5]]}), [Y, N], MOST, None)
    assert list(both) == ["y", "n"] and both["y"].tolist() == [[1, 2.5]] and both["n"].tolist() == [1, -2]
    place = np.zeros((1, 2), np.float32)
    assert predict_response(outputs([[3, 4]]), [Y], MOST, {"y": place})["y"] is place and place.tolist() == [[3, 4]]
    assert predict_response(outputs([]), [Y], MOST, None)["y"].shape == (0, 2)
    assert predict_response(outputs({}), [], MOST, None) == {}


@pytest.mark.parametrize(
    ("body", "kind", "says"),
    [
        (b"", ProtocolError, "is not JSON"),
        (b"<html>", ProtocolError, "is not JSON"),
        (b"[" * 100_000, ProtocolError, "is not JSON"),
        (b'{"outputs": ' + b"9" * 5000 + b"}", ProtocolError, "is not JSON|do not fit|lists"),
        (b'{"outputs": [' + b"[]," * (1 << 20) + b"]}", ResourceExhausted, "has 1048578 lists and objects of JSON"),
        (b"[]", ProtocolError, "has no 'outputs'"),
        (b'{"predictions": [[1, 2]]}', ProtocolError, "has no 'outputs'"),
        (outputs([[1], [2, 3]]), ProtocolError, "output 'y' of the server's answer is no tensor: its lists differ"),
        (outputs([[1, 2], 3]), ProtocolError, "is no tensor"),
        (outputs([1, [2, 3]]), ProtocolError, "values of another datatype"),
        (b'{"outputs": ' + b"[" * 40 + b"1" + b"]" * 40 + b"}", ProtocolError, "is no tensor"),
        (outputs([["1", "2"]]), ProtocolError, "values of another datatype"),
        (outputs([[True, False]]), ProtocolError, "values of another datatype"),
        (outputs([[None, None]]), ProtocolError, "values of another datatype"),
        (outputs([[1e39, 0]]), ProtocolError, "do not fit its datatype"),
        (outputs([[10**400, 0]]), ProtocolError, "do not fit its datatype"),
        (outputs({"y": [[1, 2]]}), ProtocolError, "values of another datatype"),
        (outputs([[0, 0]] * 200_000), ResourceExhausted, "at most max_frame_bytes=1048576"),
    ],
)  # fmt: skip
def test_an_answer_that_is_none_is_a_typed_error(body: bytes, kind: type[OffloadError], says: str) -> None:
    with pytest.raises(kind, match=says) as caught:
        predict_response(body, [Y], MOST, None)
    assert type(caught.value) is kind and len(caught.value.message) < 1500


def test_outputs_are_those_of_the_metadata() -> None:
    for found, says in (
        ([[1, 2]], "one tensor without a name; its metadata has y, n"),
        ({"y": [[1, 2]]}, "has the outputs y; its metadata has y, n"),
        ({"y": [[1, 2]], "n": [1, 2], "z": 1}, "has the outputs y, n, z; its"),
        ({"y": [[1, 2]], "n": [1, 200]}, "do not fit its datatype"),
        ({"y": [[1, 2]], "n": [1, 2.5]}, "values of another datatype"),
    ):
        with pytest.raises(ProtocolError, match=says):
            predict_response(outputs(found), [Y, N], MOST, None)
    with pytest.raises(FailedPrecondition, match="output 's' has datatype STRING"):
        predict_response(outputs(["a"]), [TensorSpec("s", "STRING", (1,))], MOST, None)


# --- metadata -------------------------------------------------------------------------------------------------


def metadata(signature: str = "serving_default", **shape: Any) -> bytes:
    tensor = {"dtype": "DT_FLOAT", "tensor_shape": shape, "name": "serving_default_x:0"}
    found = {"inputs": {"x": tensor}, "outputs": {"y": {"dtype": "DT_STRING"}}, "method_name": "", "defaults": {}}
    return json.dumps(
        {
            "model_spec": {"name": "m", "signature_name": "", "version": "7"},
            "metadata": {"signature_def": {"signature_def": {signature: found}}},
        }
    ).encode()


def test_metadata_say_what_a_version_takes_and_returns() -> None:
    found = metadata_response(metadata(dim=[{"size": "-1", "name": ""}, {"size": 3}], unknown_rank=False))
    assert found == Served(7, [TensorSpec("x", "FP32", (-1, 3))], [TensorSpec("y", "STRING", ())])


@pytest.mark.parametrize(
    ("body", "kind", "says"),
    [
        (metadata("predict"), FailedPrecondition, "has no signature 'serving_default'; it has 'predict'"),
        (metadata(unknown_rank=True), FailedPrecondition, "tensor 'x' of the served model has any rank"),
        (metadata(dim=[{"size": "two"}]), ProtocolError, "tensor 'x' of the server's answer has an extent that is no"),
        (metadata(dim=[{"size": "9" * 5000}]), ProtocolError, "an extent that is no number|has shape"),
        (metadata(dim=[{"size": -2}]), ProtocolError, r"has shape \[-2\]"),
        (metadata(dim=3), ProtocolError, "is not as the protocol has it"),
        (b"{}", ProtocolError, "is not as the protocol has it"),
        (b"[" * 100_000, ProtocolError, "is not as the protocol has it"),
    ],
)  # fmt: skip
def test_metadata_of_other_models_are_typed_errors(body: bytes, kind: type[OffloadError], says: str) -> None:
    with pytest.raises(kind, match=says) as caught:
        metadata_response(body)
    assert len(caught.value.message) < 1500


def test_versions_have_states() -> None:
    status = {"error_code": "OK", "error_message": ""}
    listed = [{"version": "2", "state": "LOADING", "status": status}, {"version": 1, "state": "AVAILABLE"}]
    found = status_response(json.dumps({"model_version_status": listed}).encode())
    assert found == [Status("2", "LOADING", ""), Status("1", "AVAILABLE", "")]
    with pytest.raises(ProtocolError, match="is not as the protocol has it"):
        status_response(b'{"model_version_status": 1}')


def test_the_text_of_an_error() -> None:
    assert error_text(b'{"error": "Servable not found for request: Latest(m)"}').startswith("Servable not found")
    assert error_text(b"<html>") == "" == error_text(b'{"error": 1}') == error_text(b"[" * 100_000)


_LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.just("a")


@given(st.recursive(_LEAVES, lambda inner: st.lists(inner, max_size=3), max_leaves=8))
def test_any_json_is_read_or_refused(value: Any) -> None:
    for body in (outputs(value), outputs({"y": value, "n": value}), json.dumps(value).encode()):
        for specs in ([Y], [Y, N]):
            with contextlib.suppress(OffloadError):
                predict_response(body, specs, MOST, None)
