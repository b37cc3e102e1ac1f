"""The Open Inference Protocol over HTTP: inference as JSON, as binary data and without JSON, and what is refused."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tests.gateway.fake_fabric import ALL, FakeFabric, model
from zmq_offload.errors import Internal, OffloadError, ResourceExhausted, Unavailable
from zmq_offload.gateway.calls import Call
from zmq_offload.gateway.catalog import Model
from zmq_offload.gateway.http.messages import Request, Response
from zmq_offload.gateway.http.router import Router
from zmq_offload.gateway.oip import json_data
from zmq_offload.gateway.oip.rest import routes
from zmq_offload.gateway.regions.files import Off, SharedMemory, System
from zmq_offload.protocol.payload import Array
from zmq_offload.protocol.tensors import DATATYPES, TensorSpec, datatype_of

LENGTH = "Inference-Header-Content-Length"
X = TensorSpec("x", "FP32", (-1, 3))
ECHO = model("echo", X, outputs=(X,))
ROW = {"name": "x", "datatype": "FP32", "shape": [1, 3]}
RAW = np.array([[1, 2, 3]], np.float32).tobytes()


def ask(
    fabric: FakeFabric,
    method: str,
    path: str,
    body: bytes = b"",
    headers: Mapping[str, str] | None = None,
    memory: SharedMemory | None = None,
) -> Response:
    router = Router()
    for route in routes(fabric, memory or Off()):
        router.add(*route)
    responses: list[Response] = []
    lower = {name.lower(): value for name, value in (headers or {}).items()}
    router(Request(method, path, "", lower, body, ALL), responses.append)
    (response,) = responses
    return response


def parsed(response: Response) -> tuple[Any, bytes]:
    """The JSON of a response, and what follows it."""
    body = b"".join(response.body)
    headers = dict(response.headers)
    length = int(headers.get(LENGTH, len(body)))
    assert headers["Content-Type"] == ("application/octet-stream" if LENGTH in headers else "application/json")
    return json.loads(body[:length]), body[length:]


def infer(
    body: object,
    tail: bytes = b"",
    served: Model = ECHO,
    fabric: FakeFabric | None = None,
    length: str | None = None,
    path: str = "",
) -> Response:
    text = body if isinstance(body, bytes) else json.dumps(body).encode()
    headers = {LENGTH: length or str(len(text))} if tail or length else {}
    fabric = fabric or FakeFabric(served)
    return ask(fabric, "POST", f"/v2/models/{served.name}{path}/infer", text + tail, headers)


def answered(*args: Any, **kwargs: Any) -> tuple[Any, bytes]:
    response = infer(*args, **kwargs)
    assert response.status == 200, parsed(response)
    return parsed(response)


def refused(*args: Any, status: int = 400, **kwargs: Any) -> str:
    """The message that a request is refused with."""
    response = infer(*args, **kwargs)
    body, rest = parsed(response)
    assert (response.status, list(body), rest) == (status, ["error"], b"")
    return str(body["error"])


def request(data: object, **more: Any) -> dict[str, Any]:
    return {"inputs": [{**ROW, "data": data}], **more}


BINARY = {"inputs": [{**ROW, "parameters": {"binary_data_size": 12}}]}


def test_json_is_answered_with_json() -> None:
    body, _ = answered(request([1, 2.5, 3]))
    assert body == {
        "model_name": "echo",
        "model_version": "1",
        "outputs": [{"name": "x", "datatype": "FP32", "shape": [1, 3], "data": [1.0, 2.5, 3.0]}],
    }
    assert list(body) == ["model_name", "model_version", "outputs"]


def test_the_id_comes_back() -> None:
    assert answered(request([1, 2, 3], id='se"ven'))[0]["id"] == 'se"ven'
    assert "id" not in answered(request([1, 2, 3], id=""))[0]


def test_data_is_nested_or_flat() -> None:
    for data in ([[1, 2, 3]], [1, 2, 3]):
        assert answered(request(data))[0]["outputs"][0]["data"] == [1, 2, 3]
    spaced = json.dumps(request([[1, 2, 3]])).replace("[[", " [\n\t[").encode()
    assert answered(spaced)[0]["outputs"][0]["data"] == [1, 2, 3]


@pytest.mark.parametrize(
    ("shape", "data"), [([2, 0], [[], []]), ([0, 3], []), ([2, 0, 3], [[], []]), ([2, 0, 3], []), ([0], [])]
)
def test_empty_tensors_are_nested_too(shape: list[int], data: object) -> None:
    body, _ = answered({"inputs": [{"name": "x", "datatype": "INT8", "shape": shape, "data": data}]})
    assert body["outputs"] == [{"name": "x", "datatype": "INT8", "shape": shape, "data": []}]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"data": [1, 2]}, "shape [1, 3] has 3 elements, data has 2"),
        ({"data": [[1, 2]]}, "a list of data has 2 elements at dimension 1, where its shape has 3"),
        ({"data": [[1, 2, 3], [4, 5, 6]]}, "a list of data has 2 elements at dimension 0, where its shape has 1"),
        ({"data": [[[1]], [2], [3]]}, "data is nested 3 deep, but shape [1, 3] has 2 extents"),
        ({"shape": [1, 3, 1], "data": [[1, 2, 3]]}, "data is nested 2 deep, but shape [1, 3, 1] has 3 extents"),
        ({"data": ["1", "2", "3"]}, "data is not FP32: Expected `float`, got `str`"),
        ({"data": [True, 2, 3]}, "data is not FP32: Expected `float`, got `bool`"),
        ({"data": [[1, 2, [3]]]}, "data is not FP32"),
        ({"data": 1}, "data is not an array"),
        ({"data": None}, "data is not an array"),
        ({"data": [1e39, 2, 3]}, "a number that is too large for FP32"),
        ({"data": [10**400, 2, 3]}, "data is not FP32: Number out of range"),
        ({"datatype": "FP16", "data": [1e6, 2, 3]}, "a number that is too large for FP16"),
        ({"datatype": "UINT8", "data": [256, 2, 3]}, "Expected `int` <= 255"),
        ({"datatype": "UINT64", "data": [2**64, 2, 3]}, "a number that is too large for UINT64"),
        ({"datatype": "INT64", "data": [2**63, 2, 3]}, "Expected `int` <= 9223372036854775807"),
        ({"datatype": "INT32", "data": [1.5, 2, 3]}, "Expected `int`, got `float`"),
        ({"datatype": "BOOL", "data": [1, True, False]}, "Expected `bool`, got `int`"),
        ({"datatype": "BYTES", "data": ["a", "b", "c"]}, "has datatype 'BYTES', which no model here takes"),
        ({"datatype": "BF16", "data": [1, 2, 3]}, "has datatype 'BF16', which no model here takes"),
        ({"datatype": "FLOAT", "data": [1, 2, 3]}, "has datatype 'FLOAT', which is not known"),
        ({"shape": [0] * 17, "data": []}, "has 17 dimensions; the limit is 16"),
        ({"shape": [2**40], "data": []}, "an extent is a number from 0 to"),
        ({"shape": [2**39, 2**39, 0], "data": []}, "is too large a shape"),
    ],
)
def test_wrong_data_is_refused_with_the_name_of_the_input(changes: dict[str, Any], words: str) -> None:
    message = refused({"inputs": [ROW | changes]})
    assert message.startswith("input 'x'")
    assert words in message


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"{", "is not JSON"),
        (b"\xff\xfe", "is not JSON"),
        (b'{"inputs": [{"name": "\xff"}]}', "is not JSON"),
        (b'{"inputs": [NaN}', "is not JSON"),
        (b'{"a": ' + b"[" * 100_000, "is not JSON"),
        (b'{"inputs": NaN, "a": ' + b"[" * 100_000, "is not JSON"),
        (b"[]", "does not have the form of an inference: Expected `object`"),
        (b'{"inputs": NaN}', "does not have the form of an inference: Expected `array`, got `float` - at `$.inputs`"),
        ({}, "required field `inputs`"),
        ({"inputs": 1}, "at `$.inputs`"),
        ({"inputs": [1]}, "at `$.inputs[0]`"),
        ({"inputs": [{"shape": [1], "datatype": "FP32", "data": [1]}]}, "required field `name`"),
        ({"inputs": [ROW | {"shape": 3}]}, "at `$.inputs[0].shape`"),
        ({"inputs": [ROW | {"shape": [1.5]}]}, "at `$.inputs[0].shape[0]`"),
        ({"inputs": [ROW | {"shape": [-1]}]}, "Expected `int` >= 0 - at `$.inputs[0].shape[0]`"),
        (request([1, 2, 3], id=7), "at `$.id`"),
        (request([1, 2, 3], outputs=[{}]), "required field `name`"),
        ({"inputs": [ROW]}, "input 'x' must have one of data"),
        ({"inputs": [{**ROW, "data": [1, 2, 3], "parameters": {"binary_data_size": 12}}]}, "must have one of data"),
        ({"inputs": [{**ROW, "data": [1, 2, 3]}] * 2}, "two inputs have the name 'x'"),
        (request([1, 2, 3], outputs=[{"name": "z"}]), "model 'echo' has no output 'z'; it has 'x'"),
        (request([1, 2, 3], outputs=[{"name": "x"}] * 2), "output 'x' is requested twice"),
        (request([1, 2, 3], parameters={"priority": -1}), "parameter 'priority' is -1; use a whole number from 0"),
        (request([1, 2, 3], parameters={"timeout": "1"}), "parameter 'timeout' is '1'"),
        (request([1, 2, 3], parameters={"sequence_id": -1}), "parameter 'sequence_id' is -1"),
        (request([1, 2, 3], parameters={"sequence_start": 1}), "parameter 'sequence_start' is 1; use true or false"),
        (request([1, 2, 3], parameters={"binary_data_output": 1}), "parameter 'binary_data_output' is 1"),
        (request([1, 2, 3], parameters={"triton_enable": True}), "parameter 'triton_enable' is reserved"),
        (request([1, 2, 3], parameters={"color": ["red"]}), "got `array` - at `$.parameters"),
        (request([1, 2, 3], parameters={"color": None}), "use a string, a number or a boolean"),
        (request([1, 2, 3], outputs=[{"name": "x", "parameters": {"binary_data": 1}}]), "parameter 'binary_data' is 1"),
    ],
)
def test_wrong_requests_are_refused(body: object, words: str) -> None:
    assert words in refused(body)


def test_parameters_become_priority_and_timeout() -> None:
    def called(**parameters: object) -> tuple[int, float | None]:
        fabric = FakeFabric(ECHO)
        answered(request([1, 2, 3], parameters=parameters), fabric=fabric)
        (call,) = fabric.calls
        return call.priority, call.timeout

    assert called() == called(priority=0, timeout=0) == (0, None)
    assert [called(priority=given)[0] for given in (1, 100, 101, 201, 2**64 - 1)] == [100, 1, 0, -100, -100]
    assert called(timeout=1500) == (0, 0.0015)
    assert called(timeout=2**64 - 1) == (0, 24 * 3600)
    without_effect = {"sequence_id": "a", "sequence_start": True, "sequence_end": True, "color": "red", "size": 1.5}
    assert called(**without_effect) == called(sequence_id=7) == (0, None)


def test_a_version_of_the_path_is_asked_for() -> None:
    fabric = FakeFabric(ECHO)
    answered(request([1, 2, 3]), fabric=fabric, path="/versions/7")
    answered(request([1, 2, 3]), fabric=fabric)
    assert [call.version for call in fabric.calls] == [7, None]
    assert refused(request([1, 2, 3]), path="/versions/first", status=404)
    assert "is not a whole number from 1" in refused(request([1, 2, 3]), path="/versions/99999999999999999999")


def test_outputs_are_those_asked_for_in_that_order() -> None:
    arrays = {name: np.arange(2, dtype=np.int8) for name in "abc"}
    fabric = FakeFabric(ECHO, run=lambda _call: arrays)
    body, _ = answered(request([1, 2, 3], outputs=[{"name": "c"}, {"name": "a"}]), fabric=fabric)
    assert [output["name"] for output in body["outputs"]] == ["c", "a"]
    for everything in (request([1, 2, 3], outputs=[]), request([1, 2, 3])):
        body, _ = answered(everything, fabric=fabric)
        assert [output["name"] for output in body["outputs"]] == ["a", "b", "c"]


def test_binary_data_both_ways() -> None:
    wanted = {"outputs": [{"name": "x", "parameters": {"binary_data": True}}]}
    for more in (wanted, {"parameters": {"binary_data_output": True}}):
        body, tail = answered(BINARY | more, RAW)
        described = {"name": "x", "datatype": "FP32", "shape": [1, 3], "parameters": {"binary_data_size": 12}}
        assert body["outputs"] == [described]
        assert tail == RAW
    body, tail = answered(BINARY, RAW)
    assert (body["outputs"][0]["data"], tail) == ([1, 2, 3], b"")


def test_an_output_says_itself_whether_it_is_binary() -> None:
    arrays = {name: np.arange(3, dtype=np.uint8) for name in "abc"}
    outputs = [{"name": "a", "parameters": {"binary_data": False}}, {"name": "b"}, {"name": "c"}]
    body, tail = answered(
        request([1, 2, 3], parameters={"binary_data_output": True}, outputs=outputs),
        fabric=FakeFabric(ECHO, run=lambda _call: arrays),
    )
    assert ["data" in output for output in body["outputs"]] == [True, False, False]
    assert tail == bytes([0, 1, 2, 0, 1, 2])


def test_inputs_view_the_body_and_large_outputs_are_sent_from_their_memory() -> None:
    array = np.arange(3000, dtype=np.float32)
    fabric = FakeFabric(ECHO, run=lambda _call: {"y": array})
    given = {"name": "x", "datatype": "FP32", "shape": [3000], "parameters": {"binary_data_size": 12_000}}
    head = json.dumps({"inputs": [given], "parameters": {"binary_data_output": True}}).encode()
    body = bytearray(head + array.tobytes())
    response = ask(fabric, "POST", "/v2/models/echo/infer", body, {LENGTH: str(len(head))})  # type: ignore[arg-type]
    assert np.shares_memory(fabric.calls[0].inputs["x"], np.frombuffer(body, np.uint8))
    assert np.shares_memory(np.frombuffer(response.body[1], np.float32), array)


@pytest.mark.parametrize("shape", [(3, 1000), (3000,)])
def test_outputs_in_other_orders_are_copied(shape: tuple[int, ...]) -> None:
    array = np.asfortranarray(np.arange(3000, dtype=">f4").reshape(shape))
    fabric = FakeFabric(ECHO, run=lambda _call: {"y": array})
    _, tail = answered(BINARY | {"parameters": {"binary_data_output": True}}, RAW, fabric=fabric)
    assert tail == array.astype("<f4").tobytes()


def test_binary_tensors_are_in_the_order_of_the_inputs() -> None:
    first, second = np.array([1, 2], np.int16), np.array(7, np.uint64)
    inputs = [
        {"name": "a", "datatype": "INT16", "shape": [2], "parameters": {"binary_data_size": 4}},
        {"name": "b", "datatype": "FP32", "shape": [1], "data": [0.5]},
        {"name": "c", "datatype": "UINT64", "shape": [], "parameters": {"binary_data_size": 8}},
    ]
    body, _ = answered({"inputs": inputs}, first.tobytes() + second.tobytes())
    assert [output["data"] for output in body["outputs"]] == [[1, 2], [0.5], [7]]


@pytest.mark.parametrize(
    ("changes", "tail", "length", "words"),
    [
        ({}, RAW[:8], None, "8 bytes follow the JSON; its inputs have 12"),
        ({}, RAW + b"\0", None, "13 bytes follow the JSON; its inputs have 12"),
        ({"parameters": {"binary_data_size": 8}}, RAW[:8], None, "input 'x': FP32[1, 3] has 12 bytes, not 8"),
        ({"parameters": {"binary_data_size": -1}}, RAW, None, "'binary_data_size' is -1; use a whole number from 0"),
        ({"parameters": {"binary_data_size": True}}, RAW, None, "'binary_data_size' is true"),
        ({"datatype": "BYTES"}, RAW, None, "has datatype 'BYTES'"),
        ({"shape": [2**39, 2**39, 0], "parameters": {"binary_data_size": 0}}, b"", "whole", "is too large a shape"),
        ({}, RAW, "9999", "Inference-Header-Content-Length is '9999'; the body has"),
        ({}, RAW, "-1", "Inference-Header-Content-Length is '-1'"),
        ({}, RAW, "ten", "Inference-Header-Content-Length is 'ten'"),
        ({}, RAW, "9" * 5000, "Inference-Header-Content-Length is '999"),
        ({}, RAW, "5", "is not JSON"),
    ],
)
def test_wrong_binary_data_is_refused(changes: dict[str, Any], tail: bytes, length: str | None, words: str) -> None:
    body = {"inputs": [{**BINARY["inputs"][0], **changes}]}
    if length == "whole":
        length = str(len(json.dumps(body)))
    assert words in refused(body, tail, length=length)


def test_a_body_without_json_is_the_one_input() -> None:
    fixed = model("m", TensorSpec("x", "FP32", (3,)))
    body, tail = answered(b"", RAW, served=fixed, length="0")
    assert body["outputs"][0]["shape"] == [3]
    assert tail == RAW


@pytest.mark.parametrize(
    ("shape", "raw", "wanted"),
    [
        ((-1, 3), RAW * 2, [2, 3]),
        ((-1, 3), b"", [0, 3]),
        ((3, -1), RAW * 2, [3, 2]),
        ((-1, 3, -1), RAW * 2, [1, 3, 2]),
        ((), RAW[:4], []),
        ((-1, 0), b"", [0, 0]),
    ],
)
def test_one_extent_of_a_body_without_json_is_found(shape: tuple[int, ...], raw: bytes, wanted: list[int]) -> None:
    spec = TensorSpec("x", "FP32", shape)
    body, tail = answered(b"", raw, served=model("m", spec, outputs=(spec,)), length="0")
    assert body["outputs"][0]["shape"] == wanted
    assert tail == raw


@pytest.mark.parametrize(
    ("inputs", "raw", "words"),
    [
        ((X, X), RAW, "model 'm' has 2 inputs; a request without JSON is for models with one"),
        ((X,), RAW[:11], "input 'x': FP32[0, 3] has 0 bytes, not 11"),
        ((TensorSpec("x", "FP32", (2, -1, -1)),), RAW, "does not tell the shape of input x FP32[2,?,?]"),
        ((TensorSpec("x", "FP32", (-1, 2, -1, -1)),), RAW, "does not tell the shape of input x"),
    ],
)
def test_a_body_without_json_must_tell_the_shape(inputs: tuple[TensorSpec, ...], raw: bytes, words: str) -> None:
    assert words in refused(b"", raw, served=model("m", *inputs, outputs=inputs), length="0")


def test_an_empty_body_is_a_body_without_json() -> None:
    body, tail = answered(b"")
    assert body["outputs"][0] == {
        "name": "x",
        "datatype": "FP32",
        "shape": [0, 3],
        "parameters": {"binary_data_size": 0},
    }
    assert tail == b""


@pytest.mark.parametrize(
    ("array", "shape", "texts"),
    [
        (np.array([[1, 10, 5, 4], [2, 0, 2, 1]], np.int8), [2, 2], ["10:1", "5:2", "2:0", "2:2"]),
        (np.array([[0.5, np.nan, 2, -np.inf]], np.float32), [1, 2], ["2.000000:2", "0.500000:0"]),
        (np.array([[[1], [2**64 - 1]]], np.uint64), [1, 2], [f"{2**64 - 1}:1", "1:0"]),
        (np.array([[3]], np.int64), [1, 1], ["3:0"]),
        (np.zeros((0, 4), np.float64), [0, 0], []),
    ],
)
def test_classes_are_the_highest_elements_of_each_row(array: Array, shape: list[int], texts: list[str]) -> None:
    wanted = {"name": "y", "parameters": {"classification": 2}}
    fabric = FakeFabric(ECHO, run=lambda _call: {"y": array})
    body, _ = answered(request([1, 2, 3], outputs=[wanted]), fabric=fabric)
    assert body["outputs"] == [{"name": "y", "datatype": "BYTES", "shape": shape, "data": texts}]
    wanted["parameters"]["binary_data"] = True  # type: ignore[index]
    body, tail = answered(request([1, 2, 3], outputs=[wanted]), fabric=fabric)
    assert tail == b"".join(len(text).to_bytes(4, "little") + text.encode() for text in texts)
    assert body["outputs"][0]["parameters"] == {"binary_data_size": len(tail)}


def test_without_a_batch_all_elements_are_one_row() -> None:
    fixed = model("m", TensorSpec("x", "FP32", (1, 3)))
    wanted = {"outputs": [{"name": "x", "parameters": {"classification": 2}}]}
    body, _ = answered(request([1, 2, 3], **wanted), served=fixed)
    assert body["outputs"] == [{"name": "x", "datatype": "BYTES", "shape": [2], "data": ["3.000000:2", "2.000000:1"]}]


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (np.zeros(3, bool), "output 'y' is bool; classification is for integers"),
        (np.zeros(3, np.float16), "output 'y' is float16; classification is for integers"),
        (np.zeros((1, 1_000_001), np.int8), "output 'y' has 1000001 elements a row; classification takes 1000000"),
    ],
)
def test_outputs_without_classes(array: Array, words: str) -> None:
    wanted = {"outputs": [{"name": "y", "parameters": {"classification": 2}}]}
    assert words in refused(request([1, 2, 3], **wanted), fabric=FakeFabric(ECHO, run=lambda _call: {"y": array}))


def test_tensors_in_shared_memory() -> None:
    path = Path("/dev/shm") / f"zo-test-{uuid.uuid4().hex}"
    try:
        path.write_bytes(RAW + bytes(100))
        memory = System()
        memory.register("r", path.name, 0, 112, ALL)
        inputs = [
            {**ROW, "parameters": {"shared_memory_region": "r", "shared_memory_byte_size": 12}},
            {**ROW, "name": "z", "data": [4, 5, 6]},
        ]
        place = {"shared_memory_region": "r", "shared_memory_offset": 12, "shared_memory_byte_size": 12}
        sent = json.dumps({"inputs": inputs, "outputs": [{"name": "z"}, {"name": "x", "parameters": place}]}).encode()
        infer_path = "/v2/models/echo/infer"
        body, _ = parsed(ask(FakeFabric(ECHO), "POST", infer_path, sent, memory=memory))
        described = {"name": "x", "datatype": "FP32", "shape": [1, 3]}
        assert body["outputs"] == [described | {"name": "z", "data": [4, 5, 6]}, described]
        assert path.read_bytes() == RAW + RAW + bytes(88)
        for wrong, status in (
            (sent.replace(b'"r"', b'"s"'), 404),
            (sent.replace(b'"shared_memory_byte_size": 12}', b'"shared_memory_byte_size": 8}'), 400),
            (sent.replace(b"12}}]", b"8}}]"), 400),
            (sent.replace(b"12}}]", b'12, "binary_data": true}}]'), 400),
            (sent.replace(b"12}}]", b'12, "classification": 1}}]'), 400),
        ):
            response = ask(FakeFabric(ECHO), "POST", infer_path, wrong, memory=memory)
            assert response.status == status, parsed(response)
        assert ask(FakeFabric(ECHO), "POST", infer_path, sent).status == 501
    finally:
        path.unlink(missing_ok=True)


def test_errors_of_the_fabric_have_their_statuses() -> None:
    fabric = FakeFabric(ECHO)
    for error, status in ((Unavailable("gone"), 503), (Internal("broken"), 500), (ResourceExhausted("full"), 429)):
        fabric.run = returns(error)
        assert refused(request([1, 2, 3]), fabric=fabric, status=status) == error.message
        assert refused(b"", RAW, length="0", fabric=fabric, status=status) == error.message
    assert ("Retry-After", "1") in infer(request([1, 2, 3]), fabric=fabric).headers
    fabric.catalog = Unavailable("no broker")
    assert refused(b"", RAW, length="0", fabric=fabric, status=503) == "no broker"
    assert "is not served" in refused(b"", RAW, length="0", fabric=FakeFabric(), status=404)


def test_a_client_that_goes_away_takes_its_request_back() -> None:
    for body, length in ((json.dumps(request([1, 2, 3])).encode(), None), (RAW, "0")):
        fabric = FakeFabric(ECHO)
        fabric.hold = True
        router = Router()
        for route in routes(fabric, Off()):
            router.add(*route)
        headers = {} if length is None else {LENGTH.lower(): length}
        cancel = router(Request("POST", "/v2/models/echo/infer", "", headers, body, ALL), lambda _response: None)
        assert cancel is not None
        cancel()
        assert fabric.canceled == 1
        cancel = router(Request("POST", "/v2/models/echo/infer", "", headers, body, ALL), lambda _response: None)
        assert cancel is not None
        for _ in range(2):
            fabric.release()
        cancel()
        assert fabric.canceled == 1


def returns(error: OffloadError) -> Callable[[Call], OffloadError]:
    return lambda _call: error


SPECIAL = [float("nan"), float("inf"), float("-inf")]


def test_nan_and_infinities_pass_as_triton_writes_them() -> None:
    text = json.dumps(request(SPECIAL)).encode()
    assert b"[NaN, Infinity, -Infinity]" in text
    response = infer(text)
    assert b'"data":[NaN,Infinity,-Infinity]' in response.body[0]
    nested = infer(json.dumps(request([SPECIAL])).encode())
    assert nested.body == response.body
    assert refused(json.dumps(request([*SPECIAL, 1])).encode()) == (
        "input 'x': shape [1, 3] has 3 elements, data has 4"
    )
    assert "not FP32" in refused(json.dumps(request([*SPECIAL[:2], "a"])).encode())
    assert "data is not an array" in refused(json.dumps(request(SPECIAL[0])).encode())


@pytest.mark.parametrize(
    "text",
    [
        '{{"inputs":[],"parameters":{{{}}}}}'.format(",".join(f'"{number}":1' for number in range(120_000))),
        '{{"inputs":[],"outputs":[{}]}}'.format(",".join(f'{{"name":"{number}"}}' for number in range(80_000))),
    ],
    ids=["parameters", "outputs"],
)
def test_json_that_would_hold_up_others_is_refused(text: str) -> None:
    assert len(text) > 2**20
    assert "at most 65536 are taken" in refused(text.encode())


def test_json_that_would_fill_the_memory_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_data, "ELEMENTS", 8)
    row = {"inputs": [{**ROW, "shape": [9], "data": [0] * 9}]}
    assert refused(row) == "input 'x' has 9 elements; send at most 8 as JSON, and more as binary data"
    row["inputs"][0]["shape"] = [1]
    assert "input 'x' has 9 elements" in refused(row)
    many = np.zeros(9, np.int8)
    fabric = FakeFabric(ECHO, run=lambda _call: {"y": many})
    assert "output 'y' has 9 elements, and at most 8" in refused(request([1, 2, 3]), fabric=fabric)
    assert answered(request([1, 2, 3], parameters={"binary_data_output": True}), fabric=fabric)[1] == many.tobytes()
    monkeypatch.setattr(json_data, "SLOW_BYTES", 40)
    assert "NaN or Infinity, or is malformed; send at most 40" in refused(json.dumps(request(SPECIAL)).encode())
    monkeypatch.setattr(json_data, "LISTS", 1)
    assert "40 and 1 lists with these" in refused(b'{"inputs":[NaN,{}]}')
    assert refused({"inputs": [{**ROW, "shape": [1, 3], "data": [[1, 2, 3]]}]}).startswith(
        "input 'x' has 2 lists of elements; send at most 1 as JSON, or do not nest data"
    )
    monkeypatch.setattr(json_data, "JSON_BYTES", 50)
    assert "send at most 50, and large tensors as binary data" in refused(request([1, 2, 3]))


@st.composite
def tensors(draw: st.DrawFn) -> dict[str, Array]:
    """Tensors of all datatypes and ranks, in native byte order."""
    count = draw(st.integers(1, 3))
    dtypes = st.sampled_from(sorted(DATATYPES.values(), key=str))
    shapes = hnp.array_shapes(min_dims=0, max_dims=5, min_side=0, max_side=3)
    return {f"t{index}": draw(dtypes.flatmap(lambda dtype: hnp.arrays(dtype, shapes))) for index in range(count)}


def same(left: Array, right: Array) -> bool:
    return left.dtype == right.dtype and left.shape == right.shape and left.tobytes() == right.tobytes()


def of_json(output: dict[str, Any]) -> Array:
    array: Array = np.array(output["data"], DATATYPES[output["datatype"]]).reshape(output["shape"])
    return array


def quiet(array: Array) -> Array:
    """JSON has one NaN only."""
    return np.where(np.isnan(array), np.array(np.nan, array.dtype), array) if array.dtype.kind == "f" else array


@given(tensors(), st.booleans(), st.booleans())
def test_the_same_tensors_in_every_form(arrays: dict[str, Array], binary_in: bool, binary_out: bool) -> None:
    inputs, tail = [], b""
    for name, array in arrays.items():
        described: dict[str, Any] = {"name": name, "datatype": datatype_of(array.dtype), "shape": list(array.shape)}
        if binary_in:
            described["parameters"] = {"binary_data_size": array.nbytes}
            tail += array.tobytes()
        else:
            described["data"] = array.tolist() if array.ndim else [array.item()]
        inputs.append(described)
    body, rest = answered({"inputs": inputs, "parameters": {"binary_data_output": binary_out}}, tail)
    for output in body["outputs"]:
        array = arrays[output["name"]]
        if binary_out:
            size = output["parameters"]["binary_data_size"]
            found = np.frombuffer(rest[:size], DATATYPES[output["datatype"]]).reshape(output["shape"])
            rest = rest[size:]
        else:
            found = of_json(output)
        if not (binary_in and binary_out):
            found, array = quiet(found), quiet(array)
        assert same(found, array)
    assert rest == b""


@given(st.binary(max_size=200), st.one_of(st.none(), st.integers(-1, 220).map(str)))
def test_any_bytes_are_answered(body: bytes, length: str | None) -> None:
    response = ask(FakeFabric(ECHO), "POST", "/v2/models/echo/infer", body, {LENGTH: length} if length else {})
    assert response.status in (200, 400)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from(["x", "FP32", ""]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["name", "shape", "datatype", "data", "parameters", "x"]), inner, max_size=5)
    ),
    max_leaves=10,
)


@given(st.dictionaries(st.sampled_from(["inputs", "outputs", "id", "parameters"]), json_values))
def test_any_json_is_answered(body: dict[str, Any]) -> None:
    assert infer(json.dumps(body).encode() or b"{}").status in (200, 400)
