"""Run the split Mask R-CNN: device only, frame by frame, and pipelined; over loopback and an emulated link."""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

# This process is the device: one thread, whose processor time is what a slower device would take more of.
os.environ["TVM_NUM_THREADS"] = "1"

import numpy as np
import tvm
from tvm.runtime import vm

from examples.mask_rcnn.model import FEATURES, OUTPUTS, SMALL, Config, mask_rcnn
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
from zmq_offload.plan.costs import Network, message_bytes
from zmq_offload.plan.slow import Seen, SlowedClient, SlowProcessor
from zmq_offload.testing.fabric import start_fabric
from zmq_offload.testing.link import Link
from zmq_offload.testing.processes import Children, Interrupts

GOAL = 70.0
"""Frames a second that the proposal reached."""


@dataclass(frozen=True)
class Result:
    """One way to run it: seconds of each frame from beginning to result, and seconds between results."""

    way: str
    link: str
    latencies: list[float]
    interval: float
    seen: list[Seen] = field(default_factory=list)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m examples.mask_rcnn", description=__doc__)
    parser.add_argument("--bandwidth", default="100Mbit", type=_kept(units.bandwidth), help="of the emulated link")
    parser.add_argument("--rtt", default="10ms", type=_kept(units.duration), help="of the emulated link")
    factor = checked(float, lambda k: 1 <= k <= 1e4, "a factor from 1 to 10000")
    parser.add_argument("--slowdown", default=3.0, type=factor, help="the device is so much slower than a core here")
    parser.add_argument("--wire", default="float16", choices=("float32", "float16", "int8"))
    parser.add_argument("--frames", default=300, type=count)
    parser.add_argument("--depth", default=5, type=count, help="frames under way at a time")
    parser.add_argument("--workers", default=1, type=count, help="worker processes, of one thread each")
    parser.add_argument("--small", action="store_true", help="a network so small that nothing can be learned from it")
    parser.add_argument("-o", "--output", type=Path, default=Path("mask_rcnn.png"), help="the timeline")
    args = parser.parse_args(argv)
    return run_program(lambda: run(args), "mask_rcnn")


def run(args: argparse.Namespace) -> int:
    config = SMALL if args.small else Config()
    picture = np.random.default_rng(0).random(config.input_shape, "float32")
    progress = Progress(7)
    with tempfile.TemporaryDirectory() as scratch, Interrupts() as interrupts, Children(interrupts) as children:
        module = mask_rcnn(config)
        with progress.step("compile both halves"):
            split = cut_module(module, FEATURES)
            compiled = compile_module(split, name="heads", outputs=OUTPUTS, output=scratch, wire=args.wire)
        with progress.step("compile the whole, to compare with"):
            whole = vm.VirtualMachine(build(module, host_target()), tvm.cpu())["main"]
        with progress.step("device only"):
            results = [device_only(whole, picture, args)]
        with progress.step("start a broker and workers"):
            options = ("--threads", "1")
            broker = start_fabric(children, Path(scratch) / "repository", args.workers, Path(scratch), options)
        with progress.step("over loopback"):
            results += offloaded(compiled, broker, "loopback", picture, args)
        with progress.step("over the emulated link"), Link(broker, bandwidth=args.bandwidth, rtt=args.rtt) as link:
            name = f"{args.bandwidth}, {args.rtt}"
            results += offloaded(compiled, link.endpoint, name, picture, args)
    conditions = Network(units.bandwidth(args.bandwidth), units.duration(args.rtt))
    with progress.step("draw"):
        title = f"Pipelined over {name}, device slowed down {args.slowdown:g} times"
        save(draw(timeline(results[-1].seen, conditions, title)), args.output)
    print(describe(compiled, results, conditions, args))
    return 0


