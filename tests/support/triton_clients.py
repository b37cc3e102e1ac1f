"""Every public method of the four clients in `tritonclient`, called as a user calls it.

`CALLS` has a function for each method. It takes a `Session`, and returns True if the method did what it is for; for
what the gateway does not have, it returns the error.
"""

from __future__ import annotations

import asyncio
import inspect
import queue
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import numpy as np
import tritonclient.grpc
import tritonclient.grpc.aio
import tritonclient.http
import tritonclient.http.aio
from tritonclient.utils import InferenceServerException, shared_memory

KINDS: dict[str, ModuleType] = {
    "http": tritonclient.http,
    "http.aio": tritonclient.http.aio,
    "grpc": tritonclient.grpc,
    "grpc.aio": tritonclient.grpc.aio,
}
X = np.arange(6, dtype=np.float32).reshape(2, 3)
A, B = np.array([7, -7], np.int32), np.array([0.5], np.float32)


def methods(kind: str) -> set[str]:
    """The public methods of a client."""
    members = inspect.getmembers(KINDS[kind].InferenceServerClient, callable)
    return {name for name, _ in members if not name.startswith("_")}


class Session:
    """A client whose coroutines are run to their end, so that one call serves all four."""

    def __init__(self, kind: str, url: str) -> None:
        self.kind = kind
        self.module = KINDS[kind]
        self._loop = asyncio.new_event_loop()
        self.url = url
        self.client = self.run(self._connect())

    async def _connect(self) -> Any:
        return self.module.InferenceServerClient(self.url)  # in the loop, where the asynchronous ones belong

    def run(self, made: Any) -> Any:
        return self._loop.run_until_complete(made) if inspect.isawaitable(made) else made

    def __getattr__(self, name: str) -> Callable[..., Any]:
        return lambda *given, **named: self.run(getattr(self.client, name)(*given, **named))

    def close(self) -> None:
        self.run(self.client.close())
        self._loop.run_until_complete(asyncio.sleep(0))  # aiohttp closes its connections in the next turn
        self._loop.close()

    @property
    def over_http(self) -> bool:
        return self.kind.startswith("http")

    def plain(self, answer: Any) -> Any:
        """An answer of either protocol as JSON would have it."""
        if self.over_http:
            return answer
        from google.protobuf.json_format import MessageToDict

        return MessageToDict(answer, preserving_proto_field_name=True)

    def input(self, name: str = "x", value: Any = X, datatype: str = "FP32", **how: bool) -> Any:
        given = self.module.InferInput(name, list(value.shape), datatype)
        given.set_data_from_numpy(value, **how)
        return given


@contextmanager
def session(kind: str, url: str) -> Iterator[Session]:
    made = Session(kind, url)
    try:
        yield made
    finally:
        made.close()


def same(result: Any, name: str = "y") -> bool:
    value = result.as_numpy(name)
    return bool(value.dtype == X.dtype and np.array_equal(value, X))


def infer(s: Session) -> bool:
    """With and without version, id, outputs, compression, binary data."""
    inputs = [s.input()]
    wanted = [s.module.InferRequestedOutput("y")]
    first = s.infer("identity", inputs, request_id="seven")
    assert same(first) and s.plain(first.get_response())["id"] == "seven"
    of_version = s.infer("identity", inputs, model_version="1", outputs=wanted, priority=1, timeout=10_000_000)
    assert s.plain(of_version.get_response())["model_version"] == "1" and same(of_version)
    for algorithm in ("gzip", "deflate"):
        if s.over_http:
            packed = {"request_compression_algorithm": algorithm, "response_compression_algorithm": algorithm}
        else:
            packed = {"compression_algorithm": algorithm}
        assert same(s.infer("identity", inputs, **packed))
    if s.over_http:
        in_json = [s.module.InferRequestedOutput("y", binary_data=False)]
        assert same(s.infer("identity", [s.input(binary_data=False)], outputs=in_json))
    return True


def async_infer(s: Session) -> bool:
    if s.over_http:
        return same(s.client.async_infer("identity", [s.input()]).get_result())
    answers: queue.SimpleQueue[Any] = queue.SimpleQueue()
    s.client.async_infer("identity", [s.input()], lambda result, error: answers.put(error or result))
    return same(answers.get(timeout=20))


