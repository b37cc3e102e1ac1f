"""Tile sizes of the kernels that keep a block of results in registers."""

from __future__ import annotations

import math
from dataclasses import dataclass

from zmq_offload.schedules.machine import Machine

# Results of one instruction that must be in flight to keep the multiply-add units busy: latency 4, two a cycle.
IN_FLIGHT = 8
# Vectors of columns a tile may have. More would mean less than four rows, where loading columns is what limits.
MOST_VECTORS = 4


@dataclass(frozen=True)
class Tile:
    """`rows` x `columns` results in registers; `columns` is also how wide the weights are packed."""

    rows: int
    columns: int


def most_rows(machine: Machine, vectors: int) -> int:
    """How many rows fit: a register for each result, one for each vector of weights, one for a broadcast value."""
    return max(1, (machine.registers - vectors - 1) // vectors)


def choose_tile(machine: Machine, rows: int | None, columns: int) -> Tile:
    """The tile that computes a rows x columns result in the fewest cycles; `rows` None is many, but unknown."""
    candidates = []
    for vectors in range(1, MOST_VECTORS * 2 + 1 if rows is not None and rows < 4 else MOST_VECTORS + 1):
        width = vectors * machine.lanes
        if vectors > 1 and width - machine.lanes >= columns:
            break
        limit = most_rows(machine, vectors)
        if rows is None:
            candidates.append((_cycles(machine, limit * 64, columns, limit, width), Tile(limit, width)))
            continue
        heights = range(min(limit, rows), 0, -1)
        candidates += [(_cycles(machine, rows, columns, height, width), Tile(height, width)) for height in heights]
    return min(candidates, key=lambda c: (c[0], -c[1].rows * c[1].columns))[1]


def _cycles(machine: Machine, rows: int, columns: int, height: int, width: int) -> float:
    """Cycles for one step of the sum over the whole result: two multiply-adds and two loads a cycle, and latency."""
    total, blocks = 0.0, 0
    for chunk, chunks in ((width, columns // width), (columns % width, 1)):
        if not chunk or not chunks:
            continue
        vectors = math.ceil(chunk / machine.lanes)
        for tile, tiles in ((height, rows // height), (rows % height, 1)):
            if tile:
                # Half a cycle for the loop itself, shared by what one pass computes.
                blocks += 1
                total += chunks * tiles * (max(tile * vectors, tile + vectors, IN_FLIGHT) / 2 + 0.5)
    # Every block of another size is code to compile and to fetch: it has to save something.
    return total * (1.0 + 0.03 * (blocks - 1))


def column_vectors(columns: int, machine: Machine) -> list[tuple[int, int]]:
    """(offset, width) of the vectors for `columns` results; the last may be wider than what is left (zero weights)."""
    whole, rest = divmod(columns, machine.lanes)
    vectors = [(i * machine.lanes, machine.lanes) for i in range(whole)]
    if rest:
        vectors.append((whole * machine.lanes, 1 << (rest - 1).bit_length()))
    return vectors
