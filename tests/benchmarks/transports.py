"""One device bundle over each transport: `python -m tests.benchmarks.transports`.

PP-OCRv4's text detection, cut after its backbone, and the Mask R-CNN of the examples, cut at its features. The device
is this process; each server runs the subgraph with one thread. First the results over each transport are compared with
those through the broker, to the last bit: the exit code is 1 if any differs. Then all are timed in turns of half a
second, so that whatever else the machine does falls on all alike: an item at a time, and pipelined. CPU time is that of
device and server together. A server that is not installed is left out by name.
"""

from __future__ import annotations

import argparse
import itertools
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

os.environ["TVM_NUM_THREADS"] = "1"

import numpy as np

from examples.mask_rcnn.model import FEATURES, OUTPUTS, Config, mask_rcnn
from tests.benchmarks.measure import cpu_seconds
from tests.benchmarks.transport_servers import Way, fabric_and_gateway, triton, tvmrpc
from tests.support import onnx_models
from tests.support.servers import Missing
from zmq_offload import load
from zmq_offload.artifacts.repository import Repository
from zmq_offload.compile import Compiled, compile_model, compile_module, cut_module
from zmq_offload.demo.model import CUT, INPUT, find_model
from zmq_offload.demo.picture import pages, to_tensor
from zmq_offload.device.offloaded_model import OffloadedModel
from zmq_offload.protocol.payload import Array

MODEL = "model"
SIZE = (320, 320)
DEPTH = 4
TURN = 0.5


class Case(NamedTuple):
    """A split network with different items. `crosses` are the bytes there and back of an item."""

    name: str
    compiled: Compiled
    items: Sequence[Array]

    @property
    def repository(self) -> Path:
        return self.compiled.device.parent / "repository"

    @property
    def crosses(self) -> tuple[int, int]:
        model = Repository(self.repository).read(MODEL, 1)
        return sum(spec.nbytes for spec in model.inputs), sum(spec.nbytes for spec in model.outputs)


def ocr(folder: Path) -> Case:
    items = [to_tensor(page, SIZE) for page in pages()]
    compiled = compile_model(find_model(), inputs={INPUT: items[0].shape}, cut=CUT, name=MODEL, output=folder)
    return Case("PP-OCRv4 detection, 320 x 320", compiled, items)


def heads(folder: Path) -> Case:
    random = np.random.default_rng(0)
    items = [random.random(Config().input_shape, "float32") for _ in range(3)]
    split = cut_module(mask_rcnn(), FEATURES)
    compiled = compile_module(split, name=MODEL, outputs=OUTPUTS, output=folder)
    return Case("Mask R-CNN, 640 x 480", compiled, items)


def mlp(folder: Path) -> Case:
    inputs = {"x": (2, 8)}
    network = onnx_models.mlp(folder.parent / "mlp.onnx")
    compiled = compile_model(network, inputs=inputs, cut=["h2"], until=["h4"], name=MODEL, output=folder)
    return Case("MLP, two layers of it", compiled, [np.ones((2, 8), np.float32)])


CASES = {"ocr": ocr, "mask_rcnn": heads, "mlp": mlp}


def results(model: OffloadedModel, items: Sequence[Array]) -> list[bytes]:
    """The bytes of all outputs, one item at a time and pipelined, which must not differ either."""
    alone = [b"".join(np.asarray(y).tobytes() for y in _tuple(model(x))) for x in items]
    piped = [b"".join(np.asarray(y).tobytes() for y in _tuple(found)) for found in model.map(items, depth=DEPTH)]
    return alone + piped


def _tuple(found: Array | tuple[Array, ...]) -> tuple[Array, ...]:
    return found if isinstance(found, tuple) else (found,)


class Figures:
    """What was measured of one way."""

    def __init__(self) -> None:
        self.times: list[float] = []
        self.cpu = 0.0
        self.rates: list[float] = []

    def one_at_a_time(self, model: OffloadedModel, x: Array, pids: Sequence[int]) -> None:
        model(x)  # what the way before left in the caches is not this one's
        before, end = sum(map(cpu_seconds, pids)), time.perf_counter() + TURN
        while (start := time.perf_counter()) < end:
            model(x)
            self.times.append(time.perf_counter() - start)
        self.cpu += sum(map(cpu_seconds, pids)) - before

    def pipelined(self, model: OffloadedModel, x: Array) -> None:
        found = model.map(itertools.repeat(x), depth=DEPTH)
        for _ in range(DEPTH):
            next(found)
        began, done = time.perf_counter(), 0
        while time.perf_counter() < began + TURN:
            next(found)
            done += 1
        self.rates.append(done / (time.perf_counter() - began))
        found.close()  # type: ignore[attr-defined]  # it is a generator

    def cells(self) -> str:
        p50, rate = statistics.median(self.times), statistics.median(self.rates)
        return f"{p50 * 1e3:.2f} | {self.cpu / len(self.times) * 1e3:.2f} | {rate:.1f}"


def measured(case: Case, models: Mapping[Way, OffloadedModel], seconds: float) -> dict[Way, Figures]:
    figures = {way: Figures() for way in models}
    pids = {way: [os.getpid(), *way.pids()] for way in models}
    for _ in range(max(1, round(seconds / TURN))):
        for way, model in models.items():
            figures[way].one_at_a_time(model, case.items[0], pids[way])
            figures[way].pipelined(model, case.items[0])
    return figures


def run(case: Case, folder: Path, python: str, seconds: float) -> bool:
    """Print the table of a case. Returns whether all results are the broker's."""
    with ExitStack() as stack:
        ways = stack.enter_context(fabric_and_gateway(case.repository, MODEL))
        try:
            ways += stack.enter_context(triton(case.repository, folder / "triton", python))
        except Missing as missing:
            print(f"left out: {missing}", file=sys.stderr)
        ways += stack.enter_context(tvmrpc(case.repository))
        models = {way: stack.enter_context(load(case.compiled.device, server=way.url)) for way in ways}
        found = {way: results(model, case.items) for way, model in models.items()}
        same = {way: each == found[ways[0]] for way, each in found.items()}
        figures = measured(case, models, seconds)
        there, back = case.crosses
        print(f"\n{case.name}: {there:,} bytes there and {back:,} back\n")
        print("| URL | server | same results | p50, ms | CPU, ms | items/s, pipelined |\n|---|---|---|---|---|---|")
        for way in ways:
            print(f"| `{way.scheme}://` | {way.server} | {'yes' if same[way] else 'NO'} | {figures[way].cells()} |")
    return all(same.values())


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.transports", description=__doc__)
    parser.add_argument("--triton-python", default=sys.executable, metavar="FILE", help="of Triton's environment")
    parser.add_argument("--case", choices=CASES, action="append", help="a network (default: all)")
    parser.add_argument("--seconds", type=float, default=10.0, help="for each figure")
    args = parser.parse_args()
    same = True
    for name in args.case or CASES:
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch)
            (folder / "triton").mkdir()
            same &= run(CASES[name](folder / "dist"), folder, args.triton_python, args.seconds)
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