def stream(s: Session) -> bool:
    """Ten requests in a stream of the synchronous client, one of which fails."""
    answers: queue.SimpleQueue[Any] = queue.SimpleQueue()
    s.client.start_stream(lambda result, error: answers.put(error or result))
    for number in range(10):
        s.client.async_stream_infer("nobody" if number == 5 else "identity", [s.input()], request_id=str(number))
    got = [answers.get(timeout=20) for _ in range(10)]
    s.client.stop_stream()
    failed = [answer for answer in got if isinstance(answer, InferenceServerException)]
    results = [answer for answer in got if answer not in failed]
    ids = sorted(result.get_response().id for result in results)
    return len(failed) == 1 and all(map(same, results)) and ids == [str(n) for n in range(10) if n != 5]


def stream_infer(s: Session) -> bool:
    """The same in a stream of the asynchronous client."""

    async def requests() -> Any:
        for number in range(10):
            name = "nobody" if number == 5 else "identity"
            yield {"model_name": name, "inputs": [s.input()], "request_id": str(number)}

    async def collect() -> list[tuple[Any, Any]]:
        return [pair async for pair in s.client.stream_infer(requests())]

    got = s.run(collect())
    results = [result for result, error in got if error is None]
    return len(got) == 10 and len(results) == 9 and all(map(same, results))


def offline_body(s: Session) -> bool:
    """`generate_request_body` and `parse_response_body`: what a user sends with a client of his own."""
    import urllib.request

    body, length = s.module.InferenceServerClient.generate_request_body([s.input()])
    headers = {"Inference-Header-Content-Length": str(length)} if length else {}
    request = urllib.request.Request(f"http://{s.url}/v2/models/identity/infer", body, headers)
    with urllib.request.urlopen(request, timeout=20) as response:
        length = response.headers.get("Inference-Header-Content-Length")
        return same(
            s.module.InferenceServerClient.parse_response_body(
                response.read(), header_length=None if length is None else int(length)
            )
        )


def model_control(s: Session) -> bool:
    """Unload a model, find it not ready, and load it again."""
    s.unload_model("pair")
    gone = s.is_model_ready("pair")
    s.load_model("pair")
    return not gone and bool(s.is_model_ready("pair"))


def regions_of(s: Session) -> set[str]:
    """The names of the registered regions."""
    listed = s.plain(s.get_system_shared_memory_status())
    return {region["name"] for region in listed} if s.over_http else set(listed.get("regions", ()))


def system_shared_memory(s: Session) -> bool:
    """Register regions, infer from one into the other, also beside an output in the response, and unregister them."""
    place = s.kind.replace(".", "-")
    create = shared_memory.create_shared_memory_region
    regions = {name: create(name, f"/zmq-offload-{place}-{name}", X.nbytes) for name in ("in", "out")}
    try:
        shared_memory.set_shared_memory_region(regions["in"], [X])
        for name in regions:
            s.register_system_shared_memory(f"{place}-{name}", f"/zmq-offload-{place}-{name}", X.nbytes)
        names = regions_of(s)
        given = s.module.InferInput("x", list(X.shape), "FP32")
        given.set_shared_memory(f"{place}-in", X.nbytes)
        wanted = s.module.InferRequestedOutput("y")
        wanted.set_shared_memory(f"{place}-out", X.nbytes)
        s.infer("identity", [given], outputs=[wanted])
        value = shared_memory.get_contents_as_numpy(regions["out"], np.float32, [2, 3])
        arrived = bool(np.array_equal(value, X))
        del value
        pair = [s.input("a", A, "INT32"), s.input("b", B)]
        placed, plain = s.module.InferRequestedOutput("c"), s.module.InferRequestedOutput("d")
        placed.set_shared_memory(f"{place}-out", A.nbytes)
        assert np.array_equal(s.infer("pair", pair, outputs=[placed, plain]).as_numpy("d"), B)
        for name in regions:
            s.unregister_system_shared_memory(f"{place}-{name}")
        assert not names & regions_of(s)
        return arrived and names >= {f"{place}-in", f"{place}-out"}
    finally:
        for region in regions.values():
            shared_memory.destroy_shared_memory_region(region)


