"""Measures the stages of one split: both halves are compiled with their encoding, and run one after the other, and then
as they will: with a broker and a worker.

An estimate from the times of parts does not include how an encoding is fused with the operator before it. So the splits
that look best are compiled and run.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import tvm

from zmq_offload.artifacts.manifest import Manifest
from zmq_offload.compile.api import compile_model
from zmq_offload.device.model import OffloadedModel, load
from zmq_offload.plan.costs import Split, Stages
from zmq_offload.plan.cuttable import Cuttable
from zmq_offload.plan.timing import random_inputs, thread_count
from zmq_offload.plan.turns import measure_turns
from zmq_offload.profile.subject import open_subject
from zmq_offload.protocol.payload import Array

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from zmq_offload.client.options import InferOptions

_NAME = "planned"

_WAIT = 0.004
"""Pause between two stages, in seconds. After waiting for the network, caches are cold and the core is idle; a tight
loop measures up to 10 % too fast."""


def measure_split(
    file: Path,
    model: Cuttable,
    split: Split,
    targets: tuple[tvm.target.Target, tvm.target.Target],
    threads: tuple[int, int],
    repeat: int,
    slowdown: float = 1.0,
) -> Stages:
    """Median times of `repeat` runs. `targets` and `threads` are pairs: the device's and the server's. The device is
    `slowdown` times slower than this machine."""
    cut, until = names_of(model, split)
    with tempfile.TemporaryDirectory(prefix="zmq-offload-plan-") as folder:
        compiled = compile_model(
            file,
            inputs={spec.name: spec.shape for spec in model.imported.inputs},
            cut=cut,
            until=until or None,
            wire=split.wire,
            name=_NAME,
            device_target=targets[0],
            target=targets[1],
            output=folder,
        )
        server = _Server(compiled.subgraphs[0], compiled.manifest, threads)
        arrays = random_inputs(model.imported.inputs)
        with load(compiled.device, client=server) as device, thread_count(threads[0], max(threads)):
            before, rest = _run(device, server, arrays, repeat)
        turns = measure_turns(Path(folder), _NAME, arrays, server.sent, threads, slowdown, repeat)
    factor = turns.device / max(before + rest, 1e-9)
    return Stages(before * factor, turns.compute, rest * factor, turns.server)


def names_of(model: Cuttable, split: Split) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The values of `compile --cut` and `--until` for a split. The second is empty if the server computes all of the
    model's outputs."""
    sent, received = model.crossings[split.start, split.end]
    every = received.tensors == model.points[-1].tensors
    until = () if every else tuple(t.name for t in received.tensors)
    return tuple(t.name for t in sent.tensors), until


class _Server:
    """A client that runs the subgraph in this process, and notes when. `sent` are the last inputs."""

    def __init__(self, folder: Path, manifest: Manifest, threads: tuple[int, int]) -> None:
        subject = open_subject(folder, {}, None, None)
        self._machine = subject.machine()
        self._main = self._machine["main"]
        self._names = [spec.name for spec in subject.inputs]
        self._outputs = [spec.name for spec in manifest.offloaded[0].outputs]
        self._threads = threads
        self.sent: Mapping[str, Array] = {}
        self.began = self.ended = 0.0

    def infer(self, model: str, inputs: Mapping[str, Array], **options: Unpack[InferOptions]) -> Mapping[str, Array]:
        self.began = time.perf_counter()
        device, server = self._threads
        with thread_count(server, device):
            self.sent = {name: np.array(inputs[name]) for name in self._names}
            result = self._main(*map(tvm.runtime.tensor, self.sent.values()))
        time.sleep(_WAIT)
        results = [result] if isinstance(result, tvm.runtime.Tensor) else list(result)
        answer: dict[str, Array] = {n: r.numpy() for n, r in zip(self._outputs, results, strict=True)}
        self.ended = time.perf_counter()
        return answer


def _run(device: OffloadedModel, server: _Server, arrays: Sequence[Array], repeat: int) -> tuple[float, float]:
    """The seconds before the request and after the reply."""
    taken = []
    for at in range(repeat + 2):
        time.sleep(_WAIT)
        start = time.perf_counter()
        device(*arrays)
        end = time.perf_counter()
        if at >= 2:
            taken.append((server.began - start, end - server.ended))
    before, rest = (statistics.median(own) for own in zip(*taken, strict=True))
    return before, rest
