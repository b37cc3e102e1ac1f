"""The micro-kernel of integer products: as `microkernel`, with int32 sums and groups of 8-bit weights.

The left operand is read in groups: of the input in place, or of a copy, where values need another datatype or a shift,
or where the last group of a row would reach over the end of the memory.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from tvm import tirx
from tvm.ir import Expr, Var

from zmq_offload.schedules.emit import index, lanes, ramp, scratch, splat, vectors
from zmq_offload.schedules.integers.dot_product import DotProduct
from zmq_offload.schedules.machine import Machine
from zmq_offload.schedules.microkernel import MicroKernel

# Bytes behind a copy that a vector store or the last group may touch.
SLACK = 64


@dataclass(frozen=True, eq=False)
class IntegerKernel(MicroKernel):
    """A tile of int32 sums; `left` returns groups, `right` vectors of groups of weights."""

    dot: DotProduct = field(kw_only=True)
    start: Callable[[int, int], Expr] | None = None  # the start of a vector of sums; None for 0

    dtype = "int32"

    def vectors(self) -> list[tuple[int, int]]:
        return self.dot.vectors(self.columns, self.machine)

    def first(self, offset: int, width: int) -> Expr:
        return self.start(offset, width) if self.start else splat(tirx.IntImm("int32", 0), width)

    def factor(self, left: Expr, width: int) -> Expr:
        return self.dot.spread(left, width)

    def update(self, total: Expr, factor: Expr, right: Expr, width: int) -> Expr:
        return self.dot.update(total, factor, right, width)


@dataclass(frozen=True, eq=False)
class Weights:
    """Weights from `dot_product.pack`."""

    buffer: Var
    dot: DotProduct

    def load(self, chunk: Expr, step: Expr, offset: Expr | int, width: int) -> Expr:
        """Load the groups of `width` columns."""
        group = self.dot.group
        return tirx.BufferLoad(self.buffer, [chunk, step, index(0), ramp(offset * group, width * group)])

    def start(self, chunk: Expr, column: Expr | int = 0) -> Callable[[int, int], Expr] | None:
        """Return a function that loads the start of a vector of sums from `column` on; None if all are 0."""
        if not self.dot.shift:
            return None
        steps = self.buffer.shape[1] - self.dot.extra

        def load(offset: int, width: int) -> Expr:
            at = [chunk, steps, index(0), ramp((column + offset) * 4, width * 4)]
            return tirx.reinterpret(f"int32x{width}" if width > 1 else "int32", tirx.BufferLoad(self.buffer, at))

        return load


def operand_buffer(name: str, dot: DotProduct, size: Expr | int) -> Var:
    """Declare a buffer for activations as the instructions read them."""
    return scratch(name, [size + SLACK], dot.operand)


def wide_vectors(machine: Machine, dot: DotProduct, count: int, body: Callable[[Expr, int], tirx.Stmt]) -> tirx.Stmt:
    """Emit `body(first, width)` for vectors of activations as the instructions read them."""
    return vectors(index(0), count, Machine(machine.lanes * (2 if dot.operand == "int16" else 4), 1, 1), body)


def copy_run(
    machine: Machine, dot: DotProduct, count: int, load: Callable[[Expr], Expr], into: Var, at: Expr
) -> tirx.Stmt:
    """Copy `count` neighboring activations, from `load`, to `into` from position `at` on."""

    def run(first: Expr, width: int) -> tirx.Stmt:
        return lanes(width, lambda i: tirx.BufferStore(into, dot.convert(load(first + i)), [at + first + i]))

    return wide_vectors(machine, dot, count, run)


def group_of(dot: DotProduct, buffer: Var, at: list[Expr]) -> Expr:
    """Load the group that starts at `at`."""
    return dot.left(tirx.BufferLoad(buffer, [*at[:-1], ramp(at[-1], dot.group)]))