def device_only(whole: Callable[..., object], picture: np.ndarray, args: argparse.Namespace) -> Result:
    """All of it on the slow device."""
    processor, tensor = SlowProcessor(args.slowdown), tvm.runtime.tensor(picture)
    whole(tensor)
    latencies = []
    began = time.monotonic()
    frames = max(5, args.frames // 5)
    for _ in range(frames):
        start, used = time.monotonic(), time.thread_time()
        whole(tensor)
        _, end = processor.stage(time.monotonic(), time.thread_time() - used)
        time.sleep(max(0.0, end - time.monotonic()))
        latencies.append(time.monotonic() - start)
    return Result("device only", "", latencies, (time.monotonic() - began) / frames)


def offloaded(
    compiled: Compiled, endpoint: str, link: str, picture: np.ndarray, args: argparse.Namespace
) -> list[Result]:
    """Frame by frame, and pipelined."""
    with Client(endpoint) as client:
        slow = SlowedClient(client, args.slowdown)
        with load(compiled.device, client=slow) as model:
            for _ in range(5):
                model(picture)
            latencies = []
            slow.seen.clear()
            began = time.monotonic()
            single = max(5, args.frames // 5)
            for _ in range(single):
                start = time.monotonic()
                model(picture)
                latencies.append(time.monotonic() - start)
            alone = Result("one by one", link, latencies, (time.monotonic() - began) / single, list(slow.seen))
            return [alone, pipelined(model, slow, link, picture, args)]


def pipelined(
    model: OffloadedModel, slow: SlowedClient, link: str, picture: np.ndarray, args: argparse.Namespace
) -> Result:
    taken: list[float] = []

    def frames() -> Iterator[np.ndarray]:
        for _ in range(args.frames + args.depth):
            taken.append(time.monotonic())
            yield picture

    slow.seen.clear()
    ends = [time.monotonic() for _ in model.map(frames(), depth=args.depth)]
    # The pipeline fills first, and threads that are new have VMs to make.
    first = args.depth
    latencies = [end - start for start, end in zip(taken[first:], ends[first:], strict=True)]
    interval = (ends[-1] - ends[first - 1]) / (len(ends) - first)
    return Result("pipelined", link, latencies, interval, sorted(slow.seen[first:], key=lambda s: s.began))


def describe(compiled: Compiled, results: Sequence[Result], link: Network, args: argparse.Namespace) -> str:
    """The tables, and whether the goal was reached."""
    (model,) = compiled.models
    crossing = "; ".join(map(str, model.inputs))
    payload = sum(t.nbytes for t in model.inputs)
    lines = [
        f"device: one thread of this machine, slowed down {args.slowdown:g} times (emulated: a stage takes that many",
        "        times the processor time that it took, the rest of it asleep, one stage at a time)",
        f"server: {args.workers} worker process{'es' if args.workers > 1 else ''} of one thread on the same machine",
        f"wire:   {crossing}, {payload:,} bytes; the picture has {np.prod(compiled.manifest.inputs[0].shape) * 4:,}",
        "",
        f"{'way':<13}{'link':<18}{'frames/s':>10}{'latency ms':>12}{'95 %':>8}",
    ]
    for r in results:
        high = statistics.quantiles(r.latencies, n=20)[-1] if len(r.latencies) > 1 else r.latencies[0]
        median = statistics.median(r.latencies)
        lines.append(f"{r.way:<13}{r.link:<18}{1 / r.interval:>10.1f}{median * 1e3:>12.1f}{high * 1e3:>8.1f}")
    last = results[-1]
    stages = {
        "device": statistics.median(s.ended - s.began for s in last.seen),
        "uplink": link.occupied(message_bytes(model.inputs, answer=False)),
        "server": statistics.median(s.timings.compute for s in last.seen) / args.workers,
        "downlink": link.occupied(message_bytes(model.outputs, answer=True)),
    }
    slowest = max(stages, key=lambda name: stages[name])
    shown = ", ".join(f"{name} {seconds * 1e3:.2f} ms" for name, seconds in stages.items())
    rate, bound = 1 / last.interval, 1 / stages[slowest]
    lines += [
        "",
        f"stages: {shown} (the last pipelined run; a round trip delays frames and holds up none)",
        f"bound:  {slowest}, {bound:.1f} frames/s; reached {rate:.1f}, {rate / bound:.0%} of it",
    ]
    if rate >= GOAL:
        lines.append(f"goal:   {GOAL:.0f} frames/s over the emulated link: reached")
    else:
        why = (
            f"the {slowest} alone allows {bound:.1f}" if bound < GOAL else "the stages' own times would have allowed it"
        )
        lines.append(f"goal:   {GOAL:.0f} frames/s over the emulated link: not reached; {why}")
    return "\n".join([*lines, f"drawn in {args.output}"])


def _kept(check: Callable[[str], float]) -> Callable[[str], str]:
    """An option's type that checks a quantity and keeps the text."""

    def parse(text: str) -> str:
        check(text)
        return text

    return checked(parse, bool, "a quantity")
