"""The rule for products on a GPU's usual cores: tiles in shared memory, and in registers.

A thread block computes a tile of the result. For some steps of the sum at a time it loads what the tile needs of both
operands into shared memory, neighboring threads from neighboring places, and each thread multiplies a column by a row
of what is there, in registers. What the operands are made of (padding, a convolution's windows) is computed while they
are loaded, and what follows the product while the result is stored.
"""

from __future__ import annotations

from collections.abc import Sequence

from tvm import s_tir, tirx

from zmq_offload.compile.cuda.products import (
    Block,
    Loop,
    Product,
    Tile,
    Unsuited,
    chosen,
    inline_consumers,
    inline_producers,
    product_of,
)

TILES = (
    Tile(128, 128, 8, 8, 8, 1.0),
    Tile(64, 128, 8, 8, 8, 0.85),
    Tile(128, 64, 8, 8, 8, 0.85),
    Tile(64, 64, 16, 4, 8, 0.7),
    Tile(32, 64, 16, 4, 4, 0.5),
    Tile(16, 128, 16, 4, 4, 0.45),
    Tile(32, 32, 16, 4, 4, 0.4),
    Tile(16, 64, 16, 2, 4, 0.35),
    Tile(16, 32, 32, 2, 4, 0.3),
    Tile(8, 32, 32, 1, 4, 0.15),
)

VECTOR = 4
_LEAST = 4
"""Rows and columns for which it is a product of matrices; below, one of the operands is a vector."""


def tiled(function: tirx.PrimFunc, tiles: Sequence[Tile] = TILES) -> s_tir.Schedule:
    """Schedule a function with one product. Raises Unsuited for others."""
    schedule = s_tir.Schedule(function)
    product = product_of(schedule)
    if min(product.extents[1:3]) < _LEAST:
        raise Unsuited
    tile = chosen(tiles, product.extents)
    block = product.block
    schedule.pad_einsum(block, [1, tile.rows, tile.columns, tile.depth])
    batch, i, j, k = schedule.get_loops(block)
    i_block, i_thread, i_own = schedule.split(i, [None, tile.rows // tile.thread_rows, tile.thread_rows])
    groups = tile.thread_columns // VECTOR
    j_block, j_group, j_thread, j_own = schedule.split(j, [None, groups, tile.columns // tile.thread_columns, VECTOR])
    k_outer, k_inner = schedule.split(k, [None, tile.depth])
    schedule.reorder(batch, i_block, j_block, j_group, i_thread, j_thread, k_outer, k_inner, i_own, j_own)
    grid = schedule.fuse(i_block, j_block)
    schedule.bind(batch, "blockIdx.y")
    schedule.bind(grid, "blockIdx.x")
    schedule.bind(j_group, "vthread.x")
    schedule.bind(i_thread, "threadIdx.y")
    schedule.bind(j_thread, "threadIdx.x")

    result = schedule.cache_write(block, 0, "local")
    schedule.reverse_compute_at(result, j_thread, preserve_unit_loops=True)
    for number in (0, 1):
        of_rows = number == product.rows
        own = schedule.cache_read(block, number, "local")
        schedule.compute_at(own, k_inner, preserve_unit_loops=True)
        if of_rows:
            schedule.reorder(*reversed(schedule.get_loops(own)[-2:]))
        _last_in_vectors(schedule, own, tile.thread_rows if of_rows else VECTOR)
        shared = _shared(schedule, product, number, own, k_outer, tile)
        inline_producers(schedule, shared)
    inline_consumers(schedule, result)
    if product.extents[2] % VECTOR == 0:
        _last_in_vectors(schedule, result, VECTOR)
    schedule.unroll(i_own)
    schedule.unroll(k_inner)
    schedule.vectorize(j_own)
    schedule.decompose_reduction(block, k_outer)
    return schedule


def _shared(schedule: s_tir.Schedule, product: Product, number: int, reader: Block, at: Loop, tile: Tile) -> Block:
    """Load an operand's part of the tile into shared memory, by all threads of the block, as it lies in memory."""
    of_rows = number == product.rows
    shared = schedule.cache_read(reader, 0, "shared")
    # A column of the operand with rows is read by threads at once: in one row of shared memory.
    if of_rows:
        schedule.transform_layout(shared, ("write", 0), lambda s, i, k: (s, k, i))
    schedule.compute_at(shared, at, preserve_unit_loops=True)
    first, second = schedule.get_loops(shared)[-2:]
    if product.deep[int(not of_rows)] != of_rows:  # the axis that is contiguous in memory goes last
        schedule.reorder(second, first)
        first, second = second, first
    fused = schedule.fuse(first, second)
    _, y, x = schedule.split(fused, [None, tile.rows // tile.thread_rows, tile.columns // tile.thread_columns])
    schedule.bind(y, "threadIdx.y")
    schedule.bind(x, "threadIdx.x")
    schedule.storage_align(shared, 0, axis=-2, factor=32, offset=VECTOR)
    return shared


def _last_in_vectors(schedule: s_tir.Schedule, block: Block, most: int) -> None:
    _, vector = schedule.split(schedule.get_loops(block)[-1], [None, min(VECTOR, most)])
    schedule.vectorize(vector)
