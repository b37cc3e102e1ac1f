"""Latency over recorded links: each split of a bundle, and the controller: `python -m tests.benchmarks.adaptive`.

A broker, a worker and the link are processes of their own; this process is the device, slowed down by a factor. Frames
are due at a fixed rate, and one that is late takes the place of those that it covers. Each run begins with the link, so
that all see the same moments. "oracle" is the least of the static splits at each frame. The device alone, which neither
the oracle nor "auto" may choose, is measured without slowdown and multiplied. "changes" counts frames by another split
than the frame before, those that explore included.

A short run, of about two minutes: `--models three --traces train --slowdowns 8 --seconds 20`.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from bisect import bisect_right
from collections.abc import Sequence
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

os.environ["TVM_NUM_THREADS"] = "1"  # of this process, which is the device

import numpy as np
import onnx

import zmq_offload
from tests.benchmarks.models import CASES, Case
from zmq_offload.client.sync import Client
from zmq_offload.compile import Compiled, compile_model, list_cuts
from zmq_offload.errors import OffloadError
from zmq_offload.plan.slow import SlowedClient
from zmq_offload.protocol.payload import Array
from zmq_offload.testing import Fabric, Link
from zmq_offload.testing.link import Trace

MODELS = ("three convolutions", "MobileNet", "transformer")
TRACES = ("steady-5g", "cell-edge", "train", "busy-wifi", "lte-rush-hour", "satellite")
DEADLINE = 0.1
WARM = 3


class Frame(NamedTuple):
    """A frame by the seconds from the start of its run, and the split that it ran by."""

    began: float
    took: float
    split: str


def at_slots(frames: Sequence[Frame], slots: Sequence[float]) -> list[float]:
    """For each slot, the latency of the last frame that began by then."""
    starts = [frame.began for frame in frames]
    return [frames[max(0, bisect_right(starts, slot) - 1)].took for slot in slots]


def row(name: str, latencies: Sequence[float], oracle: Sequence[float], changes: int | None) -> str:
    """A line of the table."""
    late = sum(took > DEADLINE for took in latencies) / len(latencies)
    mean = statistics.fmean(latencies)
    p99 = sorted(latencies)[min(len(latencies) - 1, int(0.99 * len(latencies)))]
    cells = [name, f"{mean * 1e3:.1f}", f"{p99 * 1e3:.1f}", f"{late:.0%}", f"{mean / statistics.fmean(oracle):.2f}"]
    return "| " + " | ".join([*cells, "" if changes is None else str(changes)]) + " |"


def compiled(case: Case, folder: Path, count: int) -> Compiled:
    """An adaptive bundle with `count` cuts that are spread over the network."""
    file = folder / "m.onnx"
    onnx.save(case.model(), file)
    name = onnx.load(file, load_external_data=False).graph.input[0].name
    shapes = {name: case.shape}
    points = [point for point in list_cuts(file, inputs=shapes) if point.share < 0.98]
    places = sorted({round(i * (len(points) - 1) / max(1, count - 1)) for i in range(count)})
    cuts = list(dict.fromkeys(tuple(points[place].names) for place in places))
    return compile_model(
        file, inputs=shapes, cuts=cuts, name="m", output=folder, repository=folder / "repository", with_fallback=True
    )


def alone(bundle: Path, broker: str, x: Array) -> float:
    """Median CPU seconds of the whole model in this process."""
    times = []
    with zmq_offload.load(bundle, broker, offload="never") as model:
        for _ in range(10):
            began = time.thread_time()
            model(x)
            times.append(time.thread_time() - began)
    return statistics.median(times[WARM:])


def run(
    bundle: Path, broker: str, x: Array, split: str, trace: str, factor: float, args: argparse.Namespace
) -> list[Frame]:
    """Frames over a recorded link from its start. A frame that fails counts as long as it took."""
    frames: list[Frame] = []
    with ExitStack() as stack:
        direct = stack.enter_context(Client(broker, arena_bytes=0))
        with zmq_offload.load(bundle, client=SlowedClient(direct, factor), split=split) as warm:
            for _ in range(WARM):
                warm(x)
        link = stack.enter_context(Link(broker, trace=trace))
        start = time.monotonic()
        client = stack.enter_context(Client(link.endpoint, arena_bytes=0))  # shared memory would go around the link
        slowed = SlowedClient(client, factor)
        model = stack.enter_context(zmq_offload.load(bundle, client=slowed, split=split, timeout=30.0))
        used = dict.fromkeys(model.statistics.splits, 0)
        due = 0.0
        while (now := time.monotonic() - start) < args.seconds:
            if now < due:
                time.sleep(due - now)
            began = time.monotonic() - start
            try:
                model(x)
            except OffloadError as error:
                print(f"a frame at {began:.1f} s failed: {error}", flush=True)
            took = time.monotonic() - start - began
            counts = dict(model.statistics.splits)
            by = next((name for name, count in counts.items() if count > used.get(name, 0)), "")
            used = counts
            frames.append(Frame(began, took, by))
            due = (int((began + took) / args.period) + 1) * args.period
    return frames


def measure(case: Case, folder: Path, args: argparse.Namespace) -> None:
    bundle = compiled(case, folder, args.cuts)
    splits = [split.name for split in bundle.manifest.splits]
    x = np.random.default_rng(0).standard_normal(case.shape).astype("float32")
    with Fabric(folder / "repository", worker_options=["--threads", "1"]) as fabric:
        here = alone(bundle.device, fabric.frontend, x)
        for trace in args.traces:
            for factor in args.slowdowns:
                print(f"\n{case.name}, {trace}, device {factor:g} times slower\n")
                print("| split | mean, ms | p99, ms | over 100 ms | oracle = 1 | changes |\n|---|---|---|---|---|---|")
                slots = [at * args.period for at in range(int(args.seconds / args.period))]
                runs = {name: run(bundle.device, fabric.frontend, x, name, trace, factor, args) for name in splits}
                chosen = run(bundle.device, fabric.frontend, x, "auto", trace, factor, args)
                found = {name: at_slots(frames, slots) for name, frames in runs.items()}
                oracle = [min(column) for column in zip(*found.values(), strict=True)]
                found["device alone"] = [here * factor] * len(slots)
                for name, latencies in found.items():
                    print(row(name, latencies, oracle, None))
                changes = sum(a.split != b.split for a, b in pairwise(chosen))
                print(row("auto", at_slots(chosen, slots), oracle, changes))
                print(row("oracle", oracle, oracle, None), flush=True)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.adaptive",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--models", nargs="+", default=MODELS, help="words in the names of the networks")
    parser.add_argument("--traces", nargs="+", default=TRACES, help="names or CSV files")
    parser.add_argument("--slowdowns", nargs="+", type=float, default=(3.0, 8.0))
    parser.add_argument("--seconds", type=float, default=60.0, help="of each run")
    parser.add_argument("--period", type=float, default=0.1, help="seconds from frame to frame")
    parser.add_argument("--cuts", type=int, default=4, metavar="K")
    args = parser.parse_args(argv)
    for trace in args.traces:
        Trace.find(trace)
    for case in CASES:
        if any(word in case.name for word in args.models):
            with tempfile.TemporaryDirectory() as folder:
                measure(case, Path(folder), args)


if __name__ == "__main__":
    main()
