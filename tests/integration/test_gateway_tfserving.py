"""TensorFlow Serving's protocols through real processes, with the requests of its documentation."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any

import grpc
import numpy as np
import pytest

from tests.support.fabrics import gateway_of_signed_models
from tests.support.processes import Gateway
from zmq_offload.protobuf.messages import message_class


@pytest.fixture(scope="module")
def gateway() -> Iterator[Gateway]:
    with gateway_of_signed_models() as running:
        yield running


def ask(gateway: Gateway, path: str, body: str | None = None) -> tuple[int, Any]:
    """The status and the JSON of an answer."""
    request = urllib.request.Request(f"{gateway.url}/v1/models/{path}", body.encode() if body else None)
    try:
        with urllib.request.urlopen(request, timeout=20) as response:
            return response.status, json.load(response)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)


def test_predict_in_rows_and_columns(gateway: Gateway) -> None:
    rows = [[1.0, 2.0, 5.0], [0.1, 0.2, 0.3]]
    text = json.dumps(rows)
    assert ask(gateway, "identity:predict", f'{{"instances": {text}}}') == (200, {"predictions": rows})
    assert ask(gateway, "identity/versions/1:predict", f'{{"inputs": {{"x": {text}}}}}') == (200, {"outputs": rows})
    named = '{"signature_name": "serving_default", "instances": [{"a": 1, "b": 0.5}, {"b": NaN, "a": -2}]}'
    status, answer = ask(gateway, "pair:predict", named)
    assert status == 200
    assert answer["predictions"][0] == {"c": 1, "d": 0.5}
    assert answer["predictions"][1]["c"] == -2 and np.isnan(answer["predictions"][1]["d"])


def test_status_and_metadata(gateway: Gateway) -> None:
    status, answer = ask(gateway, "identity")
    assert status == 200
    assert [version["version"] for version in answer["model_version_status"]] == ["1", "2"]
    assert {version["state"] for version in answer["model_version_status"]} == {"AVAILABLE"}
    status, answer = ask(gateway, "identity/metadata")
    assert status == 200 and answer["model_spec"]["version"] == "2"
    signature = answer["metadata"]["signature_def"]["signature_def"]["serving_default"]
    assert signature["inputs"]["x"]["tensor_shape"]["dim"][1]["size"] == "3"


@pytest.mark.parametrize(
    ("path", "body", "status", "words"),
    [
        ("half:predict", '{"instances": [1.0,5.0]}', 404, "'half' is not served"),
        ("row/versions/7:predict", '{"instances": [[1.0]]}', 404, "no version 7"),
        ("row:predict", '{"instances": [1.0', 400, "not JSON"),
        ("row:predict", '{"instances": ["a"]}', 400, "the value 'a'"),
        ("identity:predict", '{"instances": [[1, 2]]}', 400, "shape [1, 2]"),
        ("pair:predict", '{"instances": [{"a": 1, "b": 1}]}', 400, "it takes a INT32[2]"),
        ("fails:predict", '{"instances": [1]}', 500, "this model always fails"),
        ("row:regress", '{"examples": [{"x": 1.0}]}', 501, "regress is not here"),
    ],
)
def test_errors(gateway: Gateway, path: str, body: str, status: int, words: str) -> None:
    found, answer = ask(gateway, path, body)
    assert found == status and answer.keys() == {"error"} and words in answer["error"]


def test_predict_over_grpc(gateway: Gateway) -> None:
    request = message_class("tensorflow.serving.PredictRequest")(output_filter=["y"])
    request.model_spec.name = "row"
    tensor = request.inputs["x"]
    tensor.dtype = 1
    for extent in (1, 100_000):
        tensor.tensor_shape.dim.add(size=extent)
    tensor.float_val.extend([0.5, 1.5])
    with grpc.insecure_channel(gateway.grpc) as channel:

        def call(method: str, message: Any, response: str) -> Any:
            serializer = message_class(f"tensorflow.serving.{response}").FromString
            return channel.unary_unary(f"/tensorflow.serving.{method}", lambda m: m.SerializeToString(), serializer)(
                message, timeout=20
            )

        answer = call("PredictionService/Predict", request, "PredictResponse")
        values = np.array(answer.outputs["y"].float_val)
        assert values.size == 100_000 and values[0] == 0.5 and (values[1:] == 1.5).all()
        assert answer.model_spec.version.value == 1
        with pytest.raises(grpc.RpcError) as refused:
            call("PredictionService/Classify", request, "PredictResponse")
        assert refused.value.code() is grpc.StatusCode.UNIMPLEMENTED  # type: ignore[attr-defined]
        request.model_spec.version_label = "stable"
        with pytest.raises(grpc.RpcError) as refused:
            call("PredictionService/Predict", request, "PredictResponse")
        assert refused.value.code() is grpc.StatusCode.NOT_FOUND  # type: ignore[attr-defined]
        assert "has no label 'stable'; it has no labels" in refused.value.details()  # type: ignore[attr-defined]
