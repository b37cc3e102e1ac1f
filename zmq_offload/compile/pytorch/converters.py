"""Operators that TVM's PyTorch front end gets wrong, or that are faster in another form.

Each converter gets the importer and the node, and returns the node's value. `right` is what torch says of the result.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, TypeAlias

from tvm import ir, relax, tirx

from zmq_offload.compile.pytorch.recurrent import recurrent
from zmq_offload.errors import InvalidArgument

if TYPE_CHECKING:
    from zmq_offload.compile.pytorch.importer import ProgramImporter

Converter: TypeAlias = Callable[["ProgramImporter", Any], Any]
op = relax.op


def _reshaped(importer: ProgramImporter, node: Any) -> relax.Expr:
    """A reshape to the shape that torch computed, symbolic extents included."""
    return op.reshape(importer.value(node.args[0]), importer.shape(node))


def _expanded(importer: ProgramImporter, node: Any) -> relax.Expr:
    value, shape = importer.value(node.args[0]), importer.shape(node)
    if importer.dtype(node) != "bool":
        return op.broadcast_to(value, shape)
    # Copies of booleans, fused with what computes them, are no vector code that TVM accepts.
    return op.astype(importer.emit(op.broadcast_to(importer.emit(op.astype(value, "int8")), shape)), "bool")


def _cast(importer: ProgramImporter, node: Any) -> relax.Expr:
    value, dtype = importer.value(node.args[0]), importer.dtype(node)
    return value if str(value.ty.dtype.dtype) == dtype else op.astype(value, dtype)


def _sum(sign: int) -> Converter:
    """a + alpha * b. TVM ignores alpha."""

    def convert(importer: ProgramImporter, node: Any) -> relax.Expr:
        dtype = importer.dtype(node)
        alpha = node.kwargs.get("alpha", 1)
        left, right = (importer.tensor(value, dtype) for value in node.args[:2])
        if alpha != 1:
            right = importer.emit(op.multiply(right, importer.tensor(alpha, dtype)))
        return op.add(left, right) if sign > 0 else op.subtract(left, right)

    return convert


def _bits(operation: Callable[..., relax.Expr]) -> Converter:
    """An operator on bits or on booleans, which are bytes for it: TVM vectorizes no logical operator of which one
    operand is the same for all lanes, as in the masks of transformers."""

    def convert(importer: ProgramImporter, node: Any) -> relax.Expr:
        dtype = importer.dtype(node)
        left, right = (importer.tensor(value, dtype) for value in node.args[:2])
        if dtype != "bool":
            return operation(left, right)
        left, right = (importer.emit(op.astype(value, "int8")) for value in (left, right))
        return op.astype(importer.emit(operation(left, right)), "bool")

    return convert


def _product(importer: ProgramImporter, node: Any) -> relax.Expr:
    """A matrix product in the datatype of the result. TVM always computes float32."""
    left, right = map(importer.value, node.args[:2])
    return op.matmul(left, right, out_dtype=importer.dtype(node))


def _linear(importer: ProgramImporter, node: Any) -> relax.Expr:
    value, weight = map(importer.value, node.args[:2])
    turned = importer.emit(op.permute_dims(weight))
    result = op.matmul(value, turned, out_dtype=importer.dtype(node))
    bias = node.args[2] if len(node.args) > 2 else None
    return result if bias is None else op.add(importer.emit(result), importer.value(bias))


def _addmm(importer: ProgramImporter, node: Any) -> relax.Expr:
    dtype = importer.dtype(node)
    bias, left, right = map(importer.value, node.args[:3])
    alpha, beta = node.kwargs.get("alpha", 1), node.kwargs.get("beta", 1)
    result = importer.emit(op.matmul(left, right, out_dtype=dtype))
    if alpha != 1:
        result = importer.emit(op.multiply(result, importer.tensor(alpha, dtype)))
    if beta != 1:
        bias = importer.emit(op.multiply(bias, importer.tensor(beta, dtype)))
    return op.add(result, bias)


def _attention(importer: ProgramImporter, node: Any) -> relax.Expr:
    """Attention written out, so that its products and its softmax get schedules of their own."""
    emit, dtype = importer.emit, importer.dtype(node)
    query, key, value = map(importer.value, node.args[:3])
    given = dict(enumerate(node.args)) | node.kwargs
    mask, causal = given.get(3, given.get("attn_mask")), given.get(5, given.get("is_causal", False))
    if given.get(4, given.get("dropout_p", 0.0)):
        raise InvalidArgument("it drops values at random; export the model after model.eval()")
    if given.get("enable_gqa", False):
        key, value = (_repeated(importer, tensor, query) for tensor in (key, value))
    width, rank = query.ty.shape[-1], query.ty.ndim
    scale = given.get("scale")
    if scale is None:
        scale = 1 / math.sqrt(int(width))
    turned = emit(op.permute_dims(key, [*range(rank - 2), rank - 1, rank - 2]))
    scaled = emit(op.multiply(query, importer.tensor(float(scale), dtype)))
    scores = emit(op.matmul(scaled, turned, out_dtype=dtype))
    lowest, empty = importer.tensor(-math.inf, dtype), None
    if mask is not None:
        bias = importer.value(mask)
        if str(bias.ty.dtype.dtype) == "bool":
            bias = emit(op.where(bias, importer.tensor(0.0, dtype), lowest))
        if not causal:
            # A row without a key to attend to is 0, as one of padding at the left: not masked here, and cleared below.
            empty = emit(op.equal(emit(op.max(bias, -1, True)), lowest))
            bias = emit(op.where(empty, importer.tensor(0.0, dtype), bias))
        scores = emit(op.add(scores, bias))
    if causal:
        seen = emit(op.tril(emit(op.ones(relax.ShapeExpr(list(scores.ty.shape)[-2:]), "int32"))))
        scores = emit(op.where(emit(op.astype(seen, "bool")), scores, lowest))
    result = op.matmul(emit(op.nn.softmax(scores, -1)), value, out_dtype=dtype)
    return result if empty is None else op.where(empty, importer.tensor(0.0, dtype), emit(result))


def _running_sum(importer: ProgramImporter, node: Any) -> relax.Expr:
    """Sums in the datatype of the result: those of booleans are counts, and TVM leaves them booleans."""
    return op.cumsum(importer.tensor(node.args[0], importer.dtype(node)), node.args[1])


def _repeated(importer: ProgramImporter, tensor: relax.Expr, query: relax.Expr) -> relax.Expr:
    """Heads of keys or values, repeated to as many as the query has."""
    times = int(query.ty.shape[-3]) // int(tensor.ty.shape[-3])
    return importer.emit(op.repeat(tensor, times, axis=tensor.ty.ndim - 3)) if times > 1 else tensor


def _indexed(importer: ProgramImporter, node: Any) -> relax.Expr:
    """data[i, j, ...] with tensors of indices, which count from the end where they are negative."""
    data = importer.value(node.args[0])
    places = [at for at, index in enumerate(node.args[1]) if index is not None]
    if places != list(range(places[0], places[-1] + 1)):
        raise InvalidArgument("it has tensors of indices with other dimensions between them")
    indices = [_from_start(importer, node.args[1][at], data.ty.shape[at]) for at in places]
    if len(places) == 1:
        return op.take(data, indices[0], axis=places[0])
    emit, first = importer.emit, places[0]
    rank = max(index.ty.ndim for index in indices)
    shape = importer.shape(node)[first : first + rank]
    indices = [emit(op.astype(index, "int64")) for index in indices]
    wide = [emit(op.expand_dims(emit(op.broadcast_to(index, shape)), rank)) for index in indices]
    moved = [*places, *(at for at in range(data.ty.ndim) if at not in places)]
    if moved != list(range(data.ty.ndim)):
        data = emit(op.permute_dims(data, moved))
    if importer.dtype(node) == "bool":  # TVM cannot vectorize a gather of booleans
        bytes_ = op.gather_nd(emit(op.astype(data, "int8")), emit(op.concat(wide, axis=rank)))
        result = op.astype(emit(bytes_), "bool")
    else:
        result = op.gather_nd(data, emit(op.concat(wide, axis=rank)))
    # The dimensions of the indices are where the first of them stands, and not in front.
    order = [*range(rank, rank + first), *range(rank), *range(rank + first, rank + data.ty.ndim - len(places))]
    return result if first == 0 else op.permute_dims(emit(result), order)


def _from_start(importer: ProgramImporter, node: Any, extent: ir.Expr) -> relax.Expr:
    """A tensor of indices in which the negative ones, which count from the end, are replaced."""
    index = importer.value(node)
    dtype = str(index.ty.dtype.dtype)
    if dtype == "bool":
        raise InvalidArgument("it chooses by a mask, so that its shape depends on values; use where instead")
    if _never_negative(node):
        return index
    emit = importer.emit
    shifted = emit(op.add(index, importer.tensor(int(extent) if isinstance(extent, tirx.IntImm) else extent, dtype)))
    return emit(op.where(emit(op.less(index, importer.tensor(0, dtype))), shifted, index))


def _never_negative(node: Any) -> bool:
    """Whether a tensor counts from 0 or more, as positions in a sequence do."""
    name = getattr(node.target, "__name__", "")
    if name.startswith("arange."):
        return all(not isinstance(a, int | float) or a >= 0 for a in node.args) and node.kwargs.get("step", 1) > 0
    return name in _KEEP_VALUES and _never_negative(node.args[0])


_KEEP_VALUES = frozenset(
    {"view.default", "unsqueeze.default", "expand.default", "slice.Tensor", "_to_copy.default", "clone.default"}
)
"""Operators whose results have values of their first argument only."""


def _select(importer: ProgramImporter, node: Any) -> relax.Expr:
    """One index of a dimension, as a slice: TVM's gather would hide it from simplification."""
    data, axis, index = importer.value(node.args[0]), node.args[1], node.args[2]
    axis %= data.ty.ndim
    if not isinstance(index, int):
        raise InvalidArgument("its index is computed from a shape; give the inputs' shapes with --input")
    at = index if index >= 0 else data.ty.shape[axis] + index
    piece = importer.emit(op.strided_slice(data, [axis], [at], [at + 1]))
    return op.reshape(piece, importer.shape(node))


