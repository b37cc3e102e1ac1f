"""The ways that a tensor can go to the model `echo` and back: one class for each protocol and form of data.

`carries` says which arrays a format has. Each way is written against the protocol, not with this project's code.
"""

from __future__ import annotations

import http.client
import json
from collections.abc import Sequence
from typing import Any, Protocol

import grpc
import numpy as np
import tritonclient.http
from tritonclient.grpc import service_pb2
from tritonclient.utils import np_to_triton_dtype

from zmq_offload import Client
from zmq_offload.protobuf.messages import message_class

Array = np.ndarray[Any, Any]


class Way(Protocol):
    def carries(self, x: Array) -> bool: ...

    def echo(self, x: Array) -> Array: ...

    def close(self) -> None: ...


class PastGateways:
    """ZeroMQ, past the gateways."""

    def __init__(self, frontend: str) -> None:
        self._client = Client(frontend)

    def carries(self, x: Array) -> bool:
        return True

    def echo(self, x: Array) -> Array:
        return self._client.infer("echo", {"x": x})["x"]

    def close(self) -> None:
        self._client.close()


def _of(values: Sequence[Any], name: str, shape: Sequence[int]) -> Array:
    dtype = np.dtype(_DTYPES[name])
    return np.array(values, np.float64 if dtype.kind == "f" else dtype).astype(dtype).reshape(shape)


_DTYPES = {np_to_triton_dtype(np.dtype(code)): code for code in "?bBhHiIqQefd"}
_FIELDS = {
    "BOOL": "bool_contents", "INT8": "int_contents", "INT16": "int_contents", "INT32": "int_contents",
    "INT64": "int64_contents", "UINT8": "uint_contents", "UINT16": "uint_contents", "UINT32": "uint_contents",
    "UINT64": "uint64_contents", "FP32": "fp32_contents", "FP64": "fp64_contents",
}  # fmt: skip
"""Datatype -> its field in inference.InferTensorContents."""
_NUMBERS = {
    "FP32": 1, "FP64": 2, "INT32": 3, "UINT8": 4, "INT16": 5, "INT8": 6, "INT64": 9, "BOOL": 10, "UINT16": 17,
    "FP16": 19, "UINT32": 22, "UINT64": 23,
}  # fmt: skip
"""Datatype -> number in tensorflow.DataType."""


class Http:
    """A connection to the gateway's HTTP port."""

    def __init__(self, address: str) -> None:
        self._connection = http.client.HTTPConnection(address, timeout=20)

    def post(self, path: str, body: bytes, **headers: str) -> tuple[bytes, Any]:
        given = {name.replace("_", "-"): value for name, value in headers.items()}
        self._connection.request("POST", path, body, given)
        response = self._connection.getresponse()
        text = response.read()
        assert response.status == 200, text
        return text, response

    def close(self) -> None:
        self._connection.close()


class Json(Http):
    """The Open Inference Protocol in JSON. A NaN of JSON has neither sign nor payload."""

    def carries(self, x: Array) -> bool:
        return x.dtype.kind != "f" or not np.isnan(x).any()

    def echo(self, x: Array) -> Array:
        datatype = np_to_triton_dtype(x.dtype)
        given = {"name": "x", "datatype": datatype, "shape": x.shape, "data": x.ravel().tolist()}
        text, _ = self.post("/v2/models/echo/infer", json.dumps({"inputs": [given]}).encode())
        (output,) = json.loads(text)["outputs"]
        return _of(output["data"], output["datatype"], output["shape"])


class Binary(Http):
    """The Open Inference Protocol with binary data, made and read by tritonclient."""

    def carries(self, x: Array) -> bool:
        return True

    def echo(self, x: Array) -> Array:
        given = tritonclient.http.InferInput("x", list(x.shape), np_to_triton_dtype(x.dtype))
        given.set_data_from_numpy(x)
        client = tritonclient.http.InferenceServerClient
        body, length = client.generate_request_body([given])
        text, response = self.post("/v2/models/echo/infer", body, Inference_Header_Content_Length=str(length))
        head = response.getheader("Inference-Header-Content-Length")  # as in Triton, not there for an empty tensor
        result = client.parse_response_body(text, header_length=None if head is None else int(head))
        return result.as_numpy("x")


