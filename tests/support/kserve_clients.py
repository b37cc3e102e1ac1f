"""`python kserve_clients.py HTTP GRPC`, each HOST:PORT, in an environment with kserve and open-inference-openapi.

Calls every public method of their clients and prints, as JSON, what came of each: true, or the error. It imports
nothing of this project, since that is not installed there.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import sys
from collections.abc import Awaitable, Callable
from typing import Any

import numpy as np

X = np.arange(6, dtype=np.float32).reshape(2, 3)


def request(**named: Any) -> Any:
    from kserve import InferInput, InferRequest

    given = InferInput("x", list(X.shape), "FP32")
    given.set_data_from_numpy(X, binary_data=named.pop("binary_data", True))
    return InferRequest(model_name="identity", infer_inputs=[given], request_id="seven", **named)


def same(answer: Any) -> bool:
    return bool(np.array_equal(answer.outputs[0].as_numpy(), X) and answer.id == "seven")


async def rest(url: str) -> dict[str, Callable[[], Awaitable[Any]]]:
    from kserve import InferenceRESTClient, RESTConfig
    from kserve.protocol.infer_type import RequestedOutput

    client = InferenceRESTClient(RESTConfig(protocol="v2", retries=0))

    async def infer() -> bool:
        """The protocol v2 in JSON and in binary, both ways; then v1, which is TensorFlow Serving's."""
        wanted = [RequestedOutput("y", {"binary_data": True})]
        for made in (request(binary_data=False), request(), request(request_outputs=wanted)):
            assert same(await client.infer(url, made, model_name="identity"))
        first = InferenceRESTClient(RESTConfig(protocol="v1", retries=0))
        answer = await first.infer(url, {"instances": X.tolist()}, model_name="identity")
        await first.close()
        return bool(answer["predictions"] == X.tolist())

    async def close() -> bool:
        await InferenceRESTClient(RESTConfig(protocol="v2")).close()
        return True

    async def explain() -> Any:
        return await client.explain(url, "identity", {"instances": X.tolist()})

    return {
        "infer": infer,
        "explain": explain,
        "is_server_live": lambda: client.is_server_live(url),
        "is_server_ready": lambda: client.is_server_ready(url),
        "is_model_ready": lambda: client.is_model_ready(url, "identity"),
        "close": close,
    }


async def grpc(url: str) -> dict[str, Callable[[], Awaitable[Any]]]:
    from kserve import InferenceGRPCClient

    client = InferenceGRPCClient(url, retries=0)

    async def infer() -> bool:
        return all([same(await client.infer(request(binary_data=binary))) for binary in (True, False)])

    async def close() -> bool:
        await InferenceGRPCClient(url).close()
        return True

    return {
        "infer": infer,
        "is_server_live": client.is_server_live,
        "is_server_ready": client.is_server_ready,
        "is_model_ready": lambda: client.is_model_ready("identity"),
        "close": close,
    }


async def open_inference(url: str) -> dict[str, Callable[[], Awaitable[Any]]]:
    from open_inference.openapi.client import OpenInferenceClient
    from open_inference.openapi.types import InferenceRequest, RequestInput, TensorData

    client = OpenInferenceClient(base_url=url)
    data = TensorData.parse_obj(X.ravel().tolist())
    given = RequestInput(name="x", shape=list(X.shape), datatype="FP32", data=data)
    made = InferenceRequest(id="seven", inputs=[given])

    def is_same(answer: Any) -> bool:
        return bool(answer.id == "seven" and list(answer.outputs[0].data.__root__) == X.ravel().tolist())

    def soon(call: Callable[[], Any]) -> Callable[[], Awaitable[Any]]:
        async def run() -> Any:
            return call()

        return run

    return {
        "check_server_liveness": soon(lambda: client.check_server_liveness() is None),
        "check_server_readiness": soon(lambda: client.check_server_readiness() is None),
        "check_model_readiness": soon(lambda: client.check_model_readiness("identity") is None),
        "check_model_version_readiness": soon(lambda: client.check_model_version_readiness("identity", "2") is None),
        "model_infer": soon(lambda: is_same(client.model_infer("identity", request=made))),
        "model_version_infer": soon(lambda: is_same(client.model_version_infer("identity", "1", request=made))),
        "read_model_metadata": soon(lambda: client.read_model_metadata("identity").name == "identity"),
        "read_model_version_metadata": soon(
            lambda: client.read_model_version_metadata("identity", "1").name == "identity"
        ),
        "read_server_metadata": soon(lambda: bool(client.read_server_metadata().extensions)),
    }


def methods(client: type) -> set[str]:
    return {name for name, _ in inspect.getmembers(client, callable) if not name.startswith("_")}


async def outcome(call: Callable[[], Awaitable[Any]]) -> Any:
    try:
        return await call()
    except Exception as error:
        return f"{type(error).__name__}: {error}"


async def main() -> None:
    import kserve
    from open_inference.openapi.client import OpenInferenceClient

    http_address, grpc_address = sys.argv[1:]
    url = f"http://{http_address}"
    clients = {
        "InferenceRESTClient": (kserve.InferenceRESTClient, await rest(url)),
        "InferenceGRPCClient": (kserve.InferenceGRPCClient, await grpc(grpc_address)),
        "OpenInferenceClient": (OpenInferenceClient, await open_inference(url)),
    }
    results: dict[str, Any] = {}
    for name, (client, calls) in clients.items():
        for method in sorted(methods(client) | set(calls)):
            results[f"{name}.{method}"] = await outcome(calls[method])
    print(json.dumps(results))


if __name__ == "__main__":
    asyncio.run(main())