def _sliced(importer: ProgramImporter, node: Any) -> relax.Expr:
    """A slice. Its end is taken from the shape that torch computed."""
    data = importer.value(node.args[0])
    given = list(node.args[1:])
    axis, start, _, step = given + [0, None, None, 1][len(given) :]
    axis %= data.ty.ndim
    extent, wanted = data.ty.shape[axis], importer.shape(node)[axis]
    start = importer.size(start) if start is not None else 0
    if isinstance(start, int) and start < 0:
        start = tirx.max(extent + start, 0)
    if isinstance(start, int) and start == 0 and step == 1 and importer.same(extent, wanted):
        return data
    end = start + wanted * step
    if _is_number(extent) and not (_is_number(start) and _is_number(wanted)):
        # Torch knows bounds of symbolic extents, and that the slice is inside; to TVM its extent would be a minimum.
        return op.take(data, importer.emit(op.arange(start, end, step, "int64")), axis=axis)
    return op.strided_slice(data, [axis], [start], [end], [step])


def _is_number(size: ir.Expr | int) -> bool:
    return isinstance(size, int | tirx.IntImm)


def _filled(value: float | None) -> Converter:
    """A tensor of one value: `value`, or the argument after the shape."""

    def convert(importer: ProgramImporter, node: Any) -> relax.Expr:
        dtype = importer.dtype(node)
        chosen = value
        if chosen is None:
            chosen = node.kwargs["fill_value"] if "fill_value" in node.kwargs else node.args[1 + _takes_tensor(node)]
        return op.full(relax.ShapeExpr(importer.shape(node)), importer.tensor(chosen, dtype), dtype)

    return convert


