"""Operators whose results have computed shapes: Reshape, Expand, Range, Tile and others, with symbolic extents."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx
from tvm import ir, relax, te, tirx

from zmq_offload.byoc.extents import Extent, expression, scaled
from zmq_offload.compile.operators.node import Node, by_tvm, dtype_of, refuse
from zmq_offload.compile.operators.shape_arithmetic import Ratio
from zmq_offload.compile.operators.tvm_importer import Builder, Expr
from zmq_offload.errors import InvalidArgument
from zmq_offload.protocol.payload import Array

op = relax.op


def shape(dims: Sequence[Extent]) -> relax.ShapeExpr:
    return relax.ShapeExpr([expression(d) for d in dims])


def listed(node: Node, dims: Sequence[Extent]) -> str:
    return "[" + ",".join(node.extents.text(d) for d in dims) + "]"


def reshape(bb: Builder, node: Node) -> Expr:
    """Refuse a shape that may have another number of elements: TVM would read past the tensor's end."""
    x, before, given = node.inputs[0], node.dims(0), node.numbers(1)
    extents, target = node.extents, list(given)
    if not node.attributes.flag("allowzero"):
        target = [before[axis] if extent == 0 else extent for axis, extent in enumerate(target)]
    total = extents.product(before)
    if -1 in target:
        open_ = target.index(-1)
        rest = _without_common(node, before, [d for i, d in enumerate(target) if i != open_])
        if rest is None:
            raise _other_count(node, before, given)
        target[open_] = rest
    elif not extents.equal(total, extents.product(target)):
        raise _other_count(node, before, given)
    return op.reshape(x, shape(target))


def _without_common(node: Node, before: Sequence[Extent], others: Sequence[Extent]) -> Extent | None:
    """The product of extents over the product of others; None if it is no whole number for all symbols."""
    remaining, under = list(before), []
    for extent in others:
        same = next((i for i, d in enumerate(remaining) if node.extents.equal(d, extent)), None)
        if same is None:
            under.append(extent)
        else:
            del remaining[same]
    divisor = node.extents.product(under)
    return None if divisor == 0 else node.extents.quotient(node.extents.product(remaining), divisor)


def _other_count(node: Node, before: Sequence[Extent], given: Sequence[Extent]) -> InvalidArgument:
    extents = node.extents
    what = f"it reshapes {listed(node, before)} to {listed(node, given)}"
    if not any(extents.symbols(d) for d in given) and -1 not in given:
        return node.refused(
            f"{what}: the file has numbers where the symbolic extents would have to be",
            "give the input a fixed shape, or export with -1",
        )
    total, new = extents.product(before), extents.product([d for d in given if d != -1])
    advice = node.scope.to_equal(total, new) if -1 not in given else _to_divide(node, total, new)
    return node.refused(f"{what}: only the run tells whether the numbers of elements are the same", advice)


def _to_divide(node: Node, total: Extent, by: Extent) -> str:
    for size in (2, 4, 8, 16, 32, 64, 128):
        if node.extents.quotient(scaled(total, size), scaled(by, size)) is not None:
            return node.scope.to_divide([total, by], size)
    return node.scope.to_fix([total, by])


def expand(bb: Builder, node: Node) -> Expr:
    x, before, target = node.inputs[0], node.dims(0), node.numbers(1)
    rank = max(len(before), len(target))
    ours, theirs = ([1] * (rank - len(dims)) + list(dims) for dims in (before, target))
    result = [broadcast(node, a, b) for a, b in zip(ours, theirs, strict=True)]
    return x if same(node, before, result) else op.broadcast_to(x, shape(result))


def broadcast(node: Node, a: Extent, b: Extent) -> Extent:
    """The extent that two become. Raises InvalidArgument if only the run tells."""
    if a == 1 or node.extents.equal(a, b):
        return b
    if b == 1:
        return a
    if isinstance(a, int) and isinstance(b, int):
        raise node.refused(f"the extents {a} and {b} do not go together", "export the model again")
    # A number above 1 has to be the other extent: 1 is what a symbol seldom is.
    raise node.refused(
        f"only the run tells whether the extents {node.extents.text(a)} and {node.extents.text(b)} are equal",
        node.scope.to_equal(a, b),
    )


def same(node: Node, a: Sequence[Extent], b: Sequence[Extent]) -> bool:
    return len(a) == len(b) and all(node.extents.equal(x, y) for x, y in zip(a, b, strict=True))


def constant_of_shape(bb: Builder, node: Node) -> Expr:
    given = node.attributes.get("value")
    number = np.zeros(1, np.float32) if given is None else onnx.numpy_helper.to_array(given)
    return op.full(shape(node.numbers(0)), relax.const(number.reshape(-1)[0], str(number.dtype)), str(number.dtype))


