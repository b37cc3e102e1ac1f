"""Time single functions on this machine, for tuning."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import tvm
from tvm import tirx
from tvm.target import Target

from zmq_offload.schedules.rewrite import constant


def arguments(func: tirx.PrimFunc) -> list[tvm.runtime.Tensor] | None:
    """Return random arguments for a function; None if a shape is symbolic."""
    rng = np.random.default_rng(0)
    tensors = []
    for param in func.params:
        shape = [constant(s) for s in getattr(param, "shape", [None])]
        if any(s is None for s in shape):
            return None
        value = np.asarray(rng.random([s or 0 for s in shape]))
        tensors.append(tvm.runtime.tensor(value.astype(str(param.dtype))))
    return tensors


def built(func: tirx.PrimFunc, target: Target) -> Callable[..., object]:
    """Compile a function by itself; the result can be called."""
    main: Callable[..., object] = tvm.compile(func.with_attr("global_symbol", "main"), target)["main"]
    return main


def seconds(
    call: Callable[..., object], tensors: list[tvm.runtime.Tensor], repeat: int = 10, least: float = 0.002
) -> float:
    """Return the shortest of at least `repeat` runs and `least` seconds: other programs only make runs longer."""
    best, spent, runs = float("inf"), 0.0, -1
    while runs < repeat or spent < least:
        start = time.perf_counter()
        call(*tensors)
        took = time.perf_counter() - start
        runs += 1
        if runs:  # the first call loads code and data
            best, spent = min(best, took), spent + took
    return best