def _takes_tensor(node: Any) -> bool:
    return str(node.target.__name__).startswith("new_")


def _not(importer: ProgramImporter, node: Any) -> relax.Expr:
    value = importer.value(node.args[0])
    return op.logical_not(value) if importer.dtype(node) == "bool" else op.bitwise_not(value)


def _extreme(reduce: Callable[..., relax.Expr]) -> Converter:
    def convert(importer: ProgramImporter, node: Any) -> relax.Expr:
        axes = list(node.args[1]) if len(node.args) > 1 else []
        keep = node.args[2] if len(node.args) > 2 else node.kwargs.get("keepdim", False)
        return reduce(importer.value(node.args[0]), axes or None, keepdims=keep)

    return convert


def _layer_norm(importer: ProgramImporter, node: Any) -> relax.Expr:
    """Layer normalization; its weights may be left out."""
    value, extents, dtype = importer.value(node.args[0]), list(node.args[1]), importer.dtype(node)
    scale, shift = (importer.value(node.args[at]) if len(node.args) > at else None for at in (2, 3))
    epsilon = node.args[4] if len(node.args) > 4 else 1e-5
    if scale is None:
        scale = op.ones(relax.ShapeExpr(extents), dtype)
    if shift is None:
        shift = op.zeros(relax.ShapeExpr(extents), dtype)
    return op.nn.layer_norm(value, importer.emit(scale), importer.emit(shift), list(range(-len(extents), 0)), epsilon)


