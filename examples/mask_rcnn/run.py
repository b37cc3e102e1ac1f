"""Runs the split Mask R-CNN: on the device only, one by one, and pipelined; over loopback and an emulated link."""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

# This process is the device. It has one thread, whose processor time is slowed down.
os.environ["TVM_NUM_THREADS"] = "1"

import numpy as np
import tvm

from examples.mask_rcnn import report
from examples.mask_rcnn.model import FEATURES, OUTPUTS, SMALL, Config, mask_rcnn
from examples.mask_rcnn.report import Result
from examples.mask_rcnn.timeline import timeline
from zmq_offload import load
from zmq_offload.charts.style import save
from zmq_offload.charts.timeline import draw
from zmq_offload.client.sync import Client
from zmq_offload.common import units
from zmq_offload.compile import Compiled, compile_module, cut_module
from zmq_offload.compile.build import build
from zmq_offload.compile.target import host_target
from zmq_offload.console.programs import run as run_program
from zmq_offload.console.progress import Progress
from zmq_offload.console.settings import checked, count
from zmq_offload.device.model import OffloadedModel
from zmq_offload.plan.costs import Network, Wire
from zmq_offload.plan.slow import SlowedClient, SlowProcessor
from zmq_offload.protocol.payload import Array
from zmq_offload.runtime.machine import virtual_machine
from zmq_offload.testing.fabric import start_fabric
from zmq_offload.testing.link import Link
from zmq_offload.testing.processes import Children, Interrupts


@dataclass(frozen=True)
class Options:
    """The options of the command line; its help explains them."""

    bandwidth: str
    rtt: str
    slowdown: float
    wire: Wire
    items: int
    depth: int
    workers: int
    small: bool
    output: Path

    @property
    def singles(self) -> int:
        """Items to run one by one."""
        return max(5, self.items // 5)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m examples.mask_rcnn", description=__doc__)
    parser.add_argument("--bandwidth", default="100Mbit", type=_kept(units.bandwidth), help="of the emulated link")
    parser.add_argument("--rtt", default="10ms", type=_kept(units.duration), help="of the emulated link")
    factor = checked(float, lambda k: 1 <= k <= 1e4, "a factor from 1 to 10000")
    parser.add_argument("--slowdown", default=3.0, type=factor, help="how many times slower than a core the device is")
    parser.add_argument("--wire", default="float16", choices=("float32", "float16", "int8"))
    parser.add_argument("--frames", default=300, type=count, dest="items", help="number of items")
    parser.add_argument("--depth", default=5, type=count, help="items in the pipeline at a time")
    parser.add_argument("--workers", default=1, type=count, help="worker processes of one thread each")
    parser.add_argument("--small", action="store_true", help="a network for tests, too small to measure anything")
    parser.add_argument("-o", "--output", type=Path, default=Path("mask_rcnn.png"), help="picture of the timeline")
    options = Options(**vars(parser.parse_args(argv)))
    return run_program(lambda: run(options), "mask_rcnn")


def run(options: Options) -> int:
    """Compile, run all ways, print and draw."""
    config = SMALL if options.small else Config()
    picture = np.random.default_rng(0).random(config.input_shape, "float32")
    progress = Progress(7)
    with tempfile.TemporaryDirectory() as scratch:
        module = mask_rcnn(config)
        with progress.step("compile both halves"):
            split = cut_module(module, FEATURES)
            compiled = compile_module(split, name="heads", outputs=OUTPUTS, output=scratch, wire=options.wire)
        with progress.step("compile the whole network, to compare with"):
            whole = virtual_machine(build(module, host_target()))["main"]
        with progress.step("run on the device only"):
            results = [device_only(whole, picture, options)]
        results += on_fabric(compiled, Path(scratch), picture, options, progress)
    network = Network(units.bandwidth(options.bandwidth), units.duration(options.rtt))
    with progress.step("draw"):
        title = f"Pipelined over {results[-1].link}, device slowed down {options.slowdown:g} times"
        save(draw(timeline(results[-1].seen, network, title)), options.output)
    print("\n".join(report.setting(compiled, options.slowdown, options.workers)))
    print("\n".join(["", *report.table(results), ""]))
    print("\n".join(report.verdict(compiled, results[-1], network, options.workers)))
    print(f"drawn in {options.output}")
    return 0


def device_only(whole: Callable[..., object], picture: Array, options: Options) -> Result:
    """Run the whole network on the slow device."""
    processor, tensor = SlowProcessor(options.slowdown), tvm.runtime.tensor(picture)

    def call() -> None:
        used = time.thread_time()
        whole(tensor)
        _, end = processor.stage(time.monotonic(), time.thread_time() - used)
        time.sleep(max(0.0, end - time.monotonic()))

    whole(tensor)
    return one_by_one("device only", "", call, options.singles)


def on_fabric(compiled: Compiled, folder: Path, picture: Array, options: Options, progress: Progress) -> list[Result]:
    """Run offloaded, over loopback and over the emulated link."""
    with Interrupts() as interrupts, Children(interrupts) as children:
        with progress.step("start a broker and workers"):
            broker = start_fabric(children, folder / "repository", options.workers, folder, ("--threads", "1"))
        with progress.step("run over loopback"):
            results = offloaded(compiled, broker, "loopback", picture, options)
        emulated = Link(broker, bandwidth=options.bandwidth, rtt=options.rtt)
        with progress.step("run over the emulated link"), emulated as link:
            name = f"{options.bandwidth}, {options.rtt}"
            return results + offloaded(compiled, link.endpoint, name, picture, options)


def offloaded(compiled: Compiled, endpoint: str, link: str, picture: Array, options: Options) -> list[Result]:
    """Run items one by one, then pipelined."""
    with Client(endpoint) as client:
        slow = SlowedClient(client, options.slowdown)
        with load(compiled.device, client=slow) as model:
            for _ in range(5):
                model(picture)
            alone = one_by_one("one by one", link, lambda: model(picture), options.singles)
            slow.seen.clear()
            return [alone, pipelined(model, slow, link, picture, options)]


def one_by_one(way: str, link: str, call: Callable[[], object], items: int) -> Result:
    """Time each of `items` calls."""
    latencies = []
    began = time.monotonic()
    for _ in range(items):
        start = time.monotonic()
        call()
        latencies.append(time.monotonic() - start)
    return Result(way, link, latencies, (time.monotonic() - began) / items)


def pipelined(model: OffloadedModel, slow: SlowedClient, link: str, picture: Array, options: Options) -> Result:
    """Run items by `model.map`."""
    taken: list[float] = []

    def items() -> Iterator[Array]:
        for _ in range(options.items + options.depth):
            taken.append(time.monotonic())
            yield picture

    ends = [time.monotonic() for _ in model.map(items(), depth=options.depth)]
    # The first items fill the pipeline, and their threads create VMs.
    first = options.depth
    latencies = [end - start for start, end in zip(taken[first:], ends[first:], strict=True)]
    interval = (ends[-1] - ends[first - 1]) / (len(ends) - first)
    return Result("pipelined", link, latencies, interval, sorted(slow.seen[first:], key=lambda s: s.began))


def _kept(check: Callable[[str], float]) -> Callable[[str], str]:
    """The type of an option that is checked as a quantity and kept as text."""

    def parse(text: str) -> str:
        check(text)
        return text

    return checked(parse, bool, "a quantity")
