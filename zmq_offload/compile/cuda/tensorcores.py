"""The rule for products of float16 on tensor cores, which multiply squares of 16 and sum them in float32.

A thread block loads a tile of both operands into shared memory, its warps multiply squares of it, and the sums go
through shared memory to where they are wanted.
"""

from __future__ import annotations

from collections.abc import Sequence

import tvm
from tvm import s_tir, tirx
from tvm_ffi import structural_map

from zmq_offload.compile.cuda.intrinsics import FILL, LOAD_A, LOAD_B, MULTIPLY, STORE, register
from zmq_offload.compile.cuda.products import (
    WARP,
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

SQUARE = 16

TILES = (
    Tile(64, 128, 32, 2, 4, 1.0),
    Tile(64, 64, 32, 2, 2, 0.8),
    Tile(32, 64, 32, 1, 2, 0.6),
    Tile(32, 32, 32, 1, 1, 0.45),
    Tile(16, 64, 16, 1, 1, 0.3),
    Tile(16, 32, 16, 1, 1, 0.2),
)
"""Tiles whose operands and sums fit into 48 KB of shared memory together. The sums need more of it than either operand:
TVM would use an operand's again for them, and fails since the datatypes differ."""

_LEAST = 8
"""Rows, columns and steps below which most of a square would be padding."""


def on_tensor_cores(function: tirx.PrimFunc, tiles: Sequence[Tile] = TILES) -> s_tir.Schedule:
    """Schedule a function with one product of float16. Raises Unsuited for others."""
    schedule = s_tir.Schedule(function)
    product = product_of(schedule)
    if product.rows:
        schedule = s_tir.Schedule(_operands_swapped(function))
        product = product_of(schedule)
    if product.rows or min(product.extents[1:]) < _LEAST:
        raise Unsuited
    statement = schedule.get(product.block)
    if {str(region.source.ty.dtype) for region in statement.reads} != {"float16"}:
        raise Unsuited
    if str(statement.writes[0].source.ty.dtype) != "float32":
        raise Unsuited
    tile = chosen(tiles, product.extents)
    schedule.pad_einsum(product.block, [1, tile.rows, tile.columns, tile.depth])
    batch, i, j, k = schedule.get_loops(product.block)
    i, i_square = schedule.split(i, [None, SQUARE])
    j, j_square = schedule.split(j, [None, SQUARE])
    k, k_square = schedule.split(k, [None, SQUARE])
    schedule.reorder(i, j, k, i_square, j_square, k_square)
    squares = schedule.blockize(i_square)
    down, across = tile.rows // SQUARE // tile.thread_rows, tile.columns // SQUARE // tile.thread_columns
    i_block, i_warp, i_own = schedule.split(i, [None, down, tile.thread_rows])
    j_block, j_warp, j_own = schedule.split(j, [None, across, tile.thread_columns])
    k_outer, k_inner = schedule.split(k, [None, tile.depth // SQUARE])
    schedule.reorder(batch, i_block, j_block, i_warp, j_warp, k_outer, k_inner, i_own, j_own)
    grid, warp = schedule.fuse(i_block, j_block), schedule.fuse(i_warp, j_warp)
    schedule.bind(batch, "blockIdx.y")
    schedule.bind(grid, "blockIdx.x")
    schedule.bind(warp, "threadIdx.y")

    for number in (0, 1):
        shared = _shared(schedule, product, number, squares, k_outer, down * across)
        inline_producers(schedule, shared)
    fragments = [schedule.cache_read(squares, n, f"wmma.matrix_{'ab'[n]}") for n in (0, 1)]
    for fragment in fragments:
        schedule.compute_at(fragment, k_inner)
    result = schedule.cache_write(squares, 0, "shared")
    schedule.storage_align(result, 0, axis=-2, factor=SQUARE, offset=4)
    sums = schedule.cache_write(squares, 0, "wmma.accumulator")
    schedule.reverse_compute_at(sums, warp)
    schedule.reverse_compute_at(result, warp)
    start = schedule.decompose_reduction(squares, k_outer)

    register()
    for fragment, name in zip(fragments, (LOAD_A, LOAD_B), strict=True):
        schedule.tensorize(_in_squares(schedule, fragment), name)
    schedule.tensorize(_in_squares(schedule, sums), STORE)
    schedule.tensorize(schedule.get_loops(schedule.get_child_blocks(start)[0])[-2], FILL)
    schedule.tensorize(schedule.get_loops(product.block)[-3], MULTIPLY)
    inline_consumers(schedule, result)
    fused = schedule.fuse(*schedule.get_loops(result)[-2:])
    _, lane = schedule.split(fused, [None, WARP])
    schedule.bind(lane, "threadIdx.x")
    return schedule


def _in_squares(schedule: s_tir.Schedule, block: Block) -> Loop:
    """Split the last two loops of a block into squares, and return the loop outside of one."""
    i, j = schedule.get_loops(block)[-2:]
    i_outer, i_inner = schedule.split(i, [None, SQUARE])
    j_outer, j_inner = schedule.split(j, [None, SQUARE])
    schedule.reorder(i_outer, j_outer, i_inner, j_inner)
    return i_inner


def _shared(schedule: s_tir.Schedule, product: Product, number: int, reader: Block, at: Loop, warps: int) -> Block:
    """Load an operand's part of the tile into shared memory, by all threads of the block, as it lies in memory."""
    shared = schedule.cache_read(reader, number, "shared")
    schedule.compute_at(shared, at)
    first, second = schedule.get_loops(shared)[-2:]
    if product.deep[number] != (number == 0):
        schedule.reorder(second, first)
        first, second = second, first
    fused = schedule.fuse(first, second)
    _, warp, lane = schedule.split(fused, [None, warps, WARP])
    schedule.bind(warp, "threadIdx.y")
    schedule.bind(lane, "threadIdx.x")
    schedule.storage_align(shared, 0, axis=-2, factor=SQUARE, offset=8)
    return shared


def _operands_swapped(function: tirx.PrimFunc) -> tirx.PrimFunc:
    """The function with B * A for A * B in its sum: tensor cores take the operand with the rows first."""

    def swapped(block: s_tir.SBlock) -> tvm.Object:
        body = block.body
        if block.init is None or not isinstance(body, tirx.BufferStore) or len(block.reads) != 2:
            return block
        value = body.value
        if not isinstance(value, tirx.Add) or not isinstance(value.b, tirx.Mul):
            return block
        store = tirx.BufferStore(body.buffer, value.a + value.b.b * value.b.a, body.indices)
        return s_tir.SBlock(
            block.iter_vars,
            list(reversed(block.reads)),
            block.writes,
            block.name_hint,
            store,
            block.init,
            block.alloc_buffers,
            block.match_buffers,
            block.annotations,
        )

    return function.with_body(structural_map(function.body, (s_tir.SBlock, swapped)))
