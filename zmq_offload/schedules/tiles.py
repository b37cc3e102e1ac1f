"""Tile sizes: how many rows and columns of results a micro-kernel keeps in vector registers.

`choose_tile` compares all tiles that fit the registers by an estimate of their cycles, and takes the fastest.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from zmq_offload.schedules.machine import Machine

# Independent multiply-adds that keep both units busy: each takes 4 cycles, and two start per cycle.
IN_FLIGHT = 8
# Most vectors of columns in a tile. With more, fewer than four rows fit, and loading the columns is the bottleneck.
MOST_VECTORS = 4


@dataclass(frozen=True)
class Tile:
    """`rows` x `columns` results in registers; weights are packed in chunks of `columns`."""

    rows: int
    columns: int


def most_rows(machine: Machine, vectors: int) -> int:
    """Rows that fit: a register for each vector of results and of weights, and one for the broadcast value.

    Where a lane is a factor, each row has a vector of factors, and two vectors of weights are loaded at a time.
    """
    if machine.lane_factors:
        return max(1, (machine.registers - 2) // (vectors + 1))
    return max(1, (machine.registers - vectors - 1) // vectors)


def step_cycles(machine: Machine, rows: int, vectors: int) -> float:
    """Estimate the cycles of one step of the sum for a tile.

    A cycle has two multiply-adds and two loads; a tile with too few results waits for the latency of its multiply-adds.
    Half a cycle is the loop itself. Where a lane is a factor, a step loads a part of the vectors of factors, and
    weights in pairs. Such cores start few instructions in a cycle, so each counts.
    """
    products = rows * vectors
    if machine.lane_factors:
        return (max(products, IN_FLIGHT) + rows / machine.lanes + vectors / 2 + 3 / machine.lanes) / 2
    return max(products, rows + vectors, IN_FLIGHT) / 2 + 0.5


def choose_tile(machine: Machine, rows: int | None, columns: int) -> Tile:
    """Choose the tile with the fewest estimated cycles for a result of rows x columns; `rows` is None if symbolic."""
    if rows is None:
        return _tile_for_any_rows(machine, columns)
    candidates = []
    for vectors, width in _widths(machine, columns, MOST_VECTORS * 2 if rows < 4 else MOST_VECTORS):
        heights = range(min(most_rows(machine, vectors), rows), 0, -1)
        candidates += [(_cycles(machine, rows, columns, height, width), Tile(height, width)) for height in heights]
    return min(candidates, key=lambda c: (c[0], -c[1].rows * c[1].columns))[1]


def _widths(machine: Machine, columns: int, most: int) -> list[tuple[int, int]]:
    """Return (vectors, columns) of the tiles that are not wider than the result needs."""
    every = [(vectors, vectors * machine.lanes) for vectors in range(1, most + 1)]
    return [(v, width) for v, width in every if v == 1 or width - machine.lanes < columns]


def _tile_for_any_rows(machine: Machine, columns: int) -> Tile:
    """Return the widest of the tiles that are nearly as fast as any for many rows: it is the best one for few rows."""
    costs = {}
    for vectors, width in _widths(machine, columns, MOST_VECTORS):
        height = most_rows(machine, vectors)
        costs[Tile(height, width)] = _cycles(machine, height * 64, columns, height, width) / height
    nearly = [tile for tile, cost in costs.items() if cost <= 1.02 * min(costs.values())]
    return max(nearly, key=lambda tile: tile.columns)


def _cycles(machine: Machine, rows: int, columns: int, height: int, width: int) -> float:
    """Estimate the cycles of one step of the sum for the whole result."""
    total, blocks = 0.0, 0
    for chunk, chunks in ((width, columns // width), (columns % width, 1)):
        if not chunk or not chunks:
            continue
        vectors = math.ceil(chunk / machine.lanes)
        for tile, tiles in ((height, rows // height), (rows % height, 1)):
            if tile:
                blocks += 1
                total += chunks * tiles * step_cycles(machine, tile, vectors)
    # Each further size of tile is code to compile and to fetch: it has to save something.
    return total * (1.0 + 0.03 * (blocks - 1))


def column_vectors(columns: int, machine: Machine) -> list[tuple[int, int]]:
    """Return (offset, width) of the vectors that cover `columns`; the last may reach further, over zero weights."""
    whole, rest = divmod(columns, machine.lanes)
    vectors = [(i * machine.lanes, machine.lanes) for i in range(whole)]
    if rest:
        vectors.append((whole * machine.lanes, 1 << (rest - 1).bit_length()))
    return vectors
