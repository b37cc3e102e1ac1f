"""Measures how much of the slowest stage's rate a pipeline reaches: `python -m tests.benchmarks.pipeline`.

A stack of convolutions is cut at a tensor of shape (1,16,40,30). The device's process and the worker have a core and a
thread each. Measured alone are the device stage (with a client that replies at once), the server stage (with requests
that always wait), and the wire (the bytes at the bandwidth of the link). Then everything runs one by one and pipelined,
over loopback and over the emulated link. The exit code is 1 if a pipeline is below `--bar` of its slowest stage.
"""

from __future__ import annotations

import argparse
import itertools
import os
import sys
import tempfile
import time
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, nullcontext
from pathlib import Path
from typing import Any

os.environ["TVM_NUM_THREADS"] = "1"

import numpy as np
from onnx import helper

import zmq_offload
from tests.benchmarks.fabric import until_served
from tests.support import onnx_models
from tests.support.processes import running_broker, running_workers, worker_pids
from zmq_offload import Client
from zmq_offload.common.units import bandwidth
from zmq_offload.compile import Compiled, compile_model
from zmq_offload.testing.link import Link

SHAPE = (1, 32, 40, 30)
WIDTH = 128


def network(path: Path, device: int, server: int) -> Path:
    """x -> `device` convolutions -> features (1,16,40,30) -> `server` convolutions -> y (1,8,1,1)."""
    nodes, weights, tensor, channels = [], {}, "x", SHAPE[1]
    widths = [WIDTH] * device + [16] + [WIDTH] * server + [8]
    for at, width in enumerate(widths):
        out = "features" if at == device else f"t{at}"
        weights[f"w{at}"] = onnx_models.random(width, channels, 3, 3, seed=at) / 20
        nodes.append(helper.make_node("Conv", [tensor, f"w{at}"], [f"c{at}"], pads=[1, 1, 1, 1]))
        nodes.append(helper.make_node("Relu", [f"c{at}"], [out]))
        tensor, channels = out, width
    nodes.append(helper.make_node("GlobalAveragePool", [tensor], ["y"]))
    return onnx_models.write(path, nodes, {"x": SHAPE}, {"y": (1, 8, 1, 1)}, weights)


class Instant:
    """A client that replies at once without computing."""

    def infer(self, _model: str, _inputs: Any, *, outputs: Mapping[str, Any], **_: Any) -> Mapping[str, Any]:
        return outputs


def rate(results: Iterator[Any], seconds: float, warm: int = 10) -> float:
    """Results per second."""
    for _ in range(warm):
        next(results)
    done, began = 0, time.perf_counter()
    while time.perf_counter() < began + seconds:
        next(results)
        done += 1
    return done / (time.perf_counter() - began)


def saturated(client: Client, x: Any) -> Iterator[Any]:
    """Replies of a worker that always has a request."""
    waiting = deque(client.submit("net", {"features": x}) for _ in range(8))
    while True:
        yield waiting.popleft().result()
        waiting.append(client.submit("net", {"features": x}))


def bind(pid: int, cores: set[int]) -> None:
    """All threads of a process."""
    for thread in os.listdir(f"/proc/{pid}/task"):
        os.sched_setaffinity(int(thread), cores)


def case(
    compiled: Compiled, others: set[int], link: dict[str, str], depth: int, seconds: float
) -> tuple[dict[str, float], float, float]:
    """The rates of the stages, one by one, and pipelined. Broker and link run on the cores `others`."""
    stages: dict[str, float] = {}
    repository = str(compiled.device.parent / "repository")
    x, features = onnx_models.random(*SHAPE, seed=7), np.zeros((1, 16, 40, 30), np.float32)
    with ExitStack() as stack:
        fabric = stack.enter_context(running_broker())
        stack.enter_context(running_workers(fabric.backend, "--repository", repository, "--threads", "1"))
        path = stack.enter_context(Link(fabric.frontend, **link) if link else nullcontext(fabric))  # type: ignore
        with Client(fabric.frontend) as client:
            until_served(client, "net")
            for pid in worker_pids(fabric.frontend):
                bind(pid, {1})
            for pid in (fabric.broker.popen.pid, *([path._process.pid] if isinstance(path, Link) else ())):
                bind(pid, others)
            stack.callback(os.sched_setaffinity, 0, os.sched_getaffinity(0))
            os.sched_setaffinity(0, {0})
            stages["server"] = rate(saturated(client, features), seconds)
        with zmq_offload.load(compiled.device, client=Instant()) as model:
            stages["device"] = rate((model(x) for _ in itertools.count()), seconds)
        if "bandwidth" in link:
            stages["wire"] = bandwidth(link["bandwidth"]) / 8 / features.nbytes
        with zmq_offload.load(compiled.device, broker=path.endpoint if link else fabric.frontend) as model:
            alone = rate((model(x) for _ in itertools.count()), seconds)
            pipelined = rate(model.map(itertools.repeat(x), depth=depth), seconds)
    return stages, alone, pipelined


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.pipeline", description=__doc__)
    parser.add_argument("--seconds", type=float, default=2.0, help="for each figure")
    parser.add_argument("--depth", type=int, default=8)
    parser.add_argument("--bandwidth", default="100Mbit")
    parser.add_argument("--rtt", default="10ms")
    parser.add_argument("--bar", type=float, default=0.9)
    args = parser.parse_args()
    link = {"bandwidth": args.bandwidth, "rtt": args.rtt}
    worst = 9.9
    with tempfile.TemporaryDirectory() as folder:
        built = {}
        # In production, broker and link run elsewhere; here they share a core with the faster stage.
        for name, sizes, others in (
            ("device slower", (5, 3), {1}),
            ("server slower", (3, 5), {0}),
            ("both alike", (4, 4), {0, 1}),
        ):
            onnx = network(Path(folder) / "net.onnx", *sizes)
            built[name] = compile_model(onnx, cut="features", name="net", output=Path(folder) / name), others
        print("| model | path | device | server | wire | one by one | pipelined | of the slowest |")
        print("|---|---|---|---|---|---|---|---|")
        for name, (compiled, others) in built.items():
            for path, options in (("loopback", {}), (f"{args.bandwidth}, {args.rtt}", link)):
                stages, alone, pipelined = case(compiled, others, options, args.depth, args.seconds)
                share = pipelined / min(stages.values())
                worst = min(worst, share)
                cells = [
                    name,
                    path,
                    *(f"{stages[s]:.1f}/s" if s in stages else "" for s in ("device", "server", "wire")),
                ]
                cells += [f"{alone:.1f}/s", f"{pipelined:.1f}/s", f"{share:.2f}"]
                print("| " + " | ".join(cells) + " |", flush=True)
    print(f"\nleast: {worst:.2f} of the slowest stage's own rate")
    return int(worst < args.bar)


if __name__ == "__main__":
    sys.exit(main())
