"""Compares the choice of `zmq-offload plan` with every split there is: `python -m tests.benchmarks.exhaustive_plan`.

It takes half an hour and needs the machine for itself.

For three small networks, each split that the planner looks at, cuts at several tensors and parts in the middle too, is
compiled, deployed and run over three emulated links, one item at a time: broker and worker in processes of their own,
and a device that is slowed down. So is the device alone. Then `zmq-offload plan` chooses for each link. Its choice is
looked up among what was measured. "worse" says by how much the choice takes longer than the best of all.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, TypeAlias

os.environ["TVM_NUM_THREADS"] = "1"  # of this process, which is the device

import numpy as np
import onnx

import zmq_offload
from tests.benchmarks.models import Graph, decoder, three_convolutions
from tests.benchmarks.plan_check import command, run_whole
from zmq_offload.client.sync import Client
from zmq_offload.compile.api import compile_model
from zmq_offload.compile.models.read import read_model
from zmq_offload.plan.confirm import names_of
from zmq_offload.plan.costs import Wire
from zmq_offload.plan.cuttable import cuttable
from zmq_offload.plan.rules import all_splits
from zmq_offload.plan.slow import SlowedClient
from zmq_offload.protocol.payload import Array
from zmq_offload.testing.fabric import start_fabric
from zmq_offload.testing.link import Link
from zmq_offload.testing.processes import Children, Interrupts

LINKS = (("10Mbit", "20ms"), ("50Mbit", "10ms"), ("500Mbit", "2ms"))
Measured: TypeAlias = "dict[Key, list[float]]"


class Key(NamedTuple):
    """A split by the names of its tensors, as a plan has it. The device alone has no cut."""

    cut: tuple[str, ...]
    until: tuple[str, ...]
    wire: str

    def __str__(self) -> str:
        if not self.cut:
            return "device only"
        return f"{'+'.join(self.cut)}{' until ' + '+'.join(self.until) if self.until else ''} {self.wire}"


ALONE = Key((), (), "float32")


def unet() -> onnx.ModelProto:
    """Three levels with shortcuts between both sides."""
    g, x = Graph(), "x"
    kept = []
    for ic, oc in ((3, 32), (32, 64)):
        x = g.op("Relu", g.conv(x, ic, oc, 3))
        kept.append(x)
        x = g.op("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2])
    x = g.op("Relu", g.conv(x, 64, 64, 3))
    for wide, oc, shortcut in ((128, 32, kept[1]), (64, 4, kept[0])):
        scales = g.constant(np.array([1, 1, 2, 2], "float32"))
        large = g.op("Resize", x, "", scales, mode="nearest")
        x = g.op("Relu", g.conv(g.op("Concat", large, shortcut, axis=1), wide, oc, 3))
    return g.model((1, 3, 128, 128), x)


class Case(NamedTuple):
    name: str
    model: onnx.ModelProto
    shape: tuple[int, ...]


def cases() -> list[Case]:
    return [
        Case("three convolutions", three_convolutions(), (1, 3, 224, 224)),
        Case("decoder", decoder(), (1, 16, 96, 96)),
        Case("U-Net", unet(), (1, 3, 128, 128)),
    ]


def measure_all(file: Path, shape: Sequence[int], folder: Path, args: argparse.Namespace) -> Measured:
    """Median seconds of an item for each split, one for each link."""
    model = cuttable(read_model(file).imported({"x": tuple(shape)}))
    splits = [split for split in all_splits(model.crossings, args.wire) if split.start != split.end]
    whole = run_whole(file, shape, folder / "whole.so", args)
    found: Measured = {ALONE: [whole] * len(LINKS)}
    for at, split in enumerate(splits):
        cut, until = names_of(model, split)
        dist = folder / f"split{at}"
        inputs = {"x": tuple(shape)}
        compile_model(file, inputs=inputs, cut=cut, until=until or None, wire=split.wire, name="part", output=dist)
        found[Key(cut, until, split.wire)] = _over_links(dist, shape, args)
        print(f"\r{file.stem}: {at + 1} of {len(splits)} splits", end="", flush=True)
    print()
    return found


def _over_links(dist: Path, shape: Sequence[int], args: argparse.Namespace) -> list[float]:
    x = np.random.default_rng(0).standard_normal(shape).astype("float32")
    with Interrupts() as interrupts, Children(interrupts) as children, tempfile.TemporaryDirectory() as logs:
        broker = start_fabric(children, dist / "repository", 1, Path(logs), ("--threads", "1"))
        return [_over(broker, link, dist, x, args) for link in LINKS]


def _over(broker: str, link: tuple[str, str], dist: Path, x: Array, args: argparse.Namespace) -> float:
    times = []
    with (
        Link(broker, bandwidth=link[0], rtt=link[1]) as relay,
        Client(relay.endpoint, arena_bytes=0) as client,  # shared memory would go around the link
        zmq_offload.load(dist / "device", client=SlowedClient(client, args.slowdown)) as model,
    ):
        for at in range(args.items + 3):
            start = time.perf_counter()
            model(x)
            if at >= 3:
                times.append(time.perf_counter() - start)
    return statistics.median(times)


def planned(file: Path, shape: Sequence[int], link: tuple[str, str], folder: Path, args: argparse.Namespace) -> Key:
    """What the planner chooses."""
    plan = folder / "plan.json"
    options = ["--input", f"x={','.join(map(str, shape))}", "--bandwidth", link[0], "--rtt", link[1]]
    options += ["--device-slowdown", str(args.slowdown), "--server-threads", "1", "--wire", *args.wire]
    command("plan", str(file), *options, "--save", str(plan), "-o", str(folder / "plan.png"))
    chosen = json.loads(plan.read_text())
    return Key(tuple(chosen["cut"]), tuple(chosen["until"]), chosen["wire"]) if chosen["cut"] else ALONE


def row(name: str, at: int, chosen: Key, measured: Mapping[Key, Sequence[float]]) -> str:
    """A line of the table: the choice and the best split on a link, and by how much the choice is worse."""
    best = min(measured, key=lambda key: measured[key][at])
    own, least = measured[chosen][at], measured[best][at]
    cells = [name, ", ".join(LINKS[at]), f"{chosen}", f"{own * 1e3:.1f}", f"{best}", f"{least * 1e3:.1f}"]
    return "| " + " | ".join([*cells, f"{own / least - 1:.1%}"]) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.exhaustive_plan",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    wires: list[Wire] = ["float32", "int8"]
    parser.add_argument("--only", default="", help="networks whose name contains this")
    parser.add_argument("--slowdown", type=float, default=8.0)
    parser.add_argument("--wire", nargs="+", default=wires, help="encodings (default: float32 int8)")
    parser.add_argument("--frames", type=int, default=15, dest="items", help="items to run of each split and link")
    args = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        for case in cases():
            if args.only.lower() not in case.name.lower():
                continue
            folder = Path(scratch) / case.name.replace(" ", "-")
            folder.mkdir()
            file = folder / f"{folder.name}.onnx"
            onnx.save(case.model, file)
            measured = measure_all(file, case.shape, folder, args)
            rows += [
                row(case.name, at, planned(file, case.shape, link, folder, args), measured)
                for at, link in enumerate(LINKS)
            ]
    head = ["network", "link", "chosen", "ms", "best of all", "ms", "worse"]
    print("| " + " | ".join(head) + " |", "|" + "---|" * len(head), *rows, sep="\n")


if __name__ == "__main__":
    main()
