"""Slice, Split and TopK: parts of a tensor, with symbolic extents and at symbolic places."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
from tvm import ir, relax, te, tirx

from zmq_offload.byoc.extents import Extent, expression
from zmq_offload.compile.operators.node import Node, by_tvm, dtype_of
from zmq_offload.compile.operators.shaping import empty_result, same, shape
from zmq_offload.compile.operators.tvm_importer import Builder, Expr

op = relax.op

FAR = 2**31 - 1
"""Exporters write this number, or a larger one, for the end of a slice that is open. No tensor is longer."""


def slice_(bb: Builder, node: Node) -> Expr:
    """Slices of symbolic extents, or at symbolic places. TVM does not clamp these as ONNX does."""
    x = node.inputs[0]
    if node.opset < 10 or not isinstance(x.ty, relax.TensorType) or x.ty.shape is None:
        return by_tvm(bb, node)
    if node.known(1) is None or node.known(2) is None:
        return by_tvm(bb, node)
    dims, starts, ends = node.dims(0), node.numbers(1), node.numbers(2)
    axes = [int(a) % len(dims) for a in _given(node, 3, range(len(starts)))]
    steps = [int(s) for s in _given(node, 4, [1] * len(starts))]
    fixed = all(isinstance(v, int) for v in (*starts, *ends, *(dims[a] for a in axes)))
    if fixed or any(step < 0 for step in steps):
        if not fixed and not _whole(node, dims, axes, starts, ends, steps):
            raise node.refused("it has a negative step along a symbolic extent", node.scope.to_fix(dims))
        return op.flip(x, axes[0]) if not fixed else _fixed(bb, node, axes, starts, ends, steps)
    places: dict[int, tuple[Extent, int]] = {}
    result, short = list(dims), set[int]()
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        first, last = (_clamped(node, place, dims[axis]) for place in (start, end))
        length = node.extents.normal(last - first)
        if not node.extents.at_least(length, 0):
            length = tirx.Max(expression(length), tirx.IntImm("int64", 0))
        result[axis] = node.extents.floor_div(node.extents.normal(length + (step - 1)), step)
        longer = _assumed(node, first, end, dims[axis], step, result[axis]) if _is_table(bb, x) else None
        if longer is not None:
            result[axis] = longer
            short.add(axis)
        places[axis] = first, step
    if same(node, dims, result) and all(first == 0 and step == 1 for first, step in places.values()):
        return x
    return taken(bb, x, result, places, short)


def _fixed(
    bb: Builder, node: Node, axes: list[int], starts: list[Extent], ends: list[Extent], steps: list[int]
) -> Expr:
    """TVM and Python do not clamp places as ONNX does: a start before the first element is the first one."""
    kept = node.dims(0)
    for i, (axis, step) in enumerate(zip(axes, steps, strict=True)):
        extent = int(kept[axis])
        start, end = (int(v) + extent if v < 0 else int(v) for v in (starts[i], ends[i]))
        least, most = (0, extent) if step > 0 else (-1, extent - 1)
        start, end = min(max(start, 0), most), min(max(end, least), most)
        starts[i], ends[i] = start, end if end >= 0 else -extent - 1
        kept[axis] = len(range(start, end, step))
    nothing = empty_result(node, node.inputs[0], kept)
    if nothing is not None:
        return nothing
    node.inputs[1:] = [relax.const(np.array(values), "int64") for values in (starts, ends, axes, steps)]
    return by_tvm(bb, node)


def _whole(
    node: Node, dims: Sequence[Extent], axes: list[int], starts: list[Extent], ends: list[Extent], steps: list[int]
) -> bool:
    """Whether a slice reverses the whole of one axis."""
    return len(axes) == 1 and steps == [-1] and starts[0] == -1 and isinstance(ends[0], int) and ends[0] <= -FAR


def _given(node: Node, index: int, default: Sequence[int]) -> Sequence[int]:
    value = node.constant(index)
    return default if value is None else [int(v) for v in value.reshape(-1)]


def _clamped(node: Node, place: Extent, extent: Extent) -> Extent:
    """A place in an axis, 0 to its extent. Negative places count from the end."""
    extents = node.extents
    if isinstance(place, int) and place >= FAR:
        return extent
    if not extents.at_least(place, 0):
        if not extents.at_least(-1, place):
            place = tirx.Select(tirx.LT(place, 0), extents.normal(place + extent), place)
        else:
            place = extents.normal(place + extent)
    if extents.at_least(extent, place):
        pass
    elif extents.at_least(place, extent):
        return extent
    else:
        place = tirx.Min(expression(place), expression(extent))
    return place if extents.at_least(place, 0) else tirx.Max(expression(place), tirx.IntImm("int64", 0))


def _is_table(bb: Builder, x: Expr) -> bool:
    """Whether a tensor is a constant, or computed from constants."""
    if isinstance(x, ir.GenericConst):
        return True
    value = bb.lookup_binding(x) if isinstance(x, relax.Var) else x
    if not isinstance(value, ir.Call):
        return False
    operands = [f for a in value.args for f in (a.fields if isinstance(a, relax.Tuple) else [a])]
    tensors = [o for o in operands if isinstance(getattr(o, "ty", None), relax.TensorType)]
    return bool(tensors) and all(_is_table(bb, tensor) for tensor in tensors)


def _assumed(node: Node, first: Extent, end: Extent, extent: Extent, step: int, length: Extent) -> Extent | None:
    """The length of a slice of a table up to a symbolic place, which has to be inside the table; None for others.

    ONNX clamps the place, and a model whose table is shorter than its sequence fails then in the next operator. Here
    such a sequence is refused before the run, as far as its length is an extent of an input.
    """
    if isinstance(end, int) or not isinstance(extent, int) or step != 1 or isinstance(first, tirx.Select):
        return None
    wanted = node.extents.normal(end - first)
    if node.extents.equal(length, wanted) or not node.extents.at_least(wanted, 0):
        return None
    node.scope.limit(end, extent)
    return wanted


def taken(
    bb: Builder, x: Expr, result: Sequence[Extent], places: dict[int, tuple[Extent, int]], short: Collection[int] = ()
) -> Expr:
    """Slices: the first place and the step by axis. The tensor may be too short along the axes `short`."""
    axes = list(places)
    begins = [expression(places[a][0]) for a in axes]
    simple = all(not isinstance(v, tirx.Min | tirx.Max | tirx.Select) for v in (*begins, *(result[a] for a in axes)))
    if simple and not short and all(places[a][1] == 1 for a in axes):
        ends = [expression(places[a][0] + result[a]) for a in axes]
        return bb.normalize(op.strided_slice(x, axes, begins, ends, assume_inbound=True))

    def compute(data: te.Tensor, *numbers: ir.Expr) -> te.Tensor:
        dims, first = numbers[: len(result)], dict(zip(axes, numbers[len(result) :], strict=True))

        def place(axis: int, i: ir.Expr) -> ir.Expr:
            at = first[axis] + i * places[axis][1] if axis in first else i
            return tirx.Min(at, data.shape[axis] - 1) if axis in short else at

        return te.compute(
            dims, lambda *at: data[tuple(place(a, i) for a, i in enumerate(at))], name="slice", tag="injective"
        )

    return bb.emit_te(compute, x, *[expression(d) for d in result], *begins, primfunc_name_hint="slice")


def split(bb: Builder, node: Node) -> Expr:
    """TVM makes equal pieces if no sizes are given, and has no empty pieces, which rotary embeddings use."""
    x, count = node.inputs[0], node.outputs
    dims = node.dims(0)
    axis = node.attributes.integer("axis", 0) % len(dims)
    given = node.attributes.integers("split")
    sizes: list[Extent] | None = list(given) if given is not None else None
    if sizes is None and node.inputs[1] is not None:
        sizes = node.numbers(1)
    extent, extents = dims[axis], node.extents
    if sizes is None:
        if isinstance(extent, int):
            sizes = [int(n) for n in np.diff(np.minimum(np.arange(count + 1) * -(-extent // count), extent))]
        else:
            each = extents.quotient(extent, count)
            if each is None:
                raise node.refused(
                    f"it divides the extent {extents.text(extent)} into {count} equal pieces",
                    node.scope.to_equal(extents.product([count, extents.floor_div(extent, count)]), extent),
                )
            sizes = [each] * count
    if count == 1:
        return x
    if all(isinstance(size, int) and size > 0 for size in sizes):
        return op.split(x, np.cumsum(sizes).tolist()[:-1], axis)
    pieces, begin = [], extents.normal(0)
    for size in sizes:
        after = extents.normal(begin + size)
        part = [size if a == axis else d for a, d in enumerate(dims)]
        pieces.append(taken(bb, x, part, {axis: (begin, 1)}) if size != dims[axis] else x)
        begin = after
    return relax.Tuple(pieces)


def top_k(bb: Builder, node: Node) -> Expr:
    if dtype_of(node.inputs[0]) not in ("float16", "float32", "float64", "int8", "uint8", "int32", "int64"):
        raise node.refused(f"its input is of {dtype_of(node.inputs[0])}", "cast to int64 or float32")
    node.attributes.pop("sorted", None)  # sorted is one of the allowed orders
    known = node.numbers(1) if node.opset >= 10 else None
    if known is None or (isinstance(known[0], int) and known[0] > 0):
        return by_tvm(bb, node)
    # TVM's number is fixed: all are sorted, and the first are taken.
    x, dims, most = node.inputs[0], node.dims(0), known[0]
    axis = node.attributes.integer("axis", -1) % len(dims)
    largest = node.attributes.flag("largest", True)
    if not node.extents.at_least(dims[axis], most):
        raise node.refused(
            f"only the run tells whether {node.extents.text(most)} elements are there", node.scope.to_fix([most])
        )
    both = bb.emit(op.topk(x, -1, axis, "both", largest, "int64"))
    result = [most if a == axis else d for a, d in enumerate(dims)]
    if most == 0:
        return relax.Tuple([op.zeros(shape(result), kind) for kind in (dtype_of(x), "int64")])
    return relax.Tuple([taken(bb, bb.emit(relax.TupleGetItem(both, i)), result, {axis: (0, 1)}) for i in range(2)])
