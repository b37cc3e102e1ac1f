"""Measures the cost and the gain of encodings: `python -m tests.benchmarks.wire`.

The time of the kernels that encode and decode, each compiled alone, with one thread; and how much zlib (level 1) could
still compress the bytes that cross the cut of a real network, PP-OCRv4's text detection on a page of the demo.
Compression pays on a link if it saves more time there than it takes on both sides.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

os.environ.setdefault("TVM_NUM_THREADS", "1")

import numpy as np
import tvm
from tvm import relax
from tvm.runtime import vm

from zmq_offload.byoc.encoding import WIRES, Wire, decode, encode, wire_types
from zmq_offload.compile import compile_model
from zmq_offload.compile.accuracy import measure_losses
from zmq_offload.compile.build import build
from zmq_offload.compile.target import host_target
from zmq_offload.demo.model import CUT, find_model
from zmq_offload.demo.picture import pages, to_tensor
from zmq_offload.device.model import load

Array = np.ndarray[Any, Any]

SHAPES = ((1, 16, 40, 30), (1, 256, 80, 80))
LINKS = (10, 50, 100)
"""Mbit/s."""


def main() -> None:
    print("| tensor | encoding | bytes | encode | decode |\n|---|---|---|---|---|")
    for shape in SHAPES:
        for wire in WIRES[1:]:
            times, size = kernels(shape, wire)
            print(f"| {shape} | {wire} | {size:,} | {times[0] * 1e6:.0f} µs | {times[1] * 1e6:.0f} µs |")
    print("\n| encoding | bytes | off by at most | zlib -1 leaves | compresses | expands |", end="")
    print(*(f" ms saved at {link} Mbit/s |" for link in LINKS), sep="")
    print("|---|---|---|---|---|---|" + "---|" * len(LINKS))
    for wire in WIRES:
        print(real_maps(wire))


def kernels(shape: tuple[int, ...], wire: Wire) -> tuple[list[float], int]:
    """Seconds to encode and to decode, and the encoded bytes."""
    ty = relax.TensorType(shape, "float32")
    there = compiled([ty], lambda builder, params: encode(builder, params[0], wire))
    back = compiled(wire_types(ty, wire), lambda builder, params: [decode(builder, params, wire)])
    x = tvm.runtime.tensor(np.maximum(np.random.default_rng(0).standard_normal(shape), 0).astype("f4"))
    encoded = list(there(x))
    seconds = [median_time(lambda: there(x)), median_time(lambda: back(*encoded))]
    return seconds, sum(t.numpy().nbytes for t in encoded)


def compiled(types: list[Any], body: Callable[[relax.BlockBuilder, Any], list[Any]]) -> Any:
    builder = relax.BlockBuilder()
    params = [relax.Var(f"p{i}", ty) for i, ty in enumerate(types)]
    with builder.function("main", params):
        with builder.dataflow():
            result = builder.emit_output(relax.Tuple(body(builder, params)))
        builder.emit_func_output(result)
    return vm.VirtualMachine(build(builder.get(), host_target()), tvm.cpu())["main"]


class Listening:
    """A client that keeps what is sent and replies with zeros."""

    def __init__(self) -> None:
        self.sent: list[bytes] = []

    def infer(self, _model: str, inputs: Mapping[str, Array], **options: Any) -> Mapping[str, Array]:
        self.sent = [array.tobytes() for array in inputs.values()]
        for array in options["outputs"].values():
            array[...] = 0
        outputs: Mapping[str, Array] = options["outputs"]
        return outputs


def real_maps(wire: Wire) -> str:
    size = (640, 640)
    x = to_tensor(pages()[0], size)
    shapes = {"x": x.shape}
    with tempfile.TemporaryDirectory() as folder:
        split = compile_model(find_model(), inputs=shapes, cut=CUT, name="ocr", wire=wire, output=Path(folder))
        client = Listening()
        load(split.device, client=client)(x)
        (loss,) = measure_losses(find_model(), split, [{"x": x}], inputs=shapes)
    raw = b"".join(client.sent)
    small = zlib.compress(raw, 1)
    there, back = median_time(lambda: zlib.compress(raw, 1), 5), median_time(lambda: zlib.decompress(small), 5)
    mb = len(raw) / 1e6
    saved = [(len(raw) - len(small)) * 8 / (link * 1e6) - there - back for link in LINKS]
    return (
        f"| {wire} | {len(raw):,} | {loss.absolute:.1e} | {len(small) / len(raw):.0%} | {mb / there:.0f} MB/s | "
        f"{mb / back:.0f} MB/s |" + "".join(f" {s * 1e3:+.0f} of {len(raw) * 8 / link / 1e3:.0f} |"
                                            for s, link in zip(saved, LINKS, strict=True))
    )  # fmt: skip


def median_time(run: Callable[[], object], times: int = 200) -> float:
    run()
    found = []
    for _ in range(times):
        start = time.perf_counter()
        run()
        found.append(time.perf_counter() - start)
    return statistics.median(found)


if __name__ == "__main__":
    main()
