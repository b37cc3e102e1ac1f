"""The calls, good and bad, whose answers Triton and the gateway must agree on; for the models of `signed_worker`."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

ROW = np.array([[1, 2, 3]], np.float32)
X = {"name": "x", "datatype": "FP32", "shape": [1, 3], "data": [1, 2, 3]}
RAW = ROW.tobytes()
BINARY_X = {"name": "x", "datatype": "FP32", "shape": [1, 3], "parameters": {"binary_data_size": 12}}
A = {"name": "a", "datatype": "INT32", "shape": [2], "data": [1, -2]}
B = {"name": "b", "datatype": "FP32", "shape": [1], "data": [0.5]}
INFER = "v2/models/identity/infer"
LENGTH = "Inference-Header-Content-Length"
"""Of a request with tensors in binary: the length of its JSON."""


@dataclass(frozen=True)
class HttpCall:
    """A request; `body` is JSON unless it is bytes."""

    method: str
    path: str
    body: Any = b""
    headers: Mapping[str, str] = field(default_factory=dict)

    @property
    def content(self) -> bytes:
        return self.body if isinstance(self.body, bytes) else json.dumps(self.body).encode()


def _infer(*inputs: Mapping[str, Any], path: str = INFER, **more: Any) -> HttpCall:
    return HttpCall("POST", path, {"inputs": list(inputs), **more})


def _but(tensor: Mapping[str, Any] = X, /, **changes: Any) -> dict[str, Any]:
    """A tensor with changes; None leaves a key out."""
    return {key: value for key, value in {**tensor, **changes}.items() if value is not None}


def _binary(head: Mapping[str, Any], tail: bytes = RAW, length: str | None = None, **headers: str) -> HttpCall:
    text = json.dumps(head).encode()
    return HttpCall("POST", INFER, text + tail, {LENGTH: length or str(len(text)), **headers})


def _get(paths: Mapping[str, str]) -> dict[str, HttpCall]:
    return {name: HttpCall("GET", path) for name, path in paths.items()}


_WANTED_BINARY = {"outputs": [{"name": "y", "parameters": {"binary_data": True}}]}
_LONG = _but(shape=[300, 3], data=[0] * 900)
_JSON = json.dumps({"inputs": [X]}).encode()

HTTP: dict[str, HttpCall] = {
    **_get(
        {
            "live": "v2/health/live",
            "ready": "v2/health/ready",
            "server": "v2",
            "server with a slash": "v2/",
            "root": "",
            "unknown path": "v2/nothing",
            "unknown version of the protocol": "v3/models/identity",
            "model": "v2/models/identity",
            "model version": "v2/models/identity/versions/1",
            "model, unknown": "v2/models/nobody",
            "model version, unknown": "v2/models/identity/versions/9",
            "model version, no number": "v2/models/identity/versions/first",
            "model version, too large": "v2/models/identity/versions/99999999999999999999",
            "model version, negative": "v2/models/identity/versions/-1",
            "model, escaped": "v2/models/identit%79",
            "model, unknown path below": "v2/models/identity/nothing",
            "model ready": "v2/models/identity/ready",
            "model version ready": "v2/models/identity/versions/2/ready",
            "model ready, unknown": "v2/models/nobody/ready",
            "model version ready, unknown": "v2/models/identity/versions/9/ready",
            "config": "v2/models/identity/config",
            "config of a version": "v2/models/identity/versions/1/config",
            "config, unknown": "v2/models/nobody/config",
            "config, unknown version": "v2/models/identity/versions/9/config",
            "wrong method: infer": INFER,
            "wrong method: index": "v2/repository/index",
            "wrong method: load": "v2/repository/models/identity/load",
            "trace": "v2/trace/setting",
            "trace of a model": "v2/models/identity/trace/setting",
            "logging": "v2/logging",
            "system shared memory": "v2/systemsharedmemory/status",
            "system shared memory, unknown region": "v2/systemsharedmemory/region/nothing/status",
            "CUDA shared memory": "v2/cudasharedmemory/status",
        }
    ),
    "wrong method: live": HttpCall("POST", "v2/health/live", {}),
    "wrong method: server": HttpCall("POST", "v2", {}),
    "wrong method: model": HttpCall("DELETE", "v2/models/identity"),
    "wrong method: PUT infer": HttpCall("PUT", INFER, {"inputs": [X]}),
    "wrong method: stats": HttpCall("POST", "v2/models/stats", {}),
    "index": HttpCall("POST", "v2/repository/index", {}),
    "index, no body": HttpCall("POST", "v2/repository/index"),
    "index, ready": HttpCall("POST", "v2/repository/index", {"ready": True}),
    "index, malformed": HttpCall("POST", "v2/repository/index", b"{"),
    "load": HttpCall("POST", "v2/repository/models/identity/load", {}),
    "load, unknown": HttpCall("POST", "v2/repository/models/nobody/load", {}),
    "load, malformed": HttpCall("POST", "v2/repository/models/identity/load", b"{"),
    "unload, unknown": HttpCall("POST", "v2/repository/models/nobody/unload", {}),
    "register system shared memory, no key": HttpCall("POST", "v2/systemsharedmemory/region/r/register", {}),
    "unregister system shared memory": HttpCall("POST", "v2/systemsharedmemory/unregister"),
    "unregister a system region": HttpCall("POST", "v2/systemsharedmemory/region/r/unregister"),
    "unregister CUDA shared memory": HttpCall("POST", "v2/cudasharedmemory/unregister"),
    "infer": _infer(X),
    "infer with an id": _infer(X, id="seven"),
    "infer a version": _infer(X, path="v2/models/identity/versions/1/infer"),
    "infer, requested output": _infer(X, outputs=[{"name": "y"}]),
    "infer, parameters": _infer(X, parameters={"priority": 1, "timeout": 10_000_000}),
    "infer, unknown parameter": _infer(X, parameters={"color": "red"}),
    "infer, two inputs": _infer(A, B, path="v2/models/pair/infer"),
    "infer, no rows": _infer(_but(shape=[0, 3], data=[])),
    "infer, nested data": _infer(_but(data=[[1, 2, 3]])),
    "infer, the model fails": _infer(_but(shape=[1], data=[1]), path="v2/models/fails/infer"),
    "infer, unknown model": _infer(X, path="v2/models/nobody/infer"),
    "infer, unknown version": _infer(X, path="v2/models/identity/versions/9/infer"),
    "infer, version no number": _infer(X, path="v2/models/identity/versions/first/infer"),
    "infer, wrong extent": _infer(_but(shape=[1, 4], data=[1, 2, 3, 4])),
    "infer, wrong rank": _infer(_but(shape=[3])),
    "infer, negative extent": _infer(_but(shape=[-1, 3])),
    "infer, extent no integer": _infer(_but(shape=[1.5, 3])),
    "infer, shape no list": _infer(_but(shape=3)),
    "infer, wrong datatype": _infer(_but(datatype="INT32")),
    "infer, unknown datatype": _infer(_but(datatype="FLOAT")),
    "infer, wrong name": _infer(_but(name="z")),
    "infer, missing input": _infer(A, path="v2/models/pair/infer"),
    "infer, extra input": _infer(X, _but(name="z")),
    "infer, input twice": _infer(X, X),
    "infer, unknown output": _infer(X, outputs=[{"name": "z"}]),
    "infer, no name": _infer(_but(name=None)),
    "infer, no shape": _infer(_but(shape=None)),
    "infer, no datatype": _infer(_but(datatype=None)),
    "infer, no data": _infer(_but(data=None)),
    "infer, too few values": _infer(_but(data=[1, 2])),
    "infer, too many values": _infer(_but(data=[1, 2, 3, 4])),
    "infer, text as values": _infer(_but(data=["1", "2", "3"])),
    "infer, data no list": _infer(_but(data=1)),
    "infer, no inputs": HttpCall("POST", INFER, {}),
    "infer, empty inputs": _infer(),
    "infer, inputs no list": HttpCall("POST", INFER, {"inputs": 1}),
    "infer, id no text": _infer(X, id=7),
    "infer, not an object": HttpCall("POST", INFER, []),
    "infer, malformed": HttpCall("POST", INFER, b'{"inputs": ['),
    "infer, not UTF-8": HttpCall("POST", INFER, b"\xff\xfe"),
    "infer, empty body": HttpCall("POST", INFER),
    "binary both ways": _binary({"inputs": [BINARY_X], **_WANTED_BINARY}),
    "binary in": _binary({"inputs": [BINARY_X]}),
    "binary out": _infer(X, **_WANTED_BINARY),
    "binary out by a parameter": _infer(X, parameters={"binary_data_output": True}),
    "binary, empty tensor": _binary(
        {"inputs": [_but(BINARY_X, shape=[0, 3], parameters={"binary_data_size": 0})], **_WANTED_BINARY}, b""
    ),
    "binary, raw body": HttpCall("POST", "v2/models/row/infer", RAW, {LENGTH: "0"}),
    "binary, raw body of several inputs": HttpCall("POST", "v2/models/pair/infer", RAW, {LENGTH: "0"}),
    "binary, raw body of no whole number of elements": HttpCall("POST", INFER, RAW[:-1], {LENGTH: "0"}),
    "binary, size too small": _binary({"inputs": [_but(BINARY_X, parameters={"binary_data_size": 8})]}),
    "binary, size too large": _binary({"inputs": [_but(BINARY_X, parameters={"binary_data_size": 16})]}),
    "binary, size negative": _binary({"inputs": [_but(BINARY_X, parameters={"binary_data_size": -1})]}),
    "binary, body too short": _binary({"inputs": [BINARY_X]}, RAW[:8]),
    "binary, body too long": _binary({"inputs": [BINARY_X]}, RAW + b"more"),
    "binary, data and size": _binary({"inputs": [_but(X, parameters={"binary_data_size": 12})]}),
    "binary, head beyond the body": _binary({"inputs": [BINARY_X]}, length="9999"),
    "binary, head too short": _binary({"inputs": [BINARY_X]}, length="5"),
    "binary, head negative": _binary({"inputs": [BINARY_X]}, length="-1"),
    "binary, head no number": _binary({"inputs": [BINARY_X]}, length="many"),
    "gzip": HttpCall("POST", INFER, gzip.compress(_JSON), {"Content-Encoding": "gzip"}),
    "deflate": HttpCall("POST", INFER, zlib.compress(_JSON), {"Content-Encoding": "deflate"}),
    "gzip, damaged": HttpCall("POST", INFER, b"\x1f\x8bnot gzip", {"Content-Encoding": "gzip"}),
    "unknown content coding": HttpCall("POST", INFER, _JSON, {"Content-Encoding": "br"}),
    "gzip answer": HttpCall("POST", INFER, {"inputs": [_LONG]}, {"Accept-Encoding": "gzip"}),
    "deflate answer": HttpCall("POST", INFER, {"inputs": [_LONG]}, {"Accept-Encoding": "deflate"}),
    "gzip answer of a few bytes": HttpCall("POST", INFER, {"inputs": [X]}, {"Accept-Encoding": "gzip"}),
    # Last: the statistics of what was asked before.
    **_get({
            "stats": "v2/models/identity/stats",
            "stats of a version": "v2/models/identity/versions/1/stats",
            "stats of all": "v2/models/stats",
            "stats, unknown": "v2/models/nobody/stats",
            "stats, unknown version": "v2/models/identity/versions/9/stats",
    }),
}  # fmt: skip
"""Requests to the HTTP port, by what they are."""


def _request(**changes: Any) -> dict[str, Any]:
    given = {"name": "x", "datatype": "FP32", "shape": [1, 3]}
    whole = {"model_name": "identity", "inputs": [given], "raw_input_contents": [RAW], **changes}
    return {key: value for key, value in whole.items() if value is not None}


def _x(**changes: Any) -> list[dict[str, Any]]:
    return [{"name": "x", "datatype": "FP32", "shape": [1, 3], **changes}]


_NOBODY, _NINTH = {"name": "nobody"}, {"name": "identity", "version": "9"}

GRPC: dict[str, tuple[str, dict[str, Any]]] = {
    "live": ("ServerLive", {}),
    "ready": ("ServerReady", {}),
    "server": ("ServerMetadata", {}),
    "model ready": ("ModelReady", {"name": "identity"}),
    "model ready, version": ("ModelReady", {"name": "identity", "version": "2"}),
    "model ready, unknown": ("ModelReady", _NOBODY),
    "model ready, unknown version": ("ModelReady", _NINTH),
    "model ready, version no number": ("ModelReady", {"name": "identity", "version": "first"}),
    "model ready, no name": ("ModelReady", {}),
    "model": ("ModelMetadata", {"name": "identity"}),
    "model, unknown": ("ModelMetadata", _NOBODY),
    "model, unknown version": ("ModelMetadata", _NINTH),
    "model, no name": ("ModelMetadata", {}),
    "config": ("ModelConfig", {"name": "identity"}),
    "config, unknown": ("ModelConfig", _NOBODY),
    "config, unknown version": ("ModelConfig", _NINTH),
    "stats": ("ModelStatistics", {"name": "identity"}),
    "stats of all": ("ModelStatistics", {}),
    "stats, unknown": ("ModelStatistics", _NOBODY),
    "stats, unknown version": ("ModelStatistics", _NINTH),
    "index": ("RepositoryIndex", {}),
    "index, ready": ("RepositoryIndex", {"ready": True}),
    "load": ("RepositoryModelLoad", {"model_name": "identity"}),
    "load, unknown": ("RepositoryModelLoad", {"model_name": "nobody"}),
    "unload, unknown": ("RepositoryModelUnload", {"model_name": "nobody"}),
    "trace": ("TraceSetting", {}),
    "logging": ("LogSettings", {}),
    "system shared memory": ("SystemSharedMemoryStatus", {}),
    "system shared memory, unknown region": ("SystemSharedMemoryStatus", {"name": "nothing"}),
    "register system shared memory, no key": ("SystemSharedMemoryRegister", {"name": "r"}),
    "unregister system shared memory": ("SystemSharedMemoryUnregister", {}),
    "unregister a system region": ("SystemSharedMemoryUnregister", {"name": "r"}),
    "CUDA shared memory": ("CudaSharedMemoryStatus", {}),
    "unregister CUDA shared memory": ("CudaSharedMemoryUnregister", {}),
    "infer": ("ModelInfer", _request()),
    "infer with an id": ("ModelInfer", _request(id="seven")),
    "infer a version": ("ModelInfer", _request(model_version="1")),
    "infer, requested output": ("ModelInfer", _request(outputs=[{"name": "y"}])),
    "infer, contents": (
        "ModelInfer",
        _request(inputs=_x(contents={"fp32_contents": [1, 2, 3]}), raw_input_contents=None),
    ),
    "infer, priority": ("ModelInfer", _request(parameters={"priority": {"uint64_param": 1}})),
    "infer, timeout": ("ModelInfer", _request(parameters={"timeout": {"int64_param": 10_000_000}})),
    "infer, unknown parameter": ("ModelInfer", _request(parameters={"color": {"string_param": "red"}})),
    "infer, no rows": ("ModelInfer", _request(inputs=_x(shape=[0, 3]), raw_input_contents=[b""])),
    "infer, the model fails": (
        "ModelInfer",
        _request(model_name="fails", inputs=_x(shape=[1]), raw_input_contents=[RAW[:4]]),
    ),
    "infer, unknown model": ("ModelInfer", _request(model_name="nobody")),
    "infer, no model": ("ModelInfer", _request(model_name=None)),
    "infer, unknown version": ("ModelInfer", _request(model_version="9")),
    "infer, version no number": ("ModelInfer", _request(model_version="first")),
    "infer, wrong extent": ("ModelInfer", _request(inputs=_x(shape=[1, 4]), raw_input_contents=[RAW + RAW[:4]])),
    "infer, wrong rank": ("ModelInfer", _request(inputs=_x(shape=[3]))),
    "infer, negative extent": ("ModelInfer", _request(inputs=_x(shape=[-1, 3]))),
    "infer, wrong datatype": ("ModelInfer", _request(inputs=_x(datatype="INT32"))),
    "infer, unknown datatype": ("ModelInfer", _request(inputs=_x(datatype="FLOAT"))),
    "infer, wrong name": ("ModelInfer", _request(inputs=_x(name="z"))),
    "infer, missing input": (
        "ModelInfer",
        _request(model_name="pair", inputs=_x(name="a", datatype="INT32", shape=[2]), raw_input_contents=[RAW[:8]]),
    ),
    "infer, no inputs": ("ModelInfer", _request(inputs=None, raw_input_contents=None)),
    "infer, input twice": ("ModelInfer", _request(inputs=_x() + _x(), raw_input_contents=[RAW, RAW])),
    "infer, unknown output": ("ModelInfer", _request(outputs=[{"name": "z"}])),
    "infer, bytes too few": ("ModelInfer", _request(raw_input_contents=[RAW[:8]])),
    "infer, bytes too many": ("ModelInfer", _request(raw_input_contents=[RAW + RAW])),
    "infer, too few raw contents": ("ModelInfer", _request(raw_input_contents=None)),
    "infer, too many raw contents": ("ModelInfer", _request(raw_input_contents=[RAW, RAW])),
    "infer, raw and contents": ("ModelInfer", _request(inputs=_x(contents={"fp32_contents": [1, 2, 3]}))),
    "infer, too few contents": (
        "ModelInfer",
        _request(inputs=_x(contents={"fp32_contents": [1, 2]}), raw_input_contents=None),
    ),
    "infer, contents of another datatype": (
        "ModelInfer",
        _request(inputs=_x(contents={"int_contents": [1, 2, 3]}), raw_input_contents=None),
    ),
}  # fmt: skip
"""Unary calls of inference.GRPCInferenceService: the method and the fields of its request."""

STREAM: dict[str, list[dict[str, Any]]] = {
    "nothing": [],
    "three": [_request(id=str(number)) for number in range(3)],
    "an error between": [_request(id="0"), _request(id="1", model_name="nobody"), _request(id="2")],
    "errors only": [_request(id="0", outputs=[{"name": "z"}]), _request(id="1", raw_input_contents=[RAW[:8]])],
}
"""Requests of one ModelStreamInfer."""
