"""How many floating-point operations each function of a library does: counted while it is compiled.

An exported library has no loops left that could be counted, so the numbers are written beside it and `zmq-offload
profile` finds them there. They are TVM's estimate of the fused functions before anybody schedules them: the work that
is asked for, whatever a schedule makes of it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeAlias

import tvm
from tvm import tirx
from tvm.ir.instrument import pass_instrument
from tvm.s_tir.analysis import estimate_tir_flops

Count: TypeAlias = tuple[int, int]
"""Operations of one call: so many, and so many more for each row of a symbolic batch."""


@contextmanager
def counting() -> Iterator[dict[str, Count]]:
    """The counts of what the body compiles, by function; complete when it ends."""
    counts: dict[str, Count] = {}

    @pass_instrument
    class Counter:
        def run_after_pass(self, mod: Any, info: Any) -> None:
            # From here on the functions keep their names, and they are not scheduled yet.
            if str(info.name) == "FuseTIR":
                for gv, function in mod.functions.items():
                    found = count(function) if isinstance(function, tirx.PrimFunc) else None
                    if found is not None:
                        counts[str(gv.name_hint)] = found

    outer = tvm.transform.PassContext.current()
    with tvm.transform.PassContext(opt_level=outer.opt_level, config=outer.config, instruments=[Counter()]):
        yield counts


def count(function: tirx.PrimFunc) -> Count | None:
    """None where it cannot be told: several symbolic extents, work that does not grow with the one in a straight line,
    or statements that TVM's estimate does not know."""
    try:
        symbols = {var.name: var for var in _symbols(function)}
        if not symbols:
            return _estimate(function), 0
        if len(symbols) > 1:
            return None
        (symbol,) = symbols.values()
        one, two, nine = (_estimate(_with_extent(function, symbol, rows)) for rows in (1, 2, 9))
    except Exception:  # whatever TVM cannot count: compiling goes on
        return None
    each = two - one
    return (one - each, each) if nine == one + 8 * each else None


def flops_of(counts: Mapping[str, Any], function: str, rows: int | None) -> int | None:
    """What `counts`, as it was written beside a library, says of one call; None if it says nothing.

    `rows` is the extent of the symbolic batch, None where there is none or others beside it.
    """
    found = counts.get(function)
    if not isinstance(found, list | tuple) or len(found) != 2 or not all(type(n) is int for n in found):
        return None
    fixed, per_row = found
    if per_row and rows is None:
        return None
    return int(fixed + per_row * (rows or 0))


def _symbols(function: tirx.PrimFunc) -> Iterator[Any]:
    for parameter in function.params:
        for extent in getattr(parameter.ty, "shape", None) or ():
            if isinstance(extent, tirx.Var):
                yield extent


def _with_extent(function: tirx.PrimFunc, symbol: Any, rows: int) -> tirx.PrimFunc:
    """The function for one extent: TVM specializes parameters, and one of them has it as a dimension."""
    parameter = next(p for p in function.params if any(symbol.same_as(d) for d in getattr(p.ty, "shape", None) or ()))
    kind = parameter.ty
    shape = [tirx.IntImm("int64", rows) if symbol.same_as(extent) else extent for extent in kind.shape]
    buffer = tirx.decl_buffer(shape, kind.dtype, parameter.name, elem_offset=kind.elem_offset)
    return function.specialize({parameter: buffer})


def _estimate(function: tirx.PrimFunc) -> int:
    return int(estimate_tir_flops(function.body))
