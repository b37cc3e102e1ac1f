"""Tiles of recurrent products: chunks of hidden units with all their gates, and the packing of the weights for them."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from tvm import te, tirx
from tvm.ir import Expr

from zmq_offload.schedules.machine import Machine
from zmq_offload.schedules.operators import Array
from zmq_offload.schedules.recurrent.cell import Recurrence
from zmq_offload.schedules.tiles import MOST_VECTORS, most_rows, step_cycles


@dataclass(frozen=True)
class Phase:
    """One product of the state: `count` gates from `first` on, in `chunks` chunks of `units` hidden units.

    `offset` is the place of its weights among all packed ones, `rows` the batch entries of a tile.
    """

    first: int
    count: int
    units: int
    chunks: int
    rows: int
    offset: int

    @property
    def columns(self) -> int:
        """Columns of a chunk: each gate has one for each unit."""
        return self.count * self.units


def columns_of(recurrence: Recurrence, phase: Phase) -> Array:
    """Return the columns (chunks, phase.columns) of ONNX's weights of one direction that each chunk has."""
    starts = np.minimum(np.arange(phase.chunks) * phase.units, recurrence.hidden - phase.units)
    units = starts[:, None, None] + np.arange(phase.units)
    gates = (phase.first + np.arange(phase.count))[None, :, None]
    return (gates * recurrence.hidden + units).reshape(phase.chunks, phase.columns)


def vector_width(machine: Machine, hidden: int) -> int:
    """Return the widest vector that is not longer than the state."""
    return next(w for w in machine.widths if w <= hidden)


def phases(recurrence: Recurrence, machine: Machine, batch: int | None) -> list[Phase]:
    """Choose the tiles of each phase; `batch` is None if it is symbolic."""
    found, offset = [], 0
    width = vector_width(machine, recurrence.hidden)
    # 16-bit products need a register for what they add.
    spare = int(recurrence.quantized and machine.integers == "pmaddwd")
    lane_factors = machine.lane_factors and not recurrence.quantized
    products = replace(machine, registers=machine.registers - spare, lane_factors=lane_factors)
    for first, count in recurrence.phases:
        options = []
        for many in range(1, max(MOST_VECTORS * 2 // count, 1) + 1):
            units = many * width
            if units > recurrence.hidden:
                break
            chunks = -(-recurrence.hidden // units)
            registers = -(-count * units // machine.lanes)
            most = most_rows(products, registers)
            heights = [most] if batch is None else range(min(most, batch), 0, -1)
            options += [
                (chunks * _cycles(products, batch or 64 * rows, rows, registers), -units * rows, units, chunks, rows)
                for rows in heights
            ]
        _, _, units, chunks, rows = min(options)
        found.append(Phase(first, count, units, chunks, rows, offset))
        offset += recurrence.directions * chunks * recurrence.hidden * count * units
    return found


def _cycles(machine: Machine, batch: int, rows: int, registers: int) -> float:
    """Estimate the cycles of one step of the sum, as `tiles.choose_tile` does."""
    sizes = [(rows, batch // rows), (batch % rows, 1)]
    blocks = [many * step_cycles(machine, tile, registers) for tile, many in sizes if tile and many]
    return sum(blocks) * (1.0 + 0.03 * (len(blocks) - 1))


def pack(weight: Array, recurrence: Recurrence, machine: Machine, batch: int | None) -> Array:
    """Pack ONNX's recurrent weights (directions, gates * hidden, hidden) as one vector: for each phase
    (directions, chunks, hidden, gates, units), and zeros after the last, since vectors may read past a chunk."""
    parts = [
        np.ascontiguousarray(weight[:, columns_of(recurrence, phase)].transpose(0, 1, 3, 2)).ravel()
        for phase in phases(recurrence, machine, batch)
    ]
    return np.concatenate([*parts, np.zeros(machine.lanes, weight.dtype)])


def packed(weight: te.Tensor, recurrence: Recurrence, phase: Phase) -> te.Tensor:
    """A phase of `pack` at run time, for weights that are not constant."""
    hidden = recurrence.hidden
    size = recurrence.directions * phase.chunks * hidden * phase.columns

    def element(i: Expr) -> Expr:
        unit, i = tirx.floormod(i, phase.units), tirx.floordiv(i, phase.units)
        gate, i = tirx.floormod(i, phase.count), tirx.floordiv(i, phase.count)
        k, i = tirx.floormod(i, hidden), tirx.floordiv(i, hidden)
        chunk, direction = tirx.floormod(i, phase.chunks), tirx.floordiv(i, phase.chunks)
        start = tirx.min(chunk * phase.units, hidden - phase.units)
        return weight[direction, (phase.first + gate) * hidden + start + unit, k]

    return te.compute((size,), element, name="packed")
