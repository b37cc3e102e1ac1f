"""The micro-kernel of convolutions and matrix products: a tile of results that stays in vector registers.

For each step of the sum, one vector of the right operand is loaded for each vector of columns, one value of the left
operand is broadcast for each row, and a multiply-add updates each vector of results.

Where a multiply-add takes a lane of a vector as its factor (NEON), and the left operand's values of successive steps
are neighbors in memory, one vector of them serves as many steps as it has lanes: a row needs a quarter of the loads.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import tvm
from tvm import tirx
from tvm.ir import Expr, TensorLoad
from tvm.tirx import ForKind

from zmq_offload.schedules.emit import (
    INDEX,
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
from zmq_offload.schedules.rewrite import constant
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

    def factor(self, left: Expr, width: int) -> Expr:
        """Return what `left` returned as the factor of a vector."""
        return left if self.unrolled else splat(left, width)

    def update(self, total: Expr, factor: Expr, right: Expr, width: int) -> Expr:
        """Return a vector of sums after one more step."""
        return tirx.Add(total, tirx.Mul(factor, right))

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

        def step(k: list[Expr]) -> tirx.Stmt:
            lefts = [self.left(row, k) for row in range(self.rows)]
            return self._step(totals, k, lambda row, width: self.factor(lefts[row], width), len(self.vectors()))

        if self.unrolled:
            inner, outer = self.reduce[self.serial :], self.reduce[: self.serial]
            return nest(outer, lambda k: nest(inner, lambda rest: step([*k, *rest]), ForKind.UNROLLED))
        *outer, depth = self.reduce
        size, known = self.machine.lanes, constant(depth)
        if not self.by_lanes or (known is not None and known < size):
            return nest(self.reduce, step)

        def group(k: list[Expr]) -> tirx.Stmt:
            """As many steps as a vector has lanes. A pair of vectors of the right operand is loaded at a time."""
            *above, first = k
            factors = [neighbors(self.left(row, k), size) for row in range(self.rows)]

            def of_lane(lane: int) -> tirx.Stmt:
                at = [*above, first + lane]
                places = [tirx.IntImm("int32", lane)]
                return self._step(totals, at, lambda row, width: tirx.Shuffle([factors[row]], places * width), 2)

            return sequence(map(of_lane, range(size)))

        def steps(k: list[Expr]) -> tirx.Stmt:
            groups = loop(tirx.floordiv(depth, size), lambda g: group([*k, g * size]), "k")
            if known is not None and known % size == 0:
                return groups
            whole = tirx.floordiv(depth, size) * size
            return sequence([groups, loop(depth - whole, lambda i: step([*k, whole + i]), "k")])

        return nest(outer, steps)

    @property
    def by_lanes(self) -> bool:
        """Whether the left operand's values of successive steps can be loaded as a vector, and be factors."""
        if not self.machine.lane_factors or self.dtype != "float32":
            return False
        above = [tirx.Var("k", INDEX) for _ in self.reduce[:-1]]
        k = tirx.Var("k", INDEX)
        here, there = self.left(0, [*above, k]), self.left(0, [*above, k + 1])
        if not isinstance(here, TensorLoad):  # a conversion, for example
            return False
        steps = [b - a for a, b in zip(here.indices, there.indices, strict=True)]
        same = tvm.sym.Analyzer().can_prove_equal
        return all(same(step, index(int(step is steps[-1]))) for step in steps)

    def _step(
        self, totals: Sequence[tirx.Var], k: list[Expr], factor: Callable[[int, int], Expr], together: int
    ) -> tirx.Stmt:
        """One step of the sum. `factor` returns a vector of a row's left operand, of a given width; so many vectors of
        the right operand are in registers `together`."""
        statements = []
        every = self.vectors()
        for first in range(0, len(every), together):
            vectors = every[first : first + together]
            weights = [self.right(k, offset, width) for offset, width in vectors]
            for row in range(self.rows):
                for (offset, width), weight in zip(vectors, weights, strict=True):
                    total, at = totals[row], ramp(offset, width)
                    update = self.update(tirx.BufferLoad(total, [at]), factor(row, width), weight, width)
                    statements.append(tirx.BufferStore(total, update, [at]))
        return sequence(statements)

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


def neighbors(load: TensorLoad, count: int) -> Expr:
    """Return the vector of an element and those after it."""
    return tirx.BufferLoad(load.source, [*load.indices[:-1], ramp(load.indices[-1], count)])