def range_(bb: Builder, node: Node) -> Expr:
    """Each element is computed from its place, as ONNX defines it."""
    ends = [node.known(index) for index in range(3)]
    if any(value is None for value in ends) or all(v is not None and v.numbers is not None for v in ends):
        for index in range(3):
            node.constant(index)
        return by_tvm(bb, node)
    values = [value for value in ends if value is not None]
    kind = values[0].dtype
    scalars = [value.elements.reshape(-1)[0] for value in values]
    if kind.startswith("float"):
        whole = [s.above if isinstance(s, Ratio) and s.below == 1 else None for s in scalars]
        if any(s is None for s in whole):
            raise node.refused("its number of elements is a fraction of an extent", node.scope.to_fix(scalars))
        scalars = whole
    start, limit, delta = scalars
    if not isinstance(delta, int) or delta == 0:
        raise node.refused("its step is a symbolic extent", node.scope.to_fix([delta]))
    extents = node.extents
    span = extents.normal(limit - start if delta > 0 else start - limit)
    length = extents.floor_div(extents.normal(span + (abs(delta) - 1)), abs(delta))
    if not extents.at_least(length, 0):
        length = tirx.Max(expression(length), tirx.IntImm("int64", 0))
    if kind == "int64" and start == 0 and delta == 1:
        return op.arange(0, expression(length), 1, "int64")

    def numbers(first: ir.Expr, number: ir.Expr) -> te.Tensor:
        return te.compute((number,), lambda i: tirx.Cast(kind, first + i * delta), name="range", tag="injective")

    return bb.emit_te(numbers, expression(start), expression(length), primfunc_name_hint="range")


def empty_result(node: Node, x: Expr, dims: Sequence[Extent]) -> Expr | None:
    """A result without elements, if one of its extents is 0. TVM takes a 0 for "all", or for an error."""
    return op.zeros(shape(dims), dtype_of(x)) if any(d == 0 for d in dims if isinstance(d, int)) else None


def tile(bb: Builder, node: Node) -> Expr:
    repeats = node.numbers(1)
    dims = [node.extents.product(pair) for pair in zip(repeats, node.dims(0), strict=True)]
    nothing = empty_result(node, node.inputs[0], dims)
    if nothing is not None:
        return nothing
    if all(isinstance(r, int) for r in repeats):
        return by_tvm(bb, node)
    x, before = node.inputs[0], node.dims(0)
    apart: list[Extent] = [e for d in before for e in (1, d)]
    wide: list[Extent] = [e for r, d in zip(repeats, before, strict=True) for e in (r, d)]
    x = bb.normalize(op.broadcast_to(bb.normalize(op.reshape(x, shape(apart))), shape(wide)))
    return op.reshape(x, shape([node.extents.product([r, d]) for r, d in zip(repeats, before, strict=True)]))


def pad(bb: Builder, node: Node, pads: Sequence[Extent]) -> Expr:
    """Pad by symbolic numbers, with a constant. Negative ones cut."""
    mode = node.attributes.text("mode", "constant")
    if mode != "constant":
        refuse(node, "mode", mode, f"for symbolic pads use constant; or {node.scope.to_fix(pads)}")
    rank, given, value = len(node.dims(0)), node.constant(3), node.constant(2)
    axes = [int(a) % rank for a in (range(len(pads) // 2) if given is None else given)]
    before = dict(zip(axes, pads, strict=False))
    after = dict(zip(axes, pads[len(axes) :], strict=True))
    return padded(bb, node, before, after, 0 if value is None else value.reshape(-1)[0].item())


def padded(bb: Builder, node: Node, before: Mapping[int, Extent], after: Mapping[int, Extent], fill: float) -> Expr:
    """The node's first input, padded by so many elements before and after each axis."""
    x, dims, axes = node.inputs[0], node.dims(0), list(before)
    result = [node.extents.normal(d + before.get(a, 0) + after.get(a, 0)) for a, d in enumerate(dims)]

    def compute(data: te.Tensor, *numbers: ir.Expr) -> te.Tensor:
        first = dict(zip(axes, numbers[len(result) :], strict=True))

        def element(*at: ir.Expr) -> ir.Expr:
            places = [i - first[a] if a in first else i for a, i in enumerate(at)]
            inside = [c for a in axes for c in (places[a] >= 0, places[a] < data.shape[a])]
            return tirx.if_then_else(tirx.all(*inside), data[tuple(places)], tirx.const(fill, data.dtype))

        return te.compute(numbers[: len(result)], element, name="pad", tag="injective")

    numbers = [expression(n) for n in (*result, *before.values())]
    return bb.emit_te(compute, x, *numbers, primfunc_name_hint="pad")


def one_hot(bb: Builder, node: Node, depth: Extent | Ratio, values: Array) -> Expr:
    """OneHot of a symbolic depth. Negative indices count from its end."""
    if isinstance(depth, Ratio):
        if depth.below != 1:
            raise node.refused("its depth is a fraction of an extent", node.scope.to_fix([depth]))
        depth = depth.above
    rank = len(node.dims(0))
    axis = node.attributes.integer("axis", -1) % (rank + 1)
    kind = str(values.dtype)
    off, on = (tirx.const(v.item(), kind) for v in values.reshape(-1))

    def compute(indices: te.Tensor, number: ir.Expr) -> te.Tensor:
        def element(*at: ir.Expr) -> ir.Expr:
            index = indices(*at[:axis], *at[axis + 1 :]).astype("int64")
            return tirx.Select(tirx.any(index == at[axis], index + number == at[axis]), on, off)

        shape = [*indices.shape[:axis], number, *indices.shape[axis:]]
        return te.compute(shape, element, name="one_hot", tag="injective")

    return bb.emit_te(compute, node.inputs[0], expression(depth), primfunc_name_hint="one_hot")
