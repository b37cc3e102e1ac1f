"""Recurrent networks with int8 weights: each step quantizes its state to int8, row by row, and sums in int32.

A row's scale is its largest magnitude over 127, and its zero point is 0: a state has values of both signs. The weights
have a scale for each column, and a zero point if one of them is not 0.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from tvm import tirx
from tvm.ir import Expr, Var

from zmq_offload.schedules.emit import INDEX, lanes, local, loop, pieces, scratch, sequence, vectors, with_buffers
from zmq_offload.schedules.integers import dot_product
from zmq_offload.schedules.integers.dot_product import DotProduct
from zmq_offload.schedules.integers.kernel import IntegerKernel, Weights, group_of, operand_buffer
from zmq_offload.schedules.machine import Machine
from zmq_offload.schedules.operators import Array
from zmq_offload.schedules.recurrent.cell import Recurrence
from zmq_offload.schedules.recurrent.tiles import Phase, columns_of

_MOST = 127.0
# Adding 1.5 * 2^23 rounds to an integer, in the low bits of the sum. TVM calls the C library to round each lane.
_ROUND, _ROUND_BITS = 12582912.0, 0x4B400000


def _f(value: float) -> Expr:
    return tirx.FloatImm("float32", value)


def packed_width(phase: Phase, machine: Machine) -> int:
    """Return the columns of a packed chunk: those that its vectors of sums cover."""
    offset, width = dot_product.dot_product(machine, "int8").vectors(phase.columns, machine)[-1]
    return offset + width


def pack(weight: Array, recurrence: Recurrence, phase: Phase, machine: Machine) -> Array:
    """Pack int8 weights (directions, gates * hidden, hidden) as `dot_product.pack` does, a set for each chunk."""
    columns = weight[:, columns_of(recurrence, phase)]  # direction, chunk, column, k
    sets = columns.reshape(-1, phase.columns, 1, recurrence.hidden)
    return dot_product.pack(sets, dot_product.dot_product(machine, "int8"), packed_width(phase, machine))


def pack_columns(values: Array, recurrence: Recurrence, phase: Phase, machine: Machine) -> Array:
    """Pack what each column has, (directions, gates * hidden), in the order of the weights, as one vector."""
    return np.concatenate([values[:, columns_of(recurrence, phase)].ravel(), np.zeros(machine.lanes, values.dtype)])


@dataclass(frozen=True, eq=False)
class QuantizedState:
    """The states of all rows (directions * batch) as int8, with their scales; and their products with the weights."""

    machine: Machine
    hidden: int
    rows: Expr
    operands: Mapping[str, Var]  # weight, scales and maybe zeros
    packed: bool

    @cached_property
    def dot(self) -> DotProduct:
        return dot_product.dot_product(self.machine, "int8")

    @property
    def _stride(self) -> int:
        return self.dot.steps(self.hidden) * self.dot.group

    @cached_property
    def _values(self) -> Var:
        return operand_buffer("quantized", self.dot, self.rows * self._stride)

    @cached_property
    def _numbers(self) -> Var:
        """The scale of each row, and the sum of its values."""
        return scratch("scales", [self.rows * 2])

    @property
    def buffers(self) -> list[Var]:
        return [self._values, self._numbers]

    def product(
        self,
        phase: Phase,
        direction: Expr,
        chunk: Expr,
        start: Expr,
        first: Expr,
        height: int,
        store: Callable[[Expr, Expr, Expr], tirx.Stmt],
    ) -> tirx.Stmt:
        """Multiply `height` rows from `first` on by the columns of the units from `start` on, and store real values."""
        place = direction * phase.chunks + chunk
        weights = Weights(self.operands["weight"], self.dot)

        def right(k: list[Expr], at: int, size: int) -> Expr:
            if self.packed:
                return weights.load(place, k[0], at, size)
            gate, unit = divmod(at, phase.units)
            return tirx.BufferLoad(weights.buffer, [direction, start + (gate * self.hidden + unit), k[0]])

        def column(name: str, c: Expr) -> Expr:
            if self.packed:
                return tirx.BufferLoad(self.operands[name], [place * phase.columns + c])
            unit = start + tirx.floordiv(c, phase.units) * self.hidden + tirx.floormod(c, phase.units)
            return tirx.BufferLoad(self.operands[name], [direction, unit])

        def scaled(r: Expr, c: Expr, value: Expr) -> tirx.Stmt:
            real, at = tirx.Cast("float32", value), (first + r) * 2
            if "zeros" in self.operands:
                real = real - column("zeros", c) * tirx.BufferLoad(self._numbers, [at + 1])
            return store(r, c, real * (tirx.BufferLoad(self._numbers, [at]) * column("scales", c)))

        return IntegerKernel(
            self.machine,
            height,
            phase.columns,
            [tirx.IntImm(INDEX, self.dot.steps(self.hidden))],
            lambda r, k: group_of(self.dot, self._values, [(first + r) * self._stride + k[0] * self.dot.group]),
            right,
            scaled,
            dot=self.dot,
            start=weights.start(place) if self.packed else None,
        ).statement()

    def quantize(self, row: Expr, load: Callable[[Expr], Expr]) -> tirx.Stmt:
        """Quantize a row, of which `load` returns an element."""
        top, factor = local("top", [1]), local("factor", [1])
        zero = tirx.IntImm(INDEX, 0)
        largest = tirx.BufferLoad(top, [zero])

        def moved(unit: Expr) -> Expr:
            return load(unit) * tirx.BufferLoad(factor, [zero]) + _f(_ROUND)

        def store(first: Expr, width: int) -> tirx.Stmt:
            def lane(i: Expr) -> tirx.Stmt:
                bits = tirx.reinterpret("int32", moved(first + i)) - tirx.IntImm("int32", _ROUND_BITS)
                value = self.dot.convert(tirx.Cast("int8", bits))
                return tirx.BufferStore(self._values, value, [row * self._stride + first + i])

            return lanes(width, lane)

        statements = [
            self._reduced(top, lambda unit: tirx.abs(load(unit)), tirx.Max),
            tirx.BufferStore(factor, tirx.Select(largest > _f(0.0), tirx.Div(_f(_MOST), largest), _f(0.0)), [zero]),
            tirx.BufferStore(self._numbers, largest * _f(1.0 / _MOST), [row * 2]),
            vectors(tirx.IntImm(INDEX, 0), self.hidden, self.machine, store),
        ]
        if "zeros" in self.operands:
            total = local("total", [1])
            statements += [
                self._reduced(total, lambda unit: moved(unit) - _f(_ROUND), tirx.Add),
                tirx.BufferStore(self._numbers, tirx.BufferLoad(total, [zero]), [row * 2 + 1]),
            ]
            return with_buffers([top, factor, total], sequence(statements))
        return with_buffers([top, factor], sequence(statements))

    def _reduced(self, into: Var, value: Callable[[Expr], Expr], combine: type) -> tirx.Stmt:
        """Combine the values of all units, starting with 0."""
        zero = tirx.IntImm(INDEX, 0)

        def run(start: int, width: int, count: int) -> tirx.Stmt:
            part = local("part", [width])

            def clear(lane: Expr) -> tirx.Stmt:
                return tirx.BufferStore(part, _f(0.0), [lane])

            def step(v: Expr) -> tirx.Stmt:
                def lane(i: Expr) -> tirx.Stmt:
                    both = combine(tirx.BufferLoad(part, [i]), value(start + v * width + i))
                    return tirx.BufferStore(part, both, [i])

                return lanes(width, lane)

            def fold(half: int) -> tirx.Stmt:
                def lane(i: Expr) -> tirx.Stmt:
                    both = combine(tirx.BufferLoad(part, [i]), tirx.BufferLoad(part, [i + half]))
                    return tirx.BufferStore(part, both, [i])

                return lanes(half, lane)

            halves = [width >> i for i in range(1, width.bit_length())]
            total = combine(tirx.BufferLoad(into, [zero]), tirx.BufferLoad(part, [zero]))
            last = tirx.BufferStore(into, total, [zero])
            body = [lanes(width, clear), loop(count, step, "v"), *(fold(half) for half in halves), last]
            return with_buffers([part], sequence(body))

        first = tirx.BufferStore(into, _f(0.0), [zero])
        return sequence([first, *(run(*piece) for piece in pieces(self.hidden, self.machine))])
