"""TensorFlow Serving's REST API: paths, both forms of tensors, metadata and states, errors."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tests.gateway.fake_fabric import ALL, FakeFabric, model
from zmq_offload.errors import DeadlineExceeded, InvalidArgument, ResourceExhausted, Unavailable
from zmq_offload.gateway.catalog import Model
from zmq_offload.gateway.http.messages import Request, Response
from zmq_offload.gateway.tfserving.rest import handler
from zmq_offload.protocol.tensors import DATATYPES, TensorSpec

X = TensorSpec("x", "FP32", (-1, 2))
N = TensorSpec("n", "INT8", (-1,))
TABLE = model("m", X, outputs=(X,))
PAIR = model("pair", X, N)
FIXED = model("fixed", TensorSpec("x", "FP32", (1, 2)))


def ask(fabric: FakeFabric, method: str, path: str, body: bytes | memoryview = b"") -> Response:
    responses: list[Response] = []
    handler(fabric)(Request(method, path, "", {}, body, ALL), responses.append)
    (response,) = responses
    assert response.headers[0] == ("Content-Type", "application/json")
    return response


def answered(response: Response) -> Any:
    return json.loads(b"".join(response.body))


def refused(response: Response) -> tuple[int, str]:
    """The status, and the text of an error's body."""
    body = answered(response)
    assert body.keys() == {"error"}
    return response.status, body["error"]


def predicted(served: Model, body: object, **run: Any) -> Any:
    """The answer to a predict that succeeds."""
    response = ask(FakeFabric(served, **run), "POST", f"/v1/models/{served.name}:predict", json.dumps(body).encode())
    assert response.status == 200, answered(response)
    return answered(response)


def predict_refused(served: Model, body: object, **run: Any) -> str:
    """The text of the 400 that a predict ends with."""
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    status, text = refused(ask(FakeFabric(served, **run), "POST", f"/v1/models/{served.name}:predict", raw))
    assert status == 400
    return text


def test_rows_of_one_input_have_no_name() -> None:
    rows = [[1.0, 2.0], [3.0, 0.1], [5.0, 6.0]]
    assert predicted(TABLE, {"instances": rows}) == {"predictions": rows}
    assert predicted(TABLE, {"signature_name": "serving_default", "instances": [{"x": rows[0]}]}) == {
        "predictions": rows[:1]
    }


def test_rows_of_several_inputs_are_objects() -> None:
    rows = [{"x": [1.0, 2.0], "n": -3}, {"n": 4, "x": [5.0, 6.0]}]
    assert predicted(PAIR, {"instances": rows}) == {"predictions": rows}


def test_columns_are_whole_tensors() -> None:
    assert predicted(TABLE, {"inputs": [[1, 2]]}) == {"outputs": [[1.0, 2.0]]}
    assert predicted(TABLE, {"inputs": {"x": [[1, 2]]}}) == {"outputs": [[1.0, 2.0]]}
    columns = {"x": [[1.0, 2.0]], "n": [3, 4, 5]}
    assert predicted(PAIR, {"inputs": columns}) == {"outputs": columns}


def test_a_list_without_elements_has_the_models_shape() -> None:
    fabric = FakeFabric(TABLE)
    ask(fabric, "POST", "/v1/models/m:predict", b'{"inputs": []}')
    assert fabric.calls[0].inputs["x"].shape == (0, 2)


def test_infinities_and_nan_are_written_as_tensorflow_serving_writes_them() -> None:
    body = memoryview(b'{"instances": [[NaN, 1.5], [-Infinity, Infinity]]}')
    response = ask(FakeFabric(TABLE), "POST", "/v1/models/m:predict", body)
    assert b"".join(response.body) == b'{"predictions":[[NaN,1.5],[-Infinity,Infinity]]}'


def test_one_instance_may_be_the_whole_input_of_a_model_without_batch() -> None:
    flat = model("flat", TensorSpec("x", "FP32", (2,)))
    assert predicted(flat, {"instances": [[1.0, 2.0]]}) == {"predictions": [[1.0, 2.0]]}
    assert predicted(flat, {"instances": [1.0, 2.0]}) == {"predictions": [1.0, 2.0]}
    assert "send one row" in predict_refused(flat, {"instances": [[1, 2], [3, 4]]})
    scalars = model("scalars", TensorSpec("x", "FP32", ()), TensorSpec("y", "BOOL", ()))
    assert predicted(scalars, {"instances": [{"x": 1.0, "y": True}]}) == {"predictions": [{"x": 1.0, "y": True}]}


