"""The micro-kernel of convolutions and matrix products: a tile of results that stays in vector registers.

For each step of the sum, one vector of the right operand is loaded for each vector of columns, one value of the left
operand is broadcast for each row, and a multiply-add updates each vector of results.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tvm import tirx
from tvm.ir import Expr
from tvm.tirx import ForKind

from zmq_offload.schedules.emit import (
    index,
    lanes,
    local,
    loop,
    nest,
    pieces,
    ramp,
    scratch,
    sequence,
    splat,
    with_buffers,
)
from zmq_offload.schedules.machine import Machine
from zmq_offload.schedules.tiles import column_vectors


@dataclass(frozen=True, eq=False)
class MicroKernel:
    """A tile of `rows` x `columns` results: the sum over `reduce` of left(row, k) * right(k, column, width)."""

    machine: Machine
    rows: int
    columns: int
    reduce: Sequence[Expr]
    left: Callable[[int, list[Expr]], Expr]
    right: Callable[[list[Expr], int, int], Expr]
    store: Callable[[Expr, Expr, Expr], tirx.Stmt]  # row, column, result
    rolled_store: bool = False  # store in a loop over rows, because the code of `store` is long
    unrolled: bool = False  # unroll the sum, so that rows share loads; `left` returns vectors
    serial: int = 0  # outer loops of an unrolled sum that stay loops

    dtype = "float32"

    def vectors(self) -> list[tuple[int, int]]:
        """Return (offset, width) of the vectors of a row of results."""
        return column_vectors(self.columns, self.machine)

    def first(self, offset: int, width: int) -> Expr:
        """Return the start of a vector of sums."""
        return splat(tirx.FloatImm("float32", 0.0), width)

    def update(self, total: Expr, left: Expr, right: Expr, width: int) -> Expr:
        """Return a vector of sums after one more step."""
        return tirx.Add(total, tirx.Mul(left if self.unrolled else splat(left, width), right))

    def statement(self) -> tirx.Stmt:
        """Emit the loops of the sum, then a store of each result."""
        vectors = self.vectors()
        totals = [local("total", [vectors[-1][0] + vectors[-1][1]], self.dtype) for _ in range(self.rows)]
        start = [
            tirx.BufferStore(total, self.first(offset, width), [ramp(offset, width)])
            for total in totals
            for offset, width in vectors
        ]
        sums = sequence([*start, self.sums(totals)])
        if self.rolled_store and self.rows > 1:
            return self._rolled(totals, sums)
        finish = [self._finish(index(row), total, index(0)) for row, total in enumerate(totals)]
        return with_buffers(totals, sequence([sums, *finish]))

    def sums(self, totals: Sequence[tirx.Var]) -> tirx.Stmt:
        """Emit the loops of the sum."""
        vectors = self.vectors()

        def step(k: list[Expr]) -> tirx.Stmt:
            statements = []
            weights = [self.right(k, offset, width) for offset, width in vectors]
            for row in range(self.rows):
                value = self.left(row, k)
                for (offset, width), weight in zip(vectors, weights, strict=True):
                    total, at = totals[row], ramp(offset, width)
                    update = self.update(tirx.BufferLoad(total, [at]), value, weight, width)
                    statements.append(tirx.BufferStore(total, update, [at]))
            return sequence(statements)

        if not self.unrolled:
            return nest(self.reduce, step)
        inner = self.reduce[self.serial :]
        return nest(self.reduce[: self.serial], lambda k: nest(inner, lambda rest: step([*k, *rest]), ForKind.UNROLLED))

    def _rolled(self, totals: list[tirx.Var], body: tirx.Stmt) -> tirx.Stmt:
        """Copy the results to memory and store them in a loop over rows, so that a long epilogue is emitted once."""
        vectors = self.vectors()
        stride = vectors[-1][0] + vectors[-1][1]
        together = scratch("results", [self.rows * stride], self.dtype)
        moves = [
            tirx.BufferStore(together, tirx.BufferLoad(total, [ramp(at, width)]), [ramp(row * stride + at, width)])
            for row, total in enumerate(totals)
            for at, width in vectors
        ]
        finish = loop(self.rows, lambda row: self._finish(row, together, row * stride), "row")
        return with_buffers([*totals, together], sequence([body, *moves, finish]))

    def _finish(self, row: Expr, total: tirx.Var, base: Expr) -> tirx.Stmt:
        """Store the columns of one row, without those that the last vector computed beyond them."""
        statements = []
        for start, width, count in pieces(self.columns, self.machine):
            for at in range(start, start + count * width, width):

                def lane(i: Expr, at: int = at) -> tirx.Stmt:
                    return self.store(row, index(at) + i, tirx.BufferLoad(total, [base + at + i]))

                statements.append(lanes(width, lane))
        return sequence(statements)
