"""What `model(x)` costs more than `Client.infer`, layer by layer: `python -m tests.benchmarks.model_call`.

One process calls, in turns of 50 calls: the client; the function that a region's library calls; `main` of the virtual
machine around it, with the device's own operator; and the model. Each row includes the ones above it. The tenth
percentile shows the work, the median also what else the machine does.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from tests.support import onnx_models
from tests.support.processes import eventually, running_broker, running_workers
from zmq_offload import Client, load
from zmq_offload.compile import compile_model
from zmq_offload.device.remote import RemoteModule
from zmq_offload.runtime.tvm_library import empty

_TURN = 50


def compiled(folder: Path, size: int) -> Path:
    """A device bundle that computes Abs of a tensor of so many bytes, and offloads a Relu."""
    nodes = [
        onnx_models.helper.make_node("Abs", ["x"], ["h"]),
        onnx_models.helper.make_node("Relu", ["h"], ["y"]),
    ]
    shape = {"x": (size // 4,)}, {"y": (size // 4,)}
    model = onnx_models.write(folder / f"relu{size}.onnx", nodes, *shape, {})
    output, repository = folder / str(size), folder / "repository"
    return compile_model(
        model, inputs=shape[0], cut=["h"], name=f"relu{size}", output=output, repository=repository
    ).device


def measure(calls: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """The sorted times of each call, in microseconds."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    clock = time.perf_counter
    for number in range(rounds + 1):
        for name, call in calls.items():
            for _ in range(_TURN):
                began = clock()
                call()
                if number:  # the first round is a warm-up
                    times[name].append((clock() - began) * 1e6)
    return {name: sorted(own) for name, own in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.model_call", description=(__doc__ or "").split("\n\n")[0]
    )
    parser.add_argument("--sizes", type=int, nargs="+", default=[1024, 38400], metavar="BYTES", help="multiples of 4")
    parser.add_argument("--rounds", type=int, default=100, help=f"of {_TURN} calls of each kind")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="model-call-") as name, ExitStack() as stack:
        bundles = {size: compiled(Path(name), size) for size in args.sizes}
        broker = stack.enter_context(running_broker())
        repository = str(Path(name) / "repository")
        stack.enter_context(running_workers(broker.backend, "--repository", repository, "--threads", "1"))
        client = stack.enter_context(Client(broker.frontend))
        eventually(lambda: len(client.models()) == len(bundles), 60)
        print("| bytes | call | p10 us | p50 us | p10 more than Client.infer | p50 more |")
        print("|---|---|---|---|---|---|")
        for size, bundle in bundles.items():
            model = stack.enter_context(load(bundle, broker.frontend))
            x = np.random.default_rng(0).random(size // 4, dtype=np.float32)
            assert np.array_equal(model(x), x)
            found = measure(_calls(client, model, f"relu{size}", x), args.rounds)
            low, middle = ({name: own[int(len(own) * share)] for name, own in found.items()} for share in (0.1, 0.5))
            for name in found:
                more = f"{low[name] - low['Client.infer']:.0f} | {middle[name] - middle['Client.infer']:.0f}"
                print(f"| {size:,} | {name} | {low[name]:.0f} | {middle[name]:.0f} | {more} |", flush=True)


def _calls(client: Client, model: object, name: str, x: np.ndarray) -> dict[str, Callable[[], object]]:  # type: ignore[type-arg]
    machines = model._machines  # type: ignore[attr-defined]
    (remote,) = machines._functions.values()
    assert isinstance(remote, RemoteModule)
    (machine,) = machines._free
    given, result = empty(x.shape, x.dtype), empty(x.shape, x.dtype)
    inside, *_ = machine._known
    return {
        "Client.infer": lambda: client.infer(name, {"h": x}),
        "the region's function": lambda: remote(given, result),
        "the virtual machine": lambda: machine._entry(*inside),
        "model(x)": lambda: model(x),  # type: ignore[operator]
    }


if __name__ == "__main__":
    main()
