"""What a call costs a device over each transport: `python -m tests.benchmarks.transport_calls`.

CPU time of the client's process for one call after the other of a gateway on the same machine, which returns the FP32
tensor that it gets; in turns, with Triton's client beside ours. Prints a table.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager

import numpy as np
import tritonclient.grpc
import tritonclient.http

from tests.benchmarks.gateway_client import MODEL
from tests.support.processes import running_gateway_with_broker, signed_workers, wait_for_workers
from zmq_offload.protocol.payload import Array
from zmq_offload.transports.client import connect

SIZES = (12, 1 << 20)
SECONDS = 0.5

Call = Callable[[Array], Array]


@contextmanager
def calls() -> Iterator[Mapping[str, Call]]:
    """A function for each way to call the model, by the way's name."""
    with ExitStack() as stack:
        gateway, fabric = stack.enter_context(running_gateway_with_broker())
        stack.enter_context(signed_workers(fabric.backend))
        wait_for_workers(fabric.frontend, 1)
        urls = {
            "tcp://": fabric.frontend,
            "http://": f"http://{gateway.http}",
            "grpc://": f"grpc://{gateway.grpc}",
            "tfs+http://": f"tfs+http://{gateway.http}",
            "tfs+grpc://": f"tfs+grpc://{gateway.grpc}",
        }
        found: dict[str, Call] = {}
        for name, url in urls.items():
            client = stack.enter_context(connect(url))
            found[name] = lambda x, client=client: client.infer(MODEL, {"x": x})["y"]  # type: ignore[misc]
        found["tritonclient, HTTP"] = _tritons(stack, tritonclient.http, gateway.http)
        found["tritonclient, gRPC"] = _tritons(stack, tritonclient.grpc, gateway.grpc)
        yield found


def _tritons(stack: ExitStack, module: object, address: str) -> Call:
    client = stack.enter_context(module.InferenceServerClient(address))  # type: ignore[attr-defined]

    def call(x: Array) -> Array:
        given = module.InferInput("x", x.shape, "FP32")  # type: ignore[attr-defined]
        given.set_data_from_numpy(x)
        found: Array = client.infer(MODEL, [given]).as_numpy("y")
        return found

    return call


def cost(call: Call, x: Array) -> float:
    """Seconds of CPU time of a call."""
    end, count, before = time.perf_counter() + SECONDS, 0, time.process_time()
    while time.perf_counter() < end:
        call(x)
        count += 1
    return (time.process_time() - before) / count


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.transport_calls", description=(__doc__ or "").split("\n\n")[0]
    )
    parser.add_argument("--rounds", type=int, default=7, metavar="N")
    args = parser.parse_args()
    inputs = [np.random.default_rng(size).standard_normal((1, size // 4), np.float32) for size in SIZES]
    with calls() as ways:
        costs: dict[tuple[str, int], list[float]] = {}
        for x in inputs:
            for name, call in ways.items():
                np.testing.assert_array_equal(call(x), x, name)
            for _ in range(args.rounds):
                for name, call in ways.items():
                    costs.setdefault((name, x.nbytes), []).append(cost(call, x))
    print("| |", " | ".join(f"{size:,} bytes each way" for size in SIZES), "|\n|---|" + "---|" * len(SIZES))
    for name in ways:
        print(
            f"| {name} |", " | ".join(f"{statistics.median(costs[name, x.nbytes]) * 1e3:.2f} ms" for x in inputs), "|"
        )


if __name__ == "__main__":
    main()
