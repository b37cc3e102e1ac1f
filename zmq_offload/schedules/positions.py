"""ArgMax and ArgMin of float32 as two reductions that are vector code, each over one number.

TVM's reduction carries a pair, a number and its index, which has no vector code.
"""

from __future__ import annotations

from tvm import te, tirx
from tvm.ir import Expr

_NONE = 2**31 - 1


def first_extreme(x: te.Tensor, axis: int, keepdims: bool, largest: bool, dtype: str) -> te.Tensor:
    """The index of the first largest (or smallest) element along `axis`, or of the first NaN.

    The extreme is NaN if an element is, and equals none. So the second reduction finds the NaN.
    """
    rows = [extent for a, extent in enumerate(x.shape) if a != axis]

    def along(name: str) -> tirx.IterVar:
        return te.reduce_axis((0, x.shape[axis]), name=name)

    reducer = te.max if largest else te.min
    j, k = along("j"), along("k")
    extreme = te.compute(rows, lambda *at: reducer(x(*at[:axis], j, *at[axis:]), axis=j), name="extreme")

    def candidate(at: tuple[Expr, ...]) -> Expr:
        value = x(*at[:axis], k, *at[axis:])
        here = tirx.Cast("int32", k.var)
        equal = tirx.Select(tirx.EQ(value, extreme(*at)), here, tirx.IntImm("int32", _NONE))
        return tirx.Select(value <= tirx.FloatImm("float32", float("inf")), equal, here)

    found = te.compute(rows, lambda *at: te.min(candidate(at), axis=k), name="found")
    kept = [1 if a == axis else extent for a, extent in enumerate(x.shape)] if keepdims else rows

    def place(at: tuple[Expr, ...]) -> list[Expr]:
        return [i for a, i in enumerate(at) if a != axis] if keepdims else list(at)

    return te.compute(kept, lambda *at: tirx.Cast(dtype, found(*place(at))), name="index")
