"""The innermost part of convolutions and matrix products: a block of results in registers, summed over everything."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tvm import tirx
from tvm.ir import Expr
from tvm.tirx import ForKind

from zmq_offload.compile.schedules.emit import (
    index,
    lanes,
    local,
    nest,
    pieces,
    ramp,
    sequence,
    splat,
    with_buffers,
)
from zmq_offload.compile.schedules.machine import Machine
from zmq_offload.compile.schedules.tiles import column_vectors


@dataclass(frozen=True, eq=False)
class Block:
    """`rows` x `columns` results: sum over `reduce` of left(row, k) * right(k, first column, width)."""

    machine: Machine
    rows: int
    columns: int
    reduce: Sequence[Expr]
    left: Callable[[int, list[Expr]], Expr]
    right: Callable[[list[Expr], int, int], Expr]
    store: Callable[[int, Expr, Expr], tirx.Stmt]  # row, column, result
    unrolled: bool = False  # few steps, whose loads the rows share: `left` gives vectors already

    def statement(self) -> tirx.Stmt:
        """The block's loops, results stored through `store`."""
        vectors = column_vectors(self.columns, self.machine)
        totals = [local("total", [vectors[-1][0] + vectors[-1][1]]) for _ in range(self.rows)]

        def step(k: list[Expr]) -> tirx.Stmt:
            statements = []
            weights = [self.right(k, offset, width) for offset, width in vectors]
            for row in range(self.rows):
                value = self.left(row, k)
                for (offset, width), weight in zip(vectors, weights, strict=True):
                    total, at = totals[row], ramp(offset, width)
                    spread = value if self.unrolled else splat(value, width)
                    update = tirx.Add(tirx.BufferLoad(total, [at]), tirx.Mul(spread, weight))
                    statements.append(tirx.BufferStore(total, update, [at]))
            return sequence(statements)

        kind = ForKind.UNROLLED if self.unrolled else ForKind.SERIAL
        zero = tirx.FloatImm("float32", 0.0)
        start = [
            tirx.BufferStore(total, splat(zero, width), [ramp(offset, width)])
            for total in totals
            for offset, width in vectors
        ]
        finish = [self._finish(row, total) for row, total in enumerate(totals)]
        return with_buffers(totals, sequence([*start, nest(self.reduce, step, kind), *finish]))

    def _finish(self, row: int, total: tirx.Var) -> tirx.Stmt:
        """Store one row: its columns exactly, whatever the vectors computed beyond them."""
        statements = []
        for start, width, count in pieces(self.columns, self.machine):
            for at in range(start, start + count * width, width):

                def lane(i: Expr, at: int = at) -> tirx.Stmt:
                    value = tirx.BufferLoad(total, [index(at) + i])
                    return self.store(row, index(at) + i, value)

                statements.append(lanes(width, lane))
        return sequence(statements)