class Rows(Http):
    """TensorFlow Serving's REST, which guesses the datatypes of a model without a signature."""

    def carries(self, x: Array) -> bool:
        guessed = x.dtype in (np.dtype("f"), np.dtype("q"), np.dtype("?"))
        return guessed and x.size > 0 and not (x.dtype.kind == "f" and np.isnan(x).any())

    def echo(self, x: Array) -> Array:
        text, _ = self.post("/v1/models/echo:predict", json.dumps({"inputs": {"x": x.tolist()}}).encode())
        values = np.array(json.loads(text)["outputs"])
        return values.astype(x.dtype)


class Grpc:
    """A channel to the gateway's gRPC port."""

    def __init__(self, address: str) -> None:
        self._channel = grpc.insecure_channel(address)

    def call(self, path: str, request: Any, reply: Any) -> Any:
        method = self._channel.unary_unary(
            path, request_serializer=lambda message: message.SerializeToString(), response_deserializer=reply.FromString
        )
        return method(request, timeout=20)

    def close(self) -> None:
        self._channel.close()


class Raw(Grpc):
    """The Open Inference Protocol over gRPC with raw contents."""

    def carries(self, x: Array) -> bool:
        return True

    def request(self, x: Array) -> Any:
        request = service_pb2.ModelInferRequest(model_name="echo", raw_input_contents=[x.tobytes()])
        request.inputs.add(name="x", datatype=np_to_triton_dtype(x.dtype), shape=x.shape)
        return request

    def echo(self, x: Array) -> Array:
        path = "/inference.GRPCInferenceService/ModelInfer"
        reply = self.call(path, self.request(x), service_pb2.ModelInferResponse)
        (output,), (contents,) = reply.outputs, reply.raw_output_contents
        return np.frombuffer(contents, _DTYPES[output.datatype]).reshape(output.shape)


class Contents(Raw):
    """The same with typed contents in the request. There is no field for FP16, and none for a tensor without elements
    differs from no contents."""

    def carries(self, x: Array) -> bool:
        # Python's float64 between keeps every float32 but the payload of a NaN.
        return x.size > 0 and x.dtype != np.float16 and not (x.dtype.kind == "f" and np.isnan(x).any())

    def request(self, x: Array) -> Any:
        datatype = np_to_triton_dtype(x.dtype)
        request = service_pb2.ModelInferRequest(model_name="echo")
        given = request.inputs.add(name="x", datatype=datatype, shape=x.shape)
        getattr(given.contents, _FIELDS[datatype]).extend(x.ravel().tolist())
        return request


class Predict(Grpc):
    """TensorFlow Serving's gRPC with `tensor_content`."""

    def carries(self, x: Array) -> bool:
        return True

    def echo(self, x: Array) -> Array:
        request = message_class("tensorflow.serving.PredictRequest")()
        request.model_spec.name = "echo"
        given = request.inputs["x"]
        given.dtype = _NUMBERS[np_to_triton_dtype(x.dtype)]
        for extent in x.shape:
            given.tensor_shape.dim.add(size=extent)
        given.tensor_content = x.tobytes()
        reply = message_class("tensorflow.serving.PredictResponse")
        output = self.call("/tensorflow.serving.PredictionService/Predict", request, reply).outputs["x"]
        (datatype,) = (name for name, number in _NUMBERS.items() if number == output.dtype)
        shape = [dim.size for dim in output.tensor_shape.dim]
        return np.frombuffer(output.tensor_content, _DTYPES[datatype]).reshape(shape)


def ways_of_gateway(http_address: str, grpc_address: str) -> list[Way]:
    return [
        *(way(http_address) for way in (Json, Binary, Rows)),
        *(way(grpc_address) for way in (Raw, Contents, Predict)),
    ]
