"""Chunks of 16-bit weights, converted to float32 once where many tiles of results read them.

A conversion takes the place of a multiply-add. In a tile of 7 rows that is one in eight.
"""

from __future__ import annotations

from collections.abc import Callable

from tvm import tirx
from tvm.ir import Expr, Var

from zmq_offload.schedules.emit import FlatBuffer, index, lanes, loop, ramp, sequence, vectors, with_buffers
from zmq_offload.schedules.machine import CACHE_BYTES, Machine
from zmq_offload.schedules.rewrite import constant
from zmq_offload.schedules.weights import widened

Load = Callable[[list[Expr], int, int], Expr]
"""Returns a vector of a chunk: the indices of its row, the first column, and the width."""

# Tiles that make up for writing and reading the panel.
_TILES = 4


def with_chunk(machine: Machine, weight: Var, chunk: Expr, tiles: int, body: Callable[[Load], tirx.Stmt]) -> tirx.Stmt:
    """Emit `body` with a function that loads vectors of one chunk of packed weights, which so many tiles read."""

    def direct(k: list[Expr], offset: int, width: int) -> Expr:
        return widened(tirx.BufferLoad(weight, [chunk, *k, ramp(offset, width)]))

    sizes = [constant(s) or 1 for s in weight.shape[1:]]
    panel = FlatBuffer("weights", [index(s) for s in sizes])
    rows = 1
    for size in sizes[:-1]:
        rows *= size
    if str(weight.dtype) == "float32" or tiles < _TILES or rows * sizes[-1] * 4 > CACHE_BYTES:
        return body(direct)

    def convert(row: Expr) -> tirx.Stmt:
        place = [*[index(0)] * (len(sizes) - 2), row]

        def vector(first: Expr, width: int) -> tirx.Stmt:
            def lane(i: Expr) -> tirx.Stmt:
                value = widened(tirx.BufferLoad(weight, [chunk, *place, first + i]))
                return tirx.BufferStore(panel.buffer, value, [row * sizes[-1] + first + i])

            return lanes(width, lane)

        return vectors(index(0), sizes[-1], machine, vector)

    def load(k: list[Expr], offset: int, width: int) -> Expr:
        return panel.load([*k, ramp(offset, width)])

    return with_buffers([panel.buffer], sequence([loop(rows, convert, "k"), body(load)]))
