"""Operators whose results have computed shapes: Reshape, Expand, Range, Slice and others, with symbolic extents."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

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

FAR = 2**31 - 1
"""Exporters write this number, or a larger one, for the end of a slice that is open. No tensor is longer."""


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
    return x if _same(node, before, result) else op.broadcast_to(x, shape(result))


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


def _same(node: Node, a: Sequence[Extent], b: Sequence[Extent]) -> bool:
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


def _nothing(node: Node, x: Expr, dims: Sequence[Extent]) -> Expr | None:
    """A result without elements, if one of its extents is 0. TVM takes a 0 for "all", or for an error."""
    return op.zeros(shape(dims), dtype_of(x)) if any(d == 0 for d in dims if isinstance(d, int)) else None


def tile(bb: Builder, node: Node) -> Expr:
    repeats = node.numbers(1)
    nothing = _nothing(node, node.inputs[0], [node.extents.product(p) for p in zip(repeats, node.dims(0), strict=True)])
    if nothing is not None:
        return nothing
    if all(isinstance(r, int) for r in repeats):
        return by_tvm(bb, node)
    x, before = node.inputs[0], node.dims(0)
    apart: list[Extent] = [e for d in before for e in (1, d)]
    wide: list[Extent] = [e for r, d in zip(repeats, before, strict=True) for e in (r, d)]
    x = bb.normalize(op.broadcast_to(bb.normalize(op.reshape(x, shape(apart))), shape(wide)))
    return op.reshape(x, shape([node.extents.product([r, d]) for r, d in zip(repeats, before, strict=True)]))


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
    if _same(node, dims, result) and all(first == 0 and step == 1 for first, step in places.values()):
        return x
    return _taken(bb, x, result, places, short)


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
    nothing = _nothing(node, node.inputs[0], kept)
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


def _taken(
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
        pieces.append(_taken(bb, x, part, {axis: (begin, 1)}) if size != dims[axis] else x)
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
    return relax.Tuple([_taken(bb, bb.emit(relax.TupleGetItem(both, i)), result, {axis: (0, 1)}) for i in range(2)])