def test_a_fixed_batch_is_named() -> None:
    text = predict_refused(FIXED, {"instances": [[1, 2], [3, 4]]})
    assert text == "'instances' has 2 rows, but the batch of model 'fixed' is fixed: it takes x FP32[1,2]"


@pytest.mark.parametrize("shapes", [[(2,), (3,)], [()], [(1,), ()]])
def test_outputs_without_common_rows_ask_for_columns(shapes: list[tuple[int, ...]]) -> None:
    outputs = {f"y{i}": np.zeros(shape) for i, shape in enumerate(shapes)}
    assert "use 'inputs'" in predict_refused(TABLE, {"instances": [[1, 2]]}, run=lambda call: outputs)


def test_an_output_that_is_too_large_for_json_is_refused() -> None:
    large = {"y": np.broadcast_to(np.float32(1), 2**23 + 1)}
    for body in ({"inputs": [[1, 2]]}, {"instances": [[1, 2]]}):
        assert "8388609 elements" in predict_refused(TABLE, body, run=lambda call: large)


def test_a_model_without_a_signature_takes_what_is_given() -> None:
    columns = {"f": [1.5, 2.0], "i": [[1], [2]], "b": True, "none": []}
    fabric = FakeFabric(echo := model("echo"))
    assert answered(ask(fabric, "POST", "/v1/models/echo:predict", json.dumps({"inputs": columns}).encode())) == {
        "outputs": columns
    }
    assert [str(array.dtype) for array in fabric.calls[0].inputs.values()] == ["float32", "int64", "bool", "float32"]
    assert "tensors of any name" in predict_refused(echo, {"inputs": [1]})
    assert predicted(echo, {"inputs": {}}) == {"outputs": {}}
    assert predicted(echo, {"instances": [{}]}) == {"predictions": []}


@st.composite
def tensors(draw: st.DrawFn) -> tuple[TensorSpec, np.ndarray[Any, Any]]:
    datatype = draw(st.sampled_from(sorted(DATATYPES)))
    shape = draw(hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=3))
    array = draw(hnp.arrays(DATATYPES[datatype], shape))
    return TensorSpec("x", datatype, shape), array


@given(tensors())
def test_every_datatype_and_shape_comes_back(case: tuple[TensorSpec, np.ndarray[Any, Any]]) -> None:
    spec, array = case
    fabric = FakeFabric(model("m", spec))
    body = json.dumps({"inputs": array.tolist()}).encode()
    outputs = answered(ask(fabric, "POST", "/v1/models/m:predict", body))["outputs"]
    sent = fabric.calls[0].inputs["x"]
    assert sent.dtype == array.dtype and sent.shape == array.shape
    np.testing.assert_array_equal(sent, array)
    np.testing.assert_array_equal(np.array(outputs, array.dtype).reshape(array.shape), array)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "not JSON"),
        (b"{", "not JSON"),
        (b"\xff\xfe", "not JSON"),
        (b"[" * 100_000, "not JSON: maximum recursion depth exceeded"),
        (b"NaN" + b"[" * 100_000, "not JSON"),
        (b"{" * (2**20 + 1), "1048577 lists or objects"),
        (b"," * 2**23, "8388608 elements"),
        (b":" * (2**21 + 1), "2097153 names"),
        ({"inputs": {str(number): 1 for number in range(257)}}, "257 tensors; the limit is 256"),
        ({"instances": [{str(number): 1 for number in range(257)}]}, "257 tensors; the limit is 256"),
        (b"NaN" + b" " * (16 << 20), "send at most 16777216 with these"),
        (b" " * (64 << 20) + b"{", "has 67108865 bytes"),
        ([1], "not a JSON object"),
        ({}, "neither of 'instances' and 'inputs'"),
        ({"inputs": [], "instances": []}, "both of 'instances' and 'inputs'"),
        ({"inputs": [], "signature_name": 3}, "signature_name 3 is not a string"),
        ({"inputs": [], "signature_name": "classify"}, "signature 'classify' is not known"),
        ({"instances": []}, "at least one row"),
        ({"instances": 3}, "at least one row"),
        ({"instances": [{"x": [1, 2]}, [3, 4]]}, "row 1"),
        ({"instances": [{"x": [1, 2]}, {"y": [3, 4]}]}, "row 1"),
        ({"instances": [{"y": [1, 2]}]}, "the inputs are 'y' but model 'm' takes x FP32[?,2]"),
        ({"instances": [{}]}, "the inputs are none"),
        ({"instances": [[1, 2], [3]]}, "nest lists of one length"),
        ({"instances": [[1, 2], 3]}, "nest lists of one length"),
        ({"instances": [1, [2, 3]]}, "FP32 takes numbers"),
        ({"instances": [[1, True]]}, "the value true; FP32 takes numbers"),
        ({"instances": [[1, None]]}, "the value null"),
        ({"instances": [[1, "2"]]}, "the value '2'"),
        ({"instances": [{"b64": "AAAA"}]}, "base64 data is for strings"),
        ({"inputs": {"b64": "AAAA"}}, "base64 data is for strings"),
        ({"inputs": [[1e39, 0]]}, "the value 1e+39, which does not fit FP32"),
        ({"inputs": [[10**400, 0]]}, "does not fit FP32"),
        ({"inputs": json.loads("[" * 17 + "]" * 17)}, "nested more than 16 times"),
    ],
)
def test_a_wrong_body_is_refused(body: object, words: str) -> None:
    assert words in predict_refused(TABLE, body)


