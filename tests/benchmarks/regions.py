"""Measures the gain of two regions in flight at once: `python -m tests.benchmarks.regions`.

The model has two heads on two served models and a branch on the device; two workers have one thread each, over
loopback. The same bundle is called in turns with a client that can submit, and with one that cannot and makes one
request after the other.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

os.environ.setdefault("TVM_NUM_THREADS", "1")

from tests.support import onnx_models
from tests.support.processes import eventually, running_broker, running_workers
from zmq_offload import Client, load
from zmq_offload.compile import Region, compile_model

SIZES = (8, 64, 160)
ROUNDS = 100


class OneByOne:
    """A client that cannot submit."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def infer(self, model: str, inputs: Mapping[str, Any], **options: Any) -> Any:
        return self._client.infer(model, inputs, **options)


def main() -> None:
    print("| picture | bytes sent | one by one | together |\n|---|---|---|---|")
    for size in SIZES:
        with tempfile.TemporaryDirectory() as name:
            measure(size, Path(name))


def measure(size: int, folder: Path) -> None:
    shape = (1, 3, size, size)
    regions = [Region("left", ["features"], ["left"]), Region("right", ["features"], ["right"])]
    path = onnx_models.branches(folder / "m.onnx")
    compiled = compile_model(path, inputs={"x": shape}, regions=regions, output=folder)
    options = ("--repository", str(folder / "repository"), "--processes", "2", "--threads", "1")
    with (
        running_broker() as fabric,
        running_workers(fabric.backend, *options),
        Client(fabric.frontend) as client,
    ):
        eventually(lambda: [m["workers"] for m in client.models()] == [2, 2], timeout=60)
        models = [load(compiled.device, client=c) for c in (OneByOne(client), client)]
        x = onnx_models.random(*shape)
        times: list[list[float]] = [[], []]
        for _ in range(ROUNDS):
            for model, own in zip(models, times, strict=True):
                start = time.perf_counter()
                model(x)
                own.append(time.perf_counter() - start)
        sent = sum(t.nbytes for part in compiled.manifest.offloaded for t in part.inputs)
        one, together = (statistics.median(own[10:]) * 1e3 for own in times)
        print(f"| {size} x {size} | {sent:,} | {one:.2f} ms | {together:.2f} ms |", flush=True)


if __name__ == "__main__":
    main()
