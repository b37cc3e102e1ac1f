"""What this machine can do at best, measured: the arithmetic that a profile compares with.

A kernel compiled by TVM for the same target: on each thread independent chains of multiply-adds in vector registers, so
many that their latency is hidden, and no memory. The best of short runs counts, because what else the machine does only
takes away from it.
"""

from __future__ import annotations

import time

import numpy as np
import tvm
from tvm.script import tirx as T
from tvm.target import codegen

CHAINS = 12
"""Two multiply-adds a cycle of four cycles' latency need eight; AVX2 has registers for no more than fourteen."""

_STEPS = 50_000
_SECONDS = 0.5
_PATIENCE = 3.0


def measured_peak(target: tvm.target.Target, threads: int) -> float:
    """Floating-point operations a second, a multiply-add counting as two, in float32 on `threads` threads."""
    best = _best(target, threads, _SECONDS)
    if threads > 1:
        # Together the threads may do less than alone. But much less, and the machine was busy: then wait for a better
        # moment.
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
        time.sleep(0.002)  # on a busy machine, that is when the system may move the threads apart
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
