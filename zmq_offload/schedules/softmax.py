"""Softmax as a tensor expression: one division for a row. (TVM divides each element.)"""

from __future__ import annotations

from collections.abc import Callable

from tvm import te, tirx
from tvm.ir import Expr


def softmax(x: te.Tensor, axis: int) -> te.Tensor:
    """Softmax along `axis`. No power is above e^0, which `vector_math` can tell from the minimum."""
    zero, one = tirx.FloatImm("float32", 0.0), tirx.FloatImm("float32", 1.0)
    rows = [extent for a, extent in enumerate(x.shape) if a != axis]

    def row(at: tuple[Expr, ...]) -> list[Expr]:
        return [i for a, i in enumerate(at) if a != axis]

    def reduced(source: te.Tensor, reducer: Callable[..., Expr], name: str) -> te.Tensor:
        k = te.reduce_axis((0, x.shape[axis]), name="k")
        return te.compute(rows, lambda *at: reducer(source(*at[:axis], k, *at[axis:]), axis=k), name=name)

    largest = reduced(x, te.max, "largest")
    powers = te.compute(x.shape, lambda *at: tirx.exp(tirx.Min(x(*at) - largest(*row(at)), zero)), name="powers")
    total = reduced(powers, te.sum, "total")
    inverse = te.compute(rows, lambda *at: tirx.Div(one, total(*at)), name="inverse")
    return te.compute(x.shape, lambda *at: powers(*at) * inverse(*row(at)), name="softmax")
