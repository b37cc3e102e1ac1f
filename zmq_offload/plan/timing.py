"""Times the parts of a model. It needs TVM's runtime, not its compiler."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np

from zmq_offload.plan.costs import WIRES, CutPoint, Times, Wire
from zmq_offload.protocol.payload import Array
from zmq_offload.protocol.tensors import TensorSpec
from zmq_offload.runtime.threads import Affinity, configure_pool
from zmq_offload.runtime.tvm_library import tensor

Calls: TypeAlias = dict[str, Callable[[], object]]
"""What is timed: the parts `before_N` and `after_N` of cut N, the `whole` model, and each `coder`."""


class thread_count:
    """A context in which TVM has `threads` threads, and `restored` ones after it."""

    def __init__(self, threads: int, restored: int) -> None:
        self._threads, self._restored = threads, restored

    def __enter__(self) -> None:
        configure_pool(Affinity.BIG_CORES, self._threads)

    def __exit__(self, *_: object) -> None:
        configure_pool(Affinity.BIG_CORES, self._restored)


def calls_of(machine: Any, arguments: Mapping[str, Sequence[TensorSpec]]) -> Calls:
    """A call for each of these functions of a virtual machine, with inputs that fit."""

    def caller(name: str, specs: Sequence[TensorSpec]) -> Callable[[], object]:
        function, tensors = machine[name], [tensor(array) for array in random_inputs(specs)]
        return lambda: function(*tensors)

    return {name: caller(name, specs) for name, specs in arguments.items()}


def timed(calls: Calls, repeat: int, seconds: float) -> dict[str, float]:
    """The median time of each call. Calls take turns."""
    for call in calls.values():
        call()
    times: dict[str, list[float]] = {name: [] for name in calls}
    end = time.perf_counter() + seconds
    for at in range(repeat):
        if at >= 3 and time.perf_counter() > end:
            break
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            times[name].append(time.perf_counter() - start)
    return {name: statistics.median(own) for name, own in times.items()}


def random_inputs(tensors: Sequence[TensorSpec]) -> list[Array]:
    """Arrays for a signature: random floats, and zeros for integers, which may be indices."""
    rng = np.random.default_rng(0)
    return [
        rng.standard_normal(t.shape).astype(t.dtype) if t.dtype.kind == "f" else np.zeros(t.shape, t.dtype)
        for t in tensors
    ]


def coder(what: str, wire: Wire, extents: Sequence[int]) -> str:
    """The name of the function that does `what`, "encode" or "decode", for one tensor."""
    return f"{what}_{wire}_{'x'.join(map(str, extents))}"


def times_of(points: Sequence[CutPoint], taken: Mapping[str, float]) -> Times:
    """What the calls of `Calls` took, by cut."""
    last = len(points) - 1
    whole = taken["whole"]

    def coding(what: str, wire: Wire) -> tuple[float, ...]:
        return tuple(
            sum(taken.get(coder(what, wire, t.shape), 0.0) for t in point.tensors if t.datatype == "FP32")
            for point in points
        )

    return Times(
        (0.0, *(taken[f"before_{at}"] for at in range(1, last)), whole),
        (whole, *(taken[f"after_{at}"] for at in range(1, last)), 0.0),
        {wire: coding("encode", wire) for wire in WIRES},
        {wire: coding("decode", wire) for wire in WIRES},
    )
