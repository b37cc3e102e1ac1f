"""Functions of one byte, as a table of 256 bytes: the operator, and the rule that schedules it."""

from __future__ import annotations

from tvm import relax, te, tirx
from tvm.ir import Call, Expr, TensorLoad

from zmq_offload.schedules.emit import elements, index, loop, parallel, product, ramp, splat
from zmq_offload.schedules.machine import Machine
from zmq_offload.schedules.nests import SERIAL_WORK
from zmq_offload.schedules.operators import Array
from zmq_offload.schedules.rewrite import Unsupported, constant, loads
from zmq_offload.schedules.simplify import constant_expr
from zmq_offload.schedules.stages import KERNEL, Stage
from zmq_offload.schedules.tvm_internals import OPAQUE, operator_name

_BYTES = ("int8", "uint8")
_PERMUTE = "llvm.x86.avx512.vpermi2var.qi.512"
WIDTH = 64
"""Bytes that are looked up at once."""


def is_table(values: Array) -> bool:
    """Return whether a constant has a byte for each byte."""
    return values.shape == (256,) and str(values.dtype) in _BYTES


def is_reinterpreted(expr: Expr) -> bool:
    """Return whether `expr` reads int8 as uint8."""
    return operator_name(expr) == "relax.astype" and str(expr.args[0].ty.dtype) == "int8"


def emit(builder: relax.BlockBuilder, data: Expr, values: Array) -> Call:
    """Emit the lookup of each byte of `data`, whose bits are the place in the table."""

    def compute(x: te.Tensor, table: te.Tensor) -> te.Tensor:
        def element(*at: Expr) -> Expr:
            return table[tirx.Cast("int64", tirx.Cast("uint8", x[at]))]

        return te.compute(tuple(x.shape), element, name="lookup", attrs={KERNEL: "lookup"})

    return builder.call_te(
        compute, data, constant_expr(values), primfunc_name_hint="lookup", primfunc_attrs={"op_pattern": OPAQUE}
    )


def lookup(machine: Machine, stage: Stage) -> tirx.Stmt:
    """Schedule a lookup: 64 bytes at once by two permutations where the CPU has them, otherwise one by one."""
    value = stage.value
    if not isinstance(value, TensorLoad):
        raise Unsupported("a lookup of another form")
    table, data = value.source, loads(value)[1].source
    zeros = [index(0)] * max(len(stage.extents) - 1, 0)
    count = product(stage.extents)
    halves = [[tirx.BufferLoad(table, [ramp(first + part * WIDTH, WIDTH)]) for part in (0, 1)] for first in (0, 128)]
    bytes_ = f"{stage.buffer.dtype}x{WIDTH}"

    def one(at: Expr) -> tirx.Stmt:
        place = tirx.Cast("int64", tirx.Cast("uint8", tirx.BufferLoad(data, [*zeros, at])))
        return tirx.BufferStore(stage.buffer, tirx.BufferLoad(table, [place]), [*zeros, at])

    def several(at: Expr) -> tirx.Stmt:
        place = tirx.reinterpret(f"int8x{WIDTH}", tirx.BufferLoad(data, [*zeros, ramp(at, WIDTH)]))
        lower, upper = (tirx.call_llvm_pure_intrin(bytes_, _PERMUTE, low, place, high) for low, high in halves)
        chosen = tirx.Select(place < splat(tirx.const(0, "int8"), WIDTH), upper, lower)
        return tirx.BufferStore(stage.buffer, chosen, [*zeros, ramp(at, WIDTH)])

    def simple() -> tirx.Stmt:
        return parallel([count], lambda at: one(at[0]), elements(stage.extents, unknown=64) > 8 * SERIAL_WORK)

    def vectors() -> tirx.Stmt:
        threads = machine.threads if elements(stage.extents, unknown=64) // WIDTH > SERIAL_WORK else 1
        whole = tirx.floordiv(count + (WIDTH - 1), WIDTH)
        share = tirx.floordiv(whole + (threads - 1), threads)

        def task(part: list[Expr]) -> tirx.Stmt:
            first = part[0] * share
            # The last vector may overlap the one before.
            return loop(
                tirx.Max(tirx.Min(share, whole - first), index(0)),
                lambda v: several(tirx.Min((first + v) * WIDTH, count - WIDTH)),
                "v",
            )

        return parallel([index(threads)], task, threads > 1)

    known = constant(count)
    if not machine.permutes_bytes or (known is not None and known < WIDTH):
        return simple()
    return vectors() if known is not None else tirx.IfThenElse(count >= WIDTH, vectors(), simple())
