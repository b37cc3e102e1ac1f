"""The client of one peer, in a process of its own: `python peer_client.py KIND ARGUMENT...`.

It reads a size in bytes and a time in seconds per line, makes round trips for that time, and prints their durations. It
runs in the peer's own environment, so it needs only NumPy and the client of that peer.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

Infer = Any  # of an array; returns one of the same shape


def bare(endpoint: str) -> Infer:
    from tests.benchmarks.bare import BareClient

    client = BareClient(endpoint)
    return lambda x: np.frombuffer(client(x.data.cast("B")), x.dtype)


def fabric(endpoint: str, model: str) -> Infer:
    from zmq_offload import Client

    client = Client(endpoint, timeout=60)

    def infer(x: Any) -> Any:
        name = model.format(x.nbytes)
        (result,) = client.infer(name, {"h": x}).values()
        return result

    return infer


def compiled(endpoint: str, bundles: str) -> Infer:
    """The device model of a split, which calls the region: the cost of `model(x)`."""
    import zmq_offload

    models: dict[int, Any] = {}

    def infer(x: Any) -> Any:
        if x.nbytes not in models:
            models[x.nbytes] = zmq_offload.load(Path(bundles) / str(x.nbytes) / "device", broker=endpoint)
        return models[x.nbytes](x)

    return infer


def tvm_rpc(port: str, libraries: str) -> Infer:
    import tvm
    from tvm import rpc

    remote = rpc.connect("127.0.0.1", int(port))
    device = remote.cpu()
    loaded: dict[int, Any] = {}

    def infer(x: Any) -> Any:
        if x.nbytes not in loaded:
            file = Path(libraries) / f"relu{x.nbytes}.so"
            remote.upload(str(file))
            run = remote.load_module(file.name)["main"]
            loaded[x.nbytes] = run, tvm.runtime.empty(x.shape, "float32", device)
            loaded[x.nbytes] += (tvm.runtime.empty(x.shape, "float32", device),)
        run, there, result = loaded[x.nbytes]
        there.copyfrom(x)
        run(there, result)
        return result.numpy()

    return infer


def triton(protocol: str, url: str) -> Infer:
    if protocol == "grpc":
        import tritonclient.grpc as client_of
    else:
        import tritonclient.http as client_of
    client = client_of.InferenceServerClient(url)

    def infer(x: Any) -> Any:
        given = client_of.InferInput("x", list(x.shape), "FP32")
        given.set_data_from_numpy(x)
        return client.infer("echo", [given]).as_numpy("y")

    return infer


def mosec(port: str) -> Infer:
    import http.client

    connection = http.client.HTTPConnection("127.0.0.1", int(port))

    def infer(x: Any) -> Any:
        connection.request("POST", "/inference", x.tobytes())
        return np.frombuffer(connection.getresponse().read(), x.dtype)

    return infer


KINDS = {f.__name__: f for f in (bare, fabric, compiled, tvm_rpc, triton, mosec)}


def main() -> None:
    infer = KINDS[sys.argv[1]](*sys.argv[2:])
    print("ready", flush=True)
    clock = time.perf_counter
    for line in sys.stdin:
        size, seconds = json.loads(line)
        x = np.random.default_rng(0).random(size // 4, dtype=np.float32)
        # Inputs are positive, so that a ReLU returns them unchanged.
        assert np.array_equal(infer(x), x), f"{sys.argv[1]} returned something else"
        times = []
        end = clock() + seconds
        while not times or clock() < end:
            start = clock()
            infer(x)
            times.append(clock() - start)
        print(json.dumps(times), flush=True)


if __name__ == "__main__":
    main()
