"""Running sums and products along an axis that is not the last: vectors of columns, one row after another.

TVM's scan goes down one column at a time: each of its steps loads a cache line for one number.
"""

from __future__ import annotations

from tvm import te, tirx
from tvm.ir import Expr, Var

from zmq_offload.schedules.emit import elements, index, lanes, local, loop, parallel, pieces, sequence, with_buffers
from zmq_offload.schedules.machine import Machine
from zmq_offload.schedules.nests import SERIAL_WORK
from zmq_offload.schedules.rewrite import constant


def scan(x: te.Tensor, kind: type, start: int, exclusive: bool, machine: Machine) -> te.Tensor:
    """The scan along the last axis but one. `kind` is tirx.Add or tirx.Mul, and `start` its identity.

    The extent of the last axis is known when compiling.
    """
    *outer, rows, columns = x.shape
    dtype = str(x.dtype)
    threads = elements(x.shape, unknown=64) // machine.lanes > SERIAL_WORK

    def vector(data: Var, out: Var, at: list[Expr], first: Expr, width: int) -> tirx.Stmt:
        """One vector of columns, over all rows; the totals stay in registers."""
        total = local("total", [width], dtype)

        def row(k: Expr) -> tirx.Stmt:
            def add(lane: Expr) -> tirx.Stmt:
                both = kind(tirx.BufferLoad(total, [lane]), tirx.BufferLoad(data, [*at, k, first + lane]))
                return tirx.BufferStore(total, both, [lane])

            def store(lane: Expr) -> tirx.Stmt:
                return tirx.BufferStore(out, tirx.BufferLoad(total, [lane]), [*at, k, first + lane])

            return sequence(lanes(width, step) for step in ((store, add) if exclusive else (add, store)))

        clear = lanes(width, lambda lane: tirx.BufferStore(total, tirx.const(start, dtype), [lane]))
        return with_buffers([total], sequence([clear, loop(rows, row, "k")]))

    def body(data: Var, out: Var) -> tirx.Stmt:
        def run(start: int, width: int, count: int) -> tirx.Stmt:
            extents = [*outer, index(count)]
            return parallel(extents, lambda p: vector(data, out, p[:-1], start + p[-1] * width, width), threads)

        return sequence(run(*piece) for piece in pieces(constant(columns) or 1, machine))

    return te.extern([x.shape], [x], lambda ins, outs: body(ins[0], outs[0]), dtype=dtype, name="scan")