def plugin(s: Session) -> bool:
    """A plugin adds a header to each call. It works in the client alone."""
    from tritonclient._plugin import InferenceServerClientPlugin

    class Header(InferenceServerClientPlugin):  # type: ignore[misc]
        def __call__(self, request: Any) -> None:
            request.headers["x-plugin"] = "yes"

    made = Header()
    s.client.register_plugin(made)
    try:
        return s.client.plugin() is made and bool(s.is_server_live())
    finally:
        s.client.unregister_plugin()


def closes(s: Session) -> bool:
    with session(s.kind, s.url) as other:
        return bool(other.is_server_live())


def metadata(s: Session) -> bool:
    described = s.plain(s.get_model_metadata("identity"))
    (given,) = described["inputs"]
    return (
        described["versions"] == ["1", "2"] and given["datatype"] == "FP32" and [*map(int, given["shape"])] == [-1, 3]
    )


def config(s: Session) -> bool:
    described = s.plain(s.get_model_config("identity", "1"))
    described = described if s.over_http else described["config"]
    (given,) = described["input"]
    return described["name"] == "identity" and given["data_type"] == "TYPE_FP32"


def statistics(s: Session) -> bool:
    s.infer("identity", [s.input()])
    (own,) = s.plain(s.get_inference_statistics("identity", "2"))["model_stats"]
    everything = s.plain(s.get_inference_statistics())["model_stats"]
    return int(own["inference_stats"]["success"]["count"]) > 0 and len(everything) > 1


def index(s: Session) -> bool:
    answer = s.plain(s.get_model_repository_index())
    entries = answer if s.over_http else answer["models"]
    wanted = {"name": "identity", "version": "2", "state": "READY"}
    return any(wanted.items() <= entry.items() for entry in entries)


def trace(s: Session) -> bool:
    """Tracing is off."""
    settings = s.plain(s.get_trace_settings())
    level = settings["trace_level"] if s.over_http else settings["settings"]["trace_level"]["value"]
    return bool(level == ["OFF"])


def refused(name: str, *given: Any, **named: Any) -> Callable[[Session], Any]:
    """A call of what the gateway does not have."""

    def call(s: Session) -> Any:
        try:
            getattr(s, name)(*given, **named)
        except InferenceServerException as error:
            return error
        return True

    return call


CALLS: dict[str, Callable[[Session], Any]] = {
    "async_infer": async_infer,
    "async_stream_infer": stream,
    "close": closes,
    "generate_request_body": offline_body,
    "get_cuda_shared_memory_status": lambda s: not s.plain(s.get_cuda_shared_memory_status()),
    "get_inference_statistics": statistics,
    "get_log_settings": refused("get_log_settings"),
    "get_model_config": config,
    "get_model_metadata": metadata,
    "get_model_repository_index": index,
    "get_server_metadata": lambda s: "version" in s.plain(s.get_server_metadata()),
    "get_system_shared_memory_status": system_shared_memory,
    "get_trace_settings": trace,
    "infer": infer,
    "is_model_ready": lambda s: s.is_model_ready("identity") and not s.is_model_ready("identity", "9"),
    "is_server_live": lambda s: s.is_server_live(),
    "is_server_ready": lambda s: s.is_server_ready(),
    "load_model": model_control,
    "parse_response_body": offline_body,
    "plugin": plugin,
    "register_cuda_shared_memory": refused("register_cuda_shared_memory", "r", b"", 0, 1),
    "register_plugin": plugin,
    "register_system_shared_memory": system_shared_memory,
    "start_stream": stream,
    "stop_stream": stream,
    "stream_infer": stream_infer,
    "unload_model": model_control,
    "unregister_cuda_shared_memory": lambda s: s.unregister_cuda_shared_memory() is None,
    "unregister_plugin": plugin,
    "unregister_system_shared_memory": system_shared_memory,
    "update_log_settings": refused("update_log_settings", {"log_verbose_level": 1}),
    "update_trace_settings": refused("update_trace_settings", settings={"trace_rate": "1"}),
}
"""A call for each method that any of the four has."""

NOT_HERE = {
    "get_log_settings",
    "register_cuda_shared_memory",
    "update_log_settings",
    "update_trace_settings",
}
"""Methods for what the gateway does not have."""