def _group_norm(importer: ProgramImporter, node: Any) -> relax.Expr:
    """Normalization of groups of channels; its weights may be left out."""
    value, dtype = importer.value(node.args[0]), importer.dtype(node)
    scale, shift = (importer.value(node.args[at]) if len(node.args) > at else None for at in (2, 3))
    epsilon = node.args[4] if len(node.args) > 4 else 1e-5
    channels = relax.ShapeExpr([value.ty.shape[1]])
    scale = importer.emit(op.ones(channels, dtype)) if scale is None else scale
    shift = importer.emit(op.zeros(channels, dtype)) if shift is None else shift
    return op.nn.group_norm(value, scale, shift, node.args[1], 1, list(range(2, value.ty.ndim)), epsilon)


def _max_pool(importer: ProgramImporter, node: Any) -> relax.Expr:
    """A maximum over windows. Their stride is their size by default."""
    given = list(node.args[1:])
    size, stride, padding, dilation, ceiling = given + [0, [], 0, 1, False][len(given) :]
    value = importer.value(node.args[0])
    if value.ty.ndim != 4:
        raise InvalidArgument("its input has no batch; add a dimension with unsqueeze(0)")
    return op.nn.max_pool2d(value, size, stride or size, padding, dilation, ceiling, layout="NCHW")


def _convolution(name: str) -> Converter:
    """A convolution. TVM's result is always of float32, also where its bias is of 16 bits."""

    def convert(importer: ProgramImporter, node: Any) -> relax.Expr:
        dtype, convert = importer.dtype(node), importer.convert_map[name]
        if dtype == "float32":
            return convert(node)
        operands = [a if a is None else importer.tensor(a, "float32") for a in node.args[:3]]
        wide = SimpleNamespace(args=(*operands, *node.args[3:]), kwargs=node.kwargs, target=node.target, meta=node.meta)
        return op.astype(importer.emit(convert(wide)), dtype)

    return convert


