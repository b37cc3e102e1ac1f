"""Measures the peak arithmetic rate of this machine, to which a profile compares its functions.

TVM compiles a kernel for the same target. Each thread computes independent chains of multiply-adds in vector registers,
enough of them to hide their latency, and uses no memory. The best of short runs counts, because other work on the
machine can only lower the rate.
"""

from __future__ import annotations

import time

import numpy as np
import tvm
from tvm.script import tirx as T
from tvm.target import codegen

CHAINS = 12
"""Two multiply-adds per cycle with a latency of four cycles need eight; AVX2 has registers for fourteen."""

_STEPS = 50_000
_SECONDS = 0.5
_PATIENCE = 3.0


def measured_peak(target: tvm.target.Target, threads: int) -> float:
    """Float32 operations per second on `threads` threads. A multiply-add counts as two."""
    best = _best(target, threads, _SECONDS)
    if threads > 1:
        # Threads that run together may each be slower than one alone. If they are much slower, the machine was busy,
        # and measuring goes on for a while.
        alone = _best(target, 1, _SECONDS)
        end = time.perf_counter() + _PATIENCE
        while best < 0.8 * threads * alone and time.perf_counter() < end:
            best = max(best, _best(target, threads, _SECONDS))
    return best


def _best(target: tvm.target.Target, threads: int, seconds: float) -> float:
    lanes = max(1, int(codegen.llvm_get_vector_width(target)) // 32)
    run = tvm.compile(_kernel(threads, lanes), target=target)["peak"]
    factor, addend = (tvm.runtime.tensor(np.full(lanes, value, np.float32)) for value in (0.5, 0.1))
    out = tvm.runtime.empty((threads * CHAINS * lanes,), "float32", tvm.cpu())
    shortest = float("inf")
    end = time.perf_counter() + seconds
    while (start := time.perf_counter()) < end:
        run(factor, addend, out)
        shortest = min(shortest, time.perf_counter() - start)
        time.sleep(0.002)  # gives the system an occasion to move threads to different cores
    return 2 * threads * CHAINS * lanes * _STEPS / shortest


def _kernel(threads: int, lanes: int) -> tvm.tirx.PrimFunc:
    size = CHAINS * lanes
    chains, steps = CHAINS, _STEPS

    @T.prim_func  # type: ignore[untyped-decorator]  # TVM has no types, and this is its language
    def peak(  # type: ignore[no-untyped-def]
        factor: T.Buffer((lanes,), "float32"),  # type: ignore[valid-type]
        addend: T.Buffer((lanes,), "float32"),  # type: ignore[valid-type]
        out: T.Buffer((threads * size,), "float32"),  # type: ignore[valid-type]
    ):
        T.func_attr({"global_symbol": "peak", "tirx.noalias": True})
        for thread in T.parallel(threads):
            total = T.alloc_buffer((size,), "float32", scope="local")
            for chain in T.unroll(chains):
                for lane in T.vectorized(lanes):
                    total[chain * lanes + lane] = addend[lane]
            for _step in range(steps):
                for chain in T.unroll(chains):
                    for lane in T.vectorized(lanes):
                        total[chain * lanes + lane] = total[chain * lanes + lane] * factor[lane] + addend[lane]
            for chain in T.unroll(chains):
                for lane in T.vectorized(lanes):
                    out[thread * size + chain * lanes + lane] = total[chain * lanes + lane]

    return peak