@pytest.mark.parametrize(
    ("datatype", "value", "words"),
    [
        ("INT8", 128, "128, which does not fit INT8"),
        ("UINT64", -1, "-1, which does not fit UINT64"),
        ("INT32", 1.0, "1.0; INT32 takes whole numbers"),
        ("INT32", True, "true; INT32 takes whole numbers"),
        ("BOOL", 1, "1; BOOL takes true and false"),
        ("FP16", 65520, "65520.0, which does not fit FP16"),
    ],
)
def test_a_value_that_does_not_fit_is_refused(datatype: str, value: object, words: str) -> None:
    assert words in predict_refused(model("m", TensorSpec("x", datatype, ())), {"inputs": value})


def test_a_tensor_without_a_name_needs_a_model_with_one_input() -> None:
    for body in ({"inputs": [1]}, {"instances": [1]}):
        assert "a tensor without a name, but model 'pair' takes x FP32[?,2]; n INT8[?]" in predict_refused(PAIR, body)


def test_versions_are_passed_on() -> None:
    fabric = FakeFabric(Model("m", 3, (X,), (X,), 1, False), Model("m", 12, (X,), (X,), 1, True))
    body = b'{"instances": [[1, 2]]}'
    for path in (
        "/v1/models/m:predict",
        "/v1/models/m/versions/3:predict",
        "/v1/models/%6d/versions/0012:predict",
        "/v1/models/m/versions/0:predict",
    ):
        assert ask(fabric, "POST", path, body).status == 200
    assert [(call.model, call.version) for call in fabric.calls] == [("m", None), ("m", 3), ("m", 12), ("m", None)]
    status, text = refused(ask(fabric, "POST", "/v1/models/m/versions/4:predict", body))
    assert status == 404 and "no version 4; the served versions are 3, 12" in text
    assert refused(ask(fabric, "POST", "/v1/models/half:predict", body))[0] == 404


def test_status_lists_versions() -> None:
    fabric = FakeFabric(Model("m", 3, (), (), 1, False), Model("m", 12, (), (), 1, True))

    def entry(version: str) -> dict[str, object]:
        return {"version": version, "state": "AVAILABLE", "status": {"error_code": "OK", "error_message": ""}}

    for path in ("/v1/models/m", "/v1/models/m/versions/0"):
        assert answered(ask(fabric, "GET", path)) == {"model_version_status": [entry("3"), entry("12")]}
    assert answered(ask(fabric, "GET", "/v1/models/m/versions/3")) == {"model_version_status": [entry("3")]}
    assert refused(ask(fabric, "GET", "/v1/models/half"))[0] == 404


def test_metadata_has_the_signature() -> None:
    pair = model("pair", X, N, outputs=(TensorSpec("y", "BOOL", ()),), version=7)

    def tensor(name: str, dtype: str, *sizes: str) -> dict[str, object]:
        dims = [{"size": size, "name": ""} for size in sizes]
        return {"dtype": dtype, "tensor_shape": {"dim": dims, "unknown_rank": False}, "name": name}

    assert answered(ask(FakeFabric(pair), "GET", "/v1/models/pair/versions/7/metadata")) == {
        "model_spec": {"name": "pair", "signature_name": "", "version": "7"},
        "metadata": {
            "signature_def": {
                "signature_def": {
                    "serving_default": {
                        "inputs": {"x": tensor("x", "DT_FLOAT", "-1", "2"), "n": tensor("n", "DT_INT8", "-1")},
                        "outputs": {"y": tensor("y", "DT_BOOL")},
                        "method_name": "tensorflow/serving/predict",
                        "defaults": {},
                    }
                }
            }
        },
    }