def _shuffled(importer: ProgramImporter, node: Any) -> relax.Expr:
    """Channels to pixels, as a transposition."""
    value, factor = importer.value(node.args[0]), node.args[1]
    count, channels, height, width = value.ty.shape
    parts = [count, tirx.floordiv(channels, factor * factor), factor, factor, height, width]
    turned = op.permute_dims(importer.emit(op.reshape(value, parts)), [0, 1, 4, 2, 5, 3])
    return op.reshape(importer.emit(turned), importer.shape(node))


def _first(importer: ProgramImporter, node: Any) -> Any:
    return importer.value(node.args[0])


def _item(importer: ProgramImporter, node: Any) -> Any:
    """An element of a tuple. TVM returns the whole where an operator has one result instead of several."""
    value = importer.value(node.args[0])
    if isinstance(value, list | tuple | relax.Tuple):
        return value[node.args[1]]
    if isinstance(value.ty, relax.TupleType):
        return relax.TupleGetItem(value, node.args[1])
    if node.args[1] != 0:
        raise InvalidArgument("TVM computes only the first of the results")
    return value


_BITS = {"and": op.bitwise_and, "or": op.bitwise_or, "xor": op.bitwise_xor}

CONVERTERS: dict[str, Converter] = {
    **dict.fromkeys(("view.default", "_unsafe_view.default", "reshape.default", "reshape_as.default"), _reshaped),
    **dict.fromkeys(("squeeze.default", "squeeze.dim", "squeeze.dims", "unsqueeze.default"), _reshaped),
    **dict.fromkeys(("flatten.using_ints", "unflatten.int"), _reshaped),
    **dict.fromkeys(("expand.default", "expand_as.default", "broadcast_to.default"), _expanded),
    **dict.fromkeys(("_to_copy.default", "to.dtype", "to.dtype_layout", "to.device", "type_as.default"), _cast),
    **dict.fromkeys(("mm.default", "bmm.default", "matmul.default"), _product),
    **dict.fromkeys(("clone.default", "contiguous.default", "detach.default", "alias.default"), _first),
    **{name: _filled(0) for name in ("zeros.default", "zeros_like.default", "new_zeros.default")},
    **{name: _filled(0) for name in ("empty.memory_format", "empty_like.default", "new_empty.default")},
    **{name: _filled(1) for name in ("ones.default", "ones_like.default", "new_ones.default")},
    **{name: _filled(None) for name in ("full.default", "full_like.default", "new_full.default")},
    **{
        f"{form}.{kind}": _bits(own)
        for name, own in _BITS.items()
        for form in (f"bitwise_{name}", f"__{name}__")
        for kind in ("Tensor", "Scalar")
    },
    **{f"logical_{name}.default": _bits(own) for name, own in _BITS.items()},
    **{f"{name}.default": _convolution(f"{name}.default") for name in ("conv1d", "conv2d", "conv3d")},
    **{name: _convolution(name) for name in ("conv_transpose1d.default", "conv_transpose2d.input")},
    **{f"{name}.input": recurrent for name in ("lstm", "gru", "rnn_tanh", "rnn_relu")},
    "add.Tensor": _sum(1),
    "add.Scalar": _sum(1),
    "addmm.default": _addmm,
    "amax.default": _extreme(op.max),
    "amin.default": _extreme(op.min),
    "bitwise_not.default": _not,
    "cumsum.default": _running_sum,
    "getitem": _item,
    "group_norm.default": _group_norm,
    "index.Tensor": _indexed,
    "linear.default": _linear,
    "layer_norm.default": _layer_norm,
    "lift_fresh_copy.default": _first,
    "max_pool2d.default": _max_pool,
    "pixel_shuffle.default": _shuffled,
    "scalar_tensor.default": lambda importer, node: importer.tensor(node.args[0], importer.dtype(node)),
    "scaled_dot_product_attention.default": _attention,
    "select.int": _select,
    "slice.Tensor": _sliced,
    "sub.Scalar": _sum(-1),
    "sub.Tensor": _sum(-1),
}
"""Converters that replace TVM's, by the operator's name."""
