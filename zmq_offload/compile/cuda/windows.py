"""The rules for one result a thread: small sums and extremes with many results, as depthwise convolutions and pooling
have, and functions without a sum.

Each thread computes one result, and neighboring threads neighboring ones. What the window is made of is computed while
it is read, and what follows the sum while the result is stored.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from tvm import s_tir, tirx

from zmq_offload.compile.cuda.products import (
    MANY_BLOCKS,
    WARP,
    Block,
    Loop,
    Unsuited,
    inline_consumers,
    inline_producers,
    only_reduction,
)

MOST_THREADS = 256
_MOST_STEPS = 4096
"""A longer sum is for all threads of a block together."""

_STEPS_FOR_EACH_RESULT = 1 / 16
"""At most as many steps as this for each result: fewer results do not fill a GPU with one thread each."""

_UNROLLED = 32


def windowed(function: tirx.PrimFunc) -> s_tir.Schedule:
    """Schedule a function with one small reduction. Raises Unsuited for others."""
    schedule = s_tir.Schedule(function)
    block = only_reduction(schedule)
    spatial, summed = _extents(schedule, block)
    results, steps = prod(spatial), prod(summed)
    if steps > min(_MOST_STEPS, max(_UNROLLED, results * _STEPS_FOR_EACH_RESULT)):
        raise Unsuited
    inline_producers(schedule, block)
    own, sums = _sorted(schedule, block)
    schedule.reorder(*own, *sums)
    thread = _in_threads(schedule, own, results)
    result = schedule.cache_write(block, 0, "local")
    schedule.reverse_compute_at(result, thread, preserve_unit_loops=True)
    inline_consumers(schedule, result)
    if steps <= _UNROLLED:
        for loop in sums:
            schedule.unroll(loop)
    schedule.decompose_reduction(block, sums[0])
    return schedule


def mapped(function: tirx.PrimFunc) -> s_tir.Schedule:
    """Schedule a function without a sum, and with one result. Raises Unsuited for others."""
    schedule = s_tir.Schedule(function)
    blocks = schedule.get_child_blocks(schedule.get_sblock("root"))
    last = [block for block in blocks if not schedule.get_consumers(block)]
    if len(last) != 1:
        raise Unsuited
    for block in blocks:
        if any(iterator.iter_type != tirx.IterVar.DataPar for iterator in schedule.get(block).iter_vars):
            raise Unsuited
    results = prod(_extents(schedule, last[0])[0])
    inline_producers(schedule, last[0])
    if schedule.get_producers(last[0]):
        raise Unsuited
    loops = schedule.get_loops(last[0]) or [schedule.add_unit_loop(last[0])]
    _in_threads(schedule, loops, results)
    return schedule


def _in_threads(schedule: s_tir.Schedule, loops: Sequence[Loop], results: int) -> Loop:
    """Give each turn of some loops to a thread: so many threads a block that the blocks fill a GPU, in whole warps."""
    # Of one result TVM forgets which of the threads has it.
    count = 1 if results == 1 else min(MOST_THREADS, max(WARP, results // MANY_BLOCKS // WARP * WARP))
    grid, thread = schedule.split(schedule.fuse(*loops), [None, count])
    schedule.bind(grid, "blockIdx.x")
    schedule.bind(thread, "threadIdx.x")
    return thread


def _extents(schedule: s_tir.Schedule, block: Block) -> tuple[list[int], list[int]]:
    """The extents of a block's results, and of its sum. Raises Unsuited for symbolic ones."""
    spatial: list[int] = []
    summed: list[int] = []
    for iterator in schedule.get(block).iter_vars:
        if not isinstance(iterator.dom.extent, tirx.IntImm):
            raise Unsuited
        (summed if iterator.iter_type == tirx.IterVar.CommReduce else spatial).append(int(iterator.dom.extent))
    return spatial, summed


def _sorted(schedule: s_tir.Schedule, block: Block) -> tuple[list[Loop], list[Loop]]:
    """The loops over a block's results, and those of its sum."""
    spatial: list[Loop] = []
    summed: list[Loop] = []
    for loop, iterator in zip(schedule.get_loops(block), schedule.get(block).iter_vars, strict=True):
        (summed if iterator.iter_type == tirx.IterVar.CommReduce else spatial).append(loop)
    return spatial, summed
