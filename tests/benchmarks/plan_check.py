"""Compares the predictions of `zmq-offload plan` with real runs: `python -m tests.benchmarks.plan_check`.

It takes some minutes and needs the machine for itself.

For each network and link, it plans, compiles with `zmq-offload compile --plan`, and runs the result: broker and worker
in processes of their own, the emulated link, and a device that is slowed down as in the plan. The latency is that of
items one at a time, the rate that of `model.map`. Nothing is fitted between predictions and runs.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

os.environ["TVM_NUM_THREADS"] = "1"  # of this process, which is the device

import numpy as np
import onnx

import zmq_offload
from tests.benchmarks.models import CASES
from zmq_offload.client.sync import Client
from zmq_offload.compile.uncut import UncutModel, compile_uncut
from zmq_offload.plan.slow import SlowedClient, SlowProcessor
from zmq_offload.testing.fabric import start_fabric
from zmq_offload.testing.link import Link
from zmq_offload.testing.processes import Children, Interrupts

NETWORKS = ("PP-OCRv4 det 320x320", "MobileNetV2-like", "transformer encoder x2")
LINKS = (("50Mbit", "10ms"), ("100Mbit", "10ms"), ("1Gbit", "2ms"))
SERVER_THREADS = 1


def command(*arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "zmq_offload", *arguments, "--quiet"],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(f"zmq-offload {' '.join(arguments)}: {done.stdout}{done.stderr}")
    return done.stdout


def check(file: Path, shape: str, link: tuple[str, str], folder: Path, args: argparse.Namespace) -> list[str]:
    """One row: the choice, the prediction and the measurement."""
    bandwidth, rtt = link
    plan = folder / f"{file.stem}-{bandwidth}.json"
    options = ["--input", f"x={shape}", "--bandwidth", bandwidth, "--rtt", rtt, "--device-slowdown", str(args.slowdown)]
    options += ["--objective", args.objective, "--save", str(plan), "-o", str(plan.with_suffix(".png"))]
    options += ["--server-threads", str(SERVER_THREADS), *args.plan_option]
    said = command("plan", str(file), *options)
    plan.with_suffix(".txt").write_text(said)
    chosen = json.loads(plan.read_text())
    predicted = chosen["predicted"]
    dims = tuple(map(int, shape.split(",")))
    if not chosen["cut"]:
        got = run_whole(file, dims, folder / f"{plan.stem}.so", args)
        return [
            "device only",
            "",
            "",
            *compared(predicted["latency"], got),
            *compared(predicted["interval"], got, True),
        ]
    dist = folder / plan.stem
    command("compile", str(file), "--plan", str(plan), "--name", "planned", "--force", "-o", str(dist))
    latency, interval = run(dist, dims, link, args, predicted["interval"])
    cells = [", ".join(chosen["cut"]), ", ".join(chosen["until"]), chosen["wire"]]
    return [*cells, *compared(predicted["latency"], latency), *compared(predicted["interval"], interval, True)]


def compared(predicted: float, measured: float, rate: bool = False) -> list[str]:
    """Both in milliseconds, or as rates, and the relative error of the prediction."""
    one, other = (1 / predicted, 1 / measured) if rate else (predicted * 1e3, measured * 1e3)
    return [f"{one:.1f}", f"{other:.1f}", f"{one / other - 1:+.1%}"]


def run_whole(file: Path, shape: Sequence[int], library: Path, args: argparse.Namespace) -> float:
    """Median seconds of an item on the slow device alone."""
    compile_uncut(file, library, inputs={"x": shape})
    whole, processor = UncutModel(library), SlowProcessor(args.slowdown)
    x = np.random.default_rng(0).standard_normal(shape).astype("float32")
    whole(x)
    times = []
    for _ in range(args.items):
        start, used = time.monotonic(), time.thread_time()
        whole(x)
        _, end = processor.stage(time.monotonic(), time.thread_time() - used)
        time.sleep(max(0.0, end - time.monotonic()))
        times.append(time.monotonic() - start)
    return statistics.median(times)


def run(
    dist: Path, shape: Sequence[int], link: tuple[str, str], args: argparse.Namespace, expected: float
) -> tuple[float, float]:
    """Median seconds of a single item, and seconds between pipelined items."""
    x = np.random.default_rng(0).standard_normal(shape).astype("float32")
    with Interrupts() as interrupts, Children(interrupts) as children, tempfile.TemporaryDirectory() as logs:
        options = ("--threads", str(SERVER_THREADS))
        broker = start_fabric(children, dist / "repository", 1, Path(logs), options)
        with Link(broker, bandwidth=link[0], rtt=link[1]) as relay, Client(relay.endpoint, arena_bytes=0) as client:
            slow = SlowedClient(client, args.slowdown)
            with zmq_offload.load(dist / "device", client=slow) as model:
                for _ in range(5):
                    model(x)
                times = []
                for _ in range(args.items):
                    start = time.perf_counter()
                    model(x)
                    times.append(time.perf_counter() - start)
                latency = statistics.median(times)
                depth = 2 + int(latency / expected)
                ends = [time.perf_counter() for _ in model.map([x] * (2 * args.items), depth=depth)]
    skipped = args.items // 4
    return latency, (ends[-1] - ends[skipped]) / (len(ends) - 1 - skipped)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.plan_check",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--only", default="", help="networks whose name contains this")
    parser.add_argument("--slowdown", type=float, default=8.0)
    parser.add_argument("--objective", default="latency")
    parser.add_argument("--frames", type=int, default=40, dest="items", help="items to run")
    parser.add_argument("--keep", type=Path, help="folder for plans, pictures and bundles (default: none are kept)")
    parser.add_argument("plan_option", nargs="*", help="more options of plan, after --")
    args = parser.parse_args()
    head = ["network", "link", "cut", "until", "wire", "predicted ms", "measured ms", "off"]
    head += ["predicted fps", "measured fps", "off"]
    print("| " + " | ".join(head) + " |", "|" + "---|" * len(head), sep="\n", flush=True)
    with tempfile.TemporaryDirectory() as scratch:
        folder = args.keep or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        for case in CASES:
            if case.name not in NETWORKS or args.only.lower() not in case.name.lower():
                continue
            file = folder / f"{case.name.split()[0]}.onnx"
            onnx.save(case.model(), file)
            for link in LINKS:
                row = check(file, ",".join(map(str, case.shape)), link, folder, args)
                print("| " + " | ".join([case.name, f"{link[0]}, {link[1]}", *row]) + " |", flush=True)


if __name__ == "__main__":
    main()