@pytest.mark.parametrize(
    ("method", "path", "status", "words"),
    [
        ("GET", "/v1/models", 400, "GET '/v1/models' is not a request of TensorFlow Serving"),
        ("GET", "/v1/models/m:predict", 400, "is not a request"),
        ("POST", "/v1/models/m", 400, "is not a request"),
        ("POST", "/v1/models/m/versions/one:predict", 400, "is not a request"),
        ("PUT", "/v1/models/m:predict", 400, "is not a request"),
        ("GET", "/v1/models/m/versions/" + "1" * 5000, 400, "at most 19 digits"),
        ("GET", "/v1/models/m/versions/2", 404, "no version 2"),
        ("POST", "/v1/models/m/labels/st%61ble:predict", 404, "no label 'stable'; it has no labels"),
        ("GET", "/v1/models/m/labels/stable/metadata", 404, "no label 'stable'; it has no labels"),
        ("GET", "/v1/models/m/labels/-stable", 400, "label '-stable' is not 1 to 128 letters"),
        ("POST", "/v1/models/m:classify", 501, "classify is not here"),
        ("POST", "/v1/models/m/versions/1:regress", 501, "regress is not here"),
    ],
)
def test_other_paths_are_refused(method: str, path: str, status: int, words: str) -> None:
    found, text = refused(ask(FakeFabric(TABLE), method, path))
    assert found == status and words in text


def test_a_label_stands_for_its_version() -> None:
    old, new = Model("m", 3, (X,), (X,), 1, False, labels=("stable",)), Model("m", 12, (X,), (X,), 1, True)
    fabric = FakeFabric(old, new)
    assert ask(fabric, "POST", "/v1/models/m/labels/st%61ble:predict", b'{"inputs": [[1, 2]]}').status == 200
    assert (fabric.calls[0].version, fabric.calls[0].label) == (None, "stable")
    status = ask(fabric, "GET", "/v1/models/m/labels/stable")
    assert [entry["version"] for entry in json.loads(b"".join(status.body))["model_version_status"]] == ["3"]
    metadata = ask(fabric, "GET", "/v1/models/m/labels/stable/metadata")
    assert json.loads(b"".join(metadata.body))["model_spec"]["version"] == "3"
    found, text = refused(ask(fabric, "GET", "/v1/models/m/labels/latest"))
    assert found == 404 and "no label 'latest'; it has stable" in text


def test_errors_of_the_fabric_keep_their_meaning() -> None:
    fabric = FakeFabric(TABLE, run=lambda call: DeadlineExceeded("too late"))
    body = b'{"inputs": [[1, 2]]}'
    assert refused(ask(fabric, "POST", "/v1/models/m:predict", body)) == (504, "too late")
    fabric.run = lambda call: ResourceExhausted("full")
    response = ask(fabric, "POST", "/v1/models/m:predict", body)
    assert refused(response) == (429, "full") and ("Retry-After", "1") in response.headers
    fabric.catalog = Unavailable("no broker")
    assert refused(ask(fabric, "POST", "/v1/models/m:predict", body)) == (503, "no broker")
    fabric.catalog = InvalidArgument("odd")
    assert refused(ask(fabric, "GET", "/v1/models/m")) == (400, "odd")


@pytest.mark.parametrize("releases", [0, 1])
def test_a_client_that_goes_away_takes_its_request_back(releases: int) -> None:
    fabric = FakeFabric(TABLE)
    fabric.hold = True
    request = Request("POST", "/v1/models/m:predict", "", {}, b'{"inputs": [[1, 2]]}', ALL)
    responses: list[Response] = []
    cancel = handler(fabric)(request, responses.append)
    assert cancel is not None
    for _ in range(releases):  # after the first, the catalog is there, and the model runs
        fabric.release()
    cancel()
    assert fabric.canceled == 1 and len(fabric.calls) == releases
    fabric.release()
    assert not responses


def test_a_request_that_runs_at_once_is_taken_back_too() -> None:
    fabric = FakeFabric(TABLE)
    canceled: list[str] = []
    fabric.infer = lambda call, grant, ended: lambda: canceled.append(call.model)  # type: ignore[method-assign]
    request = Request("POST", "/v1/models/m:predict", "", {}, b'{"inputs": [[1, 2]]}', ALL)
    cancel = handler(fabric)(request, lambda response: None)
    assert cancel is not None
    cancel()
    assert canceled == ["m"]
