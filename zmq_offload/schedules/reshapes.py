"""Reshapes and concatenations with symbolic extents, so that TVM fuses them or drops them.

TVM makes a kernel of each reshape. It fuses the kernel, or finds that it only copies its operand as it is, so that the
result is another view of the operand's memory. With symbolic extents it finds neither of most: it does not see that
`i // S` and `i % S` visit each element once, and takes a kernel whose indices have a symbol for opaque.
"""

from __future__ import annotations

from collections.abc import Sequence

import tvm
import tvm_ffi
from tvm import relax, te, tirx, topi
from tvm.ir import BaseFunc, Call, Expr
from tvm.relax import BlockBuilder
from tvm.tirx.buffer import BufferType

from zmq_offload.schedules.rewrite import Unsupported, loads
from zmq_offload.schedules.stages import parse
from zmq_offload.schedules.tvm_internals import OPAQUE

_INJECTIVE = 2


def legalized(builder: BlockBuilder, call: Call) -> Expr:
    """A reshape as a kernel that may be fused; as a view of its operand if that kernel would divide by a symbol."""
    given, shape = (
        list(e.values) if isinstance(e, relax.ShapeExpr) else None for e in (call.args[0].ty.shape, call.ty.shape)
    )
    if given is None or shape is None or all(isinstance(extent, tirx.IntImm) for extent in (*given, *shape)):
        return builder.call_te(topi.reshape, call.args[0], call.args[1], primfunc_name_hint="reshape")
    if tvm_ffi.structural_equal(call.args[0].ty.shape, call.ty.shape):
        return call.args[0]
    groups = _groups(given, shape)
    if groups is None:
        return call

    def compute(x: te.Tensor) -> te.Tensor:
        return te.compute(shape, lambda *at: x[_places(groups, given, shape, at)], name="T_reshape", tag="injective")

    return builder.call_te(compute, call.args[0], primfunc_name_hint="reshape")


def annotated(mod: tvm.IRModule) -> tvm.IRModule:
    """Tell FuseOps which kernels it may fuse, in place of TVM's `AnnotateTIROpPattern`.

    TVM takes a kernel for opaque that has a symbol in an index, as of a concatenation along a symbolic axis. A pattern
    that a kernel has before is kept.
    """
    own = {gv.name_hint for gv, function in mod.functions.items() if _pattern(function) is not None}
    mod = relax.transform.AnnotateTIROpPattern()(mod)
    changed = tvm.IRModule(mod.functions, attrs=mod.attrs)
    for gv, function in mod.functions.items():
        if gv.name_hint not in own and _pattern(function) == OPAQUE and _reads_in_place(function):
            changed[gv] = function.with_attr("op_pattern", _INJECTIVE)
    return changed


def _pattern(function: BaseFunc) -> int | None:
    known = isinstance(function, tirx.PrimFunc) and function.attrs is not None and "op_pattern" in function.attrs
    return int(function.attrs["op_pattern"]) if known else None


def _reads_in_place(function: tirx.PrimFunc) -> bool:
    """Whether a kernel has symbolic extents and one stage, whose indices are computed from its axes alone."""
    extents = [e for p in function.params if isinstance(p.ty, BufferType) for e in p.ty.shape]
    if all(isinstance(extent, tirx.IntImm) for extent in extents):
        return False
    try:
        stages = parse(function).stages
    except Unsupported:
        return False
    (stage,) = stages if len(stages) == 1 else (None,)
    if stage is None or stage.reduce_axes or stage.annotations:
        return False
    return not any(loads(index) for load in loads(stage.value) for index in load.indices)


_Group = tuple[list[int], list[int]]
"""Axes of an operand, and those of the result that have the same elements. One of the lists has one axis at most."""


def _groups(given: Sequence[Expr], shape: Sequence[Expr]) -> list[_Group] | None:
    """The smallest groups of axes that a reshape merges or splits, if only static extents are divided by."""
    analyzer, groups = tvm.sym.Analyzer(), list[_Group]()
    i = j = 0
    while i < len(given) or j < len(shape):
        group = _group(analyzer, given, shape, i, j)
        if group is None:
            return None
        groups.append(group)
        i, j = i + len(group[0]), j + len(group[1])
    return groups


def _group(analyzer: tvm.sym.Analyzer, given: Sequence[Expr], shape: Sequence[Expr], i: int, j: int) -> _Group | None:
    sizes = [(1, 1), (0, 1), (1, 0), *((1, n) for n in range(2, 6)), *((n, 1) for n in range(2, 6))]
    for m, n in sizes:
        if i + m > len(given) or j + n > len(shape):
            continue
        if not all(isinstance(extent, tirx.IntImm) for extent in (*given[i + 1 : i + m], *shape[j + 1 : j + n])):
            continue
        if analyzer.can_prove_equal(_product(given[i : i + m]), _product(shape[j : j + n])):
            return list(range(i, i + m)), list(range(j, j + n))
    return None


def _product(extents: Sequence[Expr]) -> Expr:
    product: Expr = tirx.const(1, "int64")
    for extent in extents:
        product = product * extent
    return product


def _places(
    groups: Sequence[_Group], given: Sequence[Expr], shape: Sequence[Expr], at: Sequence[Expr]
) -> tuple[Expr, ...]:
    """The indices of the operand for the indices `at` of the result."""
    places = []
    for own, others in groups:
        place: Expr = tirx.const(0, "int64")
        for axis in others:
            place = place * shape[axis] + at[axis]
        found = []
        for axis in reversed(own[1:]):
            found.append(tirx.floormod(place, given[axis]))
            place = tirx.floordiv(place, given[axis])
        places += [*([place] if own else []), *reversed(found)]
    return tuple(places)
