"""How an expression depends on one index: whether it can be vectorized, where it must be split, which axes merge."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import tvm
from tvm import tirx
from tvm.ir import Expr, TensorLoad, Var

from zmq_offload.schedules.emit import product
from zmq_offload.schedules.rewrite import Rewriter, children, constant, loads, same, uses, walk

_COMPARE = (tirx.LT, tirx.LE, tirx.GT, tirx.GE, tirx.EQ, tirx.NE)


@dataclass(frozen=True)
class AccessPattern:
    """How an expression reads memory along an index variable."""

    contiguous: bool = True  # each load is a vector load, or one element for all lanes
    linear: bool = True  # vectors can compute it, possibly with gathers


def access_pattern(expr: Expr, var: Var) -> AccessPattern:
    """Return the access pattern of `expr` along `var`, on a range without `breakpoints`."""
    contiguous = linear = True
    for load in loads(expr):
        for at, position in enumerate(load.indices):
            stride = stride_of(position, var)
            if stride is None:
                contiguous = linear = False
            elif stride and (at + 1 < len(load.indices) or stride != 1):
                contiguous = False
    for e in walk(expr):
        if isinstance(e, _COMPARE) and uses(e, var) and not _is_tensor_value(e):
            contiguous = linear = False
    return AccessPattern(contiguous, linear)


def _is_tensor_value(comparison: Expr) -> bool:
    """Return whether a comparison is of data (floating point) and not of indices (integers)."""
    return not str(comparison.a.ty).startswith("int")


def stride_of(expr: Expr, var: Var) -> int | None:
    """Return the coefficient of `var` in `expr`; None if `expr` is not linear in it."""
    if isinstance(expr, Var):
        return int(expr.same_as(var))
    if isinstance(expr, tirx.Add | tirx.Sub):
        a, b = stride_of(expr.a, var), stride_of(expr.b, var)
        if a is None or b is None:
            return None
        return a + b if isinstance(expr, tirx.Add) else a - b
    if isinstance(expr, tirx.Mul):
        for factor, other in ((expr.a, expr.b), (expr.b, expr.a)):
            if (value := constant(factor)) is not None:
                inner = stride_of(other, var)
                return None if inner is None else inner * value
    return None if uses(expr, var) else 0


def breakpoints(expr: Expr, var: Var, extent: int) -> list[int]:
    """Return where comparisons of `var` with literals change their result, as a partition of [0, extent]."""
    cuts = {0, extent}
    for e in walk(expr):
        if isinstance(e, _COMPARE) and (at := _threshold(e, var)) is not None:
            cuts |= {c for c in (at, at + 1) if 0 < c < extent}
    return sorted(cuts)


def _threshold(comparison: Expr, var: Var) -> int | None:
    """Return the value of `var` at which both sides are equal; None if it is not a literal."""
    difference = tvm.sym.Analyzer().simplify(comparison.a - comparison.b) if uses(comparison, var) else None
    if difference is None:
        return None
    stride = stride_of(difference, var)
    rest = tvm.sym.Analyzer().simplify(Rewriter({var: tirx.IntImm(str(var.ty), 0)}).visit(difference))
    value = constant(rest)
    if stride in (1, -1) and value is not None:
        return -value * stride
    return None


class _DecideComparisons(Rewriter):
    """Replaces comparisons that have one result over the whole range that the analyzer knows."""

    def __init__(self, analyzer: tvm.sym.Analyzer) -> None:
        super().__init__({})
        self._analyzer = analyzer

    def visit(self, e: Expr) -> Expr:
        if isinstance(e, _COMPARE) and str(e.a.ty).startswith("int") and not loads(e):
            simple = self._analyzer.simplify(e)
            if constant(simple) is not None:
                return simple
        return super().visit(e)


def specialized(expr: Expr, var: Var, start: int, stop: int) -> Expr:
    """Return `expr` for `var` in [start, stop), with the comparisons that this decides folded."""
    if not any(isinstance(e, _COMPARE) for e in walk(expr)):
        return expr
    analyzer = tvm.sym.Analyzer()
    analyzer.bind(var, tvm.ir.Range.from_min_extent(tirx.IntImm(str(var.ty), start), stop - start))
    return _DecideComparisons(analyzer).visit(expr)


def mergeable(expr: Expr, outer: Var, inner: Var, extent: Expr) -> bool:
    """Return whether two neighboring axes of the result are neighbors in every load, so that they can merge."""
    paired = 0
    for load in loads(expr):
        places = [i for i, e in enumerate(load.indices) if uses(e, outer) or uses(e, inner)]
        if places and not _is_pair(load, places, outer, inner, extent):
            return False
        paired += len(places)
    occurrences = sum(isinstance(e, Var) and (e.same_as(outer) or e.same_as(inner)) for e in walk(expr))
    return bool(occurrences == paired)


def _is_pair(load: TensorLoad, places: Sequence[int], outer: Var, inner: Var, extent: Expr) -> bool:
    """Return whether the two are whole indices of a load, with only merged axes (index 0) between them."""
    if len(places) != 2 or not load.indices[places[0]].same_as(outer) or not load.indices[places[1]].same_as(inner):
        return False
    if any(constant(i) != 0 for i in load.indices[places[0] + 1 : places[1]]):
        return False
    size = product(load.source.shape[places[0] + 1 : places[1] + 1])
    return same(size, extent)


def operation_count(expr: Expr) -> int:
    """Estimate the number of operations in `expr`."""
    return 1 + sum(operation_count(c) for c in children(expr)) if children(expr) else 0
