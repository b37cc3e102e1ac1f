"""Count the floating-point operations of each function while a library is compiled.

An exported library has no loops to count, so the numbers are written next to it, for `zmq-offload profile`. They are
TVM's estimates for the fused functions before scheduling: the work that is asked for, independent of the schedule.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TypeAlias

import tvm
from tvm import tirx
from tvm.ir.instrument import pass_instrument
from tvm.s_tir.analysis import estimate_tir_flops

from zmq_offload.schedules.recurrent.operators import operation_count

Count: TypeAlias = tuple[int, int]
"""Operations of one call: a fixed number, and a number for each row of a symbolic batch."""


@contextmanager
def counting() -> Iterator[dict[str, Count]]:
    """Count the operations of the functions that the body compiles. The counts are complete when it ends."""
    counts: dict[str, Count] = {}

    @pass_instrument
    class Counter:
        def run_after_pass(self, mod: tvm.IRModule, info: tvm.transform.PassInfo) -> None:
            # After this pass functions keep their names. They are not scheduled yet.
            if str(info.name) == "FuseTIR":
                for gv, function in mod.functions.items():
                    found = count(function) if isinstance(function, tirx.PrimFunc) else None
                    if found is not None:
                        counts[str(gv.name_hint)] = found

    outer = tvm.transform.PassContext.current()
    with tvm.transform.PassContext(opt_level=outer.opt_level, config=outer.config, instruments=[Counter()]):
        yield counts


def count(function: tirx.PrimFunc) -> Count | None:
    """The operations of a function; None if there are several symbolic extents, if the work is not linear in the only
    one, or if TVM's estimate does not support a statement."""
    if (steps := operation_count(function)) is not None:
        return _of_steps(*steps)
    try:
        symbols = {var.name: var for var in _symbols(function)}
        if not symbols:
            return _estimate(function), 0
        if len(symbols) > 1:
            return None
        (symbol,) = symbols.values()
        one, two, nine = (_estimate(_with_extent(function, symbol, rows)) for rows in (1, 2, 9))
    except Exception:  # TVM cannot count it; compiling continues
        return None
    each = two - one
    return (one - each, each) if nine == one + 8 * each else None


def _of_steps(each: int, extents: Sequence[tvm.ir.Expr]) -> Count | None:
    """The operations of a recurrent network with `each` multiply-adds for each step and batch entry."""
    known = [int(e) for e in extents if isinstance(e, tirx.IntImm)]
    operations = 2 * each * math.prod(known)
    symbolic = len(extents) - len(known)
    return None if symbolic > 1 else (0, operations) if symbolic else (operations, 0)


def _symbols(function: tirx.PrimFunc) -> Iterator[tirx.Var]:
    for parameter in function.params:
        for extent in getattr(parameter.ty, "shape", None) or ():
            if isinstance(extent, tirx.Var):
                yield extent


def _with_extent(function: tirx.PrimFunc, symbol: tirx.Var, rows: int) -> tirx.PrimFunc:
    """The function for one extent. TVM specializes parameters, so the symbol is replaced in the shape of one."""
    parameter = next(p for p in function.params if any(symbol.same_as(d) for d in getattr(p.ty, "shape", None) or ()))
    kind = parameter.ty
    shape = [tirx.IntImm("int64", rows) if symbol.same_as(extent) else extent for extent in kind.shape]
    buffer = tirx.decl_buffer(shape, kind.dtype, parameter.name, elem_offset=kind.elem_offset)
    return function.specialize({parameter: buffer})


def _estimate(function: tirx.PrimFunc) -> int:
    return int(estimate_tir_flops(function.body))
