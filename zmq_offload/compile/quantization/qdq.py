"""Compute the products of dequantized tensors in integers.

A model that was quantized says `dequantize -> conv, matmul -> quantize`. This pass makes a product of bytes with int32
sums of the middle, and floats only of what comes after the sums (`compile.requantize` shortens that). Operators that
only move values, such as MaxPool and Transpose, move the bytes. It runs on each function after the cuts are made, so a
cut at a quantized tensor sends bytes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import prod

import numpy as np
import tvm
from tvm import relax
from tvm.ir import Call, Expr, Op, Var
from tvm.relax.expr_functor import mutator

from zmq_offload.compile.fold import FOLDERS
from zmq_offload.compile.quantization import integers
from zmq_offload.compile.quantization.averages import AVERAGES, average
from zmq_offload.compile.quantization.blocks import BlockRewriter, relax_functions, rewrite
from zmq_offload.compile.quantization.byte_tables import Tables
from zmq_offload.compile.quantization.integers import BYTES, Window, array_of
from zmq_offload.compile.quantization.requantize import lower, requantize
from zmq_offload.compile.quantization.shuffles import Shuffled, transposed_convolution
from zmq_offload.protocol.payload import Array
from zmq_offload.schedules.simplify import simplify
from zmq_offload.schedules.tvm_internals import operator_name

op = relax.op

MOVERS = {
    "relax.broadcast_to",
    "relax.expand_dims",
    "relax.flatten",
    "relax.flip",
    "relax.nn.max_pool1d",
    "relax.nn.max_pool2d",
    "relax.nn.max_pool3d",
    "relax.repeat",
    "relax.squeeze",
    "relax.strided_slice",
    "relax.take",
    "relax.tile",
}
"""Operators whose results are among the values of their first operand."""

CONVOLUTIONS = {"relax.nn.conv1d": 1, "relax.nn.conv2d": 2, "relax.nn.conv3d": 3}
TRANSPOSED = {"relax.nn.conv1d_transpose": 1, "relax.nn.conv2d_transpose": 2, "relax.nn.conv3d_transpose": 3}
QUANTIZED = {"relax.quantize", "relax.dequantize"}


def integer_products(mod: tvm.IRModule) -> tvm.IRModule:
    """Return `mod` with products of quantized tensors in integers, and without `quantize` and `dequantize`.

    A module without either is returned as it is.
    """
    if not any(QUANTIZED & _operators(function) for function in relax_functions(mod).values()):
        return mod
    # Clip as maximum and minimum, and batch normalization as arithmetic, can be part of what comes after the sums.
    mod = simplify(rewrite(rewrite(simplify(mod), Tables), _Products))
    return lower(requantize(mod))


def _operators(function: relax.Function) -> set[str]:
    return {operator_name(b.value) for block in function.body.blocks for b in block.bindings}


@dataclass(frozen=True)
class _Quantized:
    """A tensor of integers, and what they mean: (value - zero) * scale, along `axis` if these are vectors."""

    value: Expr
    scale: Array
    zero: Array
    axis: int | None

    @property
    def kind(self) -> str:
        return str(self.value.ty.dtype)

    def like(self, other: _Quantized) -> bool:
        return (
            self.kind == other.kind
            and self.axis is None
            and other.axis is None
            and bool(self.scale == other.scale)
            and bool(self.zero == other.zero)
        )


@mutator
class _Products(BlockRewriter):
    def __init__(self, mod: tvm.IRModule, function: relax.Function) -> None:
        super().__init__(mod, function)
        self._known: dict[Var, _Quantized | None] = {}
        self.shuffled, self.at = Shuffled(), function.params[0]

    def enter(self, block: relax.BindingBlock) -> None:
        super().enter(block)
        self._known = {}

    def visit_var_binding_(self, binding: relax.VarBinding) -> None:
        self.at = binding.var
        super().visit_var_binding_(binding)

    def visit_call_(self, call: Call) -> Expr:
        rule = _RULES.get(operator_name(call))
        other = self.shuffled.follow(self, call, self.at, self.uses)
        other = rule(self, call) if other is None and rule is not None else other
        return self._with_own_operands(call) if other is None else other

    def _with_own_operands(self, call: Call) -> Expr:
        """Give an operator a `dequantize` of its own, so that TVM fuses it and keeps bytes in memory."""
        if not isinstance(call.op, Op) or not call.op.name.startswith("relax.") or "call_" in call.op.name:
            return self.operands(call)
        args = []
        for arg in call.args:
            value = self.values.get(arg) if isinstance(arg, Var) else None
            several = operator_name(value) == "relax.dequantize" and self.uses[arg] > 1
            args.append(self.emit(self.operands(value)) if several else self.visit_expr(arg))
        return Call(call.op, args, call.attrs, call.ty_args)

    def quantized(self, expr: Expr) -> _Quantized | None:
        """The integers that a float tensor stands for; None if it does not."""
        if not isinstance(expr, Var):
            return self._quantized(expr)
        if expr not in self._known:
            self._known[expr] = self._quantized(self.original(expr))
        return self._known[expr]

    def _quantized(self, value: Expr) -> _Quantized | None:
        if isinstance(value, relax.TupleGetItem):
            return self._piece(value)
        name = operator_name(value)
        if name == "relax.dequantize":
            scale, zero = (self.constant(a) for a in value.args[1:3])
            if scale is None or zero is None or str(value.ty.dtype) != "float32":
                return None
            axis = int(value.attrs.axis) % max(value.ty.ndim, 1) if scale.ndim else None
            return _Quantized(self._integers(value.args[0]), scale, zero, axis)
        if name == "relax.permute_dims":
            return self._permuted(value)
        if name == "relax.reshape":
            return self._reshaped(value)
        if name == "relax.concat":
            return self._joined(value)
        if name == "relax.multiply":
            return self._scaled(value)
        nearest = name == "relax.image.resize2d" and str(value.attrs.method) == "nearest_neighbor"
        if nearest or name in MOVERS or name in ("relax.nn.relu", "relax.nn.pad"):
            x = self.quantized(value.args[0])
            return None if x is None or x.axis is not None else self._moved(name, value, x)
        return None

    def constant(self, expr: Expr) -> Array | None:
        """As for other rewriters; also a constant that is quantized in the graph, as weights after training are."""
        value = self.original(expr)
        if operator_name(value) != "relax.quantize":
            return array_of(value)
        x, scale, zero = (array_of(self.original(a)) for a in value.args)
        if x is None or scale is None or zero is None:
            return None
        kind, (scale, zero) = str(value.ty.dtype), (_along(v, value) for v in (scale, zero))
        limits = np.iinfo(kind)
        return np.asarray(np.clip(np.rint(x / scale) + zero, limits.min, limits.max), kind)

    def _integers(self, expr: Expr) -> Expr:
        array = self.constant(expr)
        return self.visit_expr(expr) if array is None else relax.const(array)

    def _moved(self, name: str, call: Call, x: _Quantized) -> _Quantized | None:
        if name == "relax.nn.relu":
            value = op.maximum(x.value, relax.const(x.zero.astype(x.kind)))
        elif name == "relax.nn.pad":
            if call.attrs.pad_mode != "constant" or float(call.attrs.pad_value) != 0:
                return None
            value = op.nn.pad(x.value, [int(w) for w in call.attrs.pad_width], "constant", float(x.zero))
        else:
            known = self._folded(name, call, x)
            rest = [self.visit_expr(a) for a in call.args[1:]]
            value = Call(call.op, [x.value, *rest], call.attrs) if known is None else relax.const(known)
        return replace(x, value=self.emit(value))

    def _folded(self, name: str, call: Call, x: _Quantized) -> Array | None:
        """The bytes of an operator on constants."""
        others = [a for a in call.args[1:] if not isinstance(a.ty, relax.ShapeType)]
        arrays = [array_of(x.value), *(self.constant(a) for a in others)]
        known = FOLDERS[name](call, *arrays) if name in FOLDERS and not any(a is None for a in arrays) else None
        return None if known is None else np.ascontiguousarray(known)

    def _permuted(self, call: Call) -> _Quantized | None:
        x = self.quantized(call.args[0])
        if x is None:
            return None
        rank = call.ty.ndim
        axes = [int(a) % rank for a in call.attrs.axes] if call.attrs.axes is not None else list(range(rank))[::-1]
        return replace(x, value=self.turned(x.value, axes), axis=None if x.axis is None else axes.index(x.axis))

    def turned(self, value: Expr, axes: list[int]) -> Expr:
        """`value` with its axes in this order."""
        if axes == sorted(axes):
            return value
        array = array_of(value)
        return self.emit(
            op.permute_dims(value, axes) if array is None else relax.const(np.ascontiguousarray(array.transpose(axes)))
        )

    def _reshaped(self, call: Call) -> _Quantized | None:
        """A reshape that leaves the axis of the scales as it is."""
        x = self.quantized(call.args[0])
        if x is None or x.axis is None:
            return x if x is None else self._moved("relax.reshape", call, x)
        before, after = (
            [int(d) if isinstance(d, tvm.tirx.IntImm) else -1 for d in e.ty.shape] for e in (x.value, call)
        )
        places = [i for i, d in enumerate(after) if d == before[x.axis] and prod(after[:i]) == prod(before[: x.axis])]
        moved = self._moved("relax.reshape", call, x) if places and min(*before, *after) >= 0 else None
        return None if moved is None else replace(moved, axis=places[0])

    def _joined(self, call: Call) -> _Quantized | None:
        fields = self.original(call.args[0])
        if not isinstance(fields, relax.Tuple):
            return None
        parts = [self.quantized(field) for field in fields.fields]
        same = [p for p in parts if p is not None and parts[0] is not None and p.like(parts[0])]
        if not same or len(same) != len(parts):
            return None
        return replace(same[0], value=self.emit(op.concat([p.value for p in same], int(call.attrs.axis))))

    def _scaled(self, call: Call) -> _Quantized | None:
        """A tensor times a positive number, such as the alpha of Gemm."""
        for x, factor in (call.args, list(call.args)[::-1]):
            array = self.constant(factor)
            if array is not None and array.size == 1 and array.ndim == 0 and array > 0:
                known = self.quantized(x)
                return None if known is None else replace(known, scale=(known.scale * array).astype(np.float32))
        return None

    def _piece(self, item: relax.TupleGetItem) -> _Quantized | None:
        split = self.original(item.tuple_value)
        x = self.quantized(split.args[0]) if operator_name(split) == "relax.split" else None
        if x is None or x.axis is not None:
            return None
        pieces = self.emit(Call(split.op, [x.value], split.attrs))
        return replace(x, value=self.emit(relax.TupleGetItem(pieces, item.index)))

    def real(self, sums: Expr, scale: Array) -> Expr:
        """int32 sums as floats."""
        wide = self.builder_.emit(op.astype(self.emit(sums), "float32"))
        return op.multiply(wide, relax.const(scale.astype(np.float32)))

    def operands_of(self, call: Call, weight_axis: int) -> tuple[_Quantized, _Quantized] | None:
        """The operands of a product in bytes: the first with one scale, the second with one, or one per channel."""
        x = self.quantized(call.args[0])
        w = self.quantized(call.args[1]) if x is not None and x.kind in BYTES and x.axis is None else None
        if x is None or w is None or w.kind not in BYTES or w.axis not in (None, weight_axis):
            return None
        return (x, w) if str(call.ty.dtype) == "float32" else None


def _quantize(graph: _Products, call: Call) -> Expr | None:
    """quantize of what was quantized with the same scale: the integers themselves. Parts are quantized each."""
    x, (scale, zero) = graph.quantized(call.args[0]), (graph.constant(a) for a in call.args[1:3])
    if scale is None or zero is None or scale.ndim:
        return None
    if x is None:
        return _parts(graph, call)
    same = x.kind == str(call.attrs.out_dtype) and x.axis is None and x.scale == scale and x.zero == zero
    return x.value if same else None


def _parts(graph: _Products, call: Call) -> Expr | None:
    """quantize of parts that were quantized differently: bytes are joined, not floats."""
    joined = graph.original(call.args[0])
    fields = graph.original(joined.args[0]) if operator_name(joined) == "relax.concat" else None
    if not isinstance(fields, relax.Tuple) or graph.uses[call.args[0]] > 1:
        return None
    parts = []
    for field in fields.fields:
        part = Call(call.op, [field, *call.args[1:]], call.attrs, call.ty_args)
        own = _quantize(graph, part)
        parts.append(graph.emit(graph.operands(part) if own is None else own))
    return op.concat(parts, int(joined.attrs.axis))


def _average(graph: _Products, call: Call) -> Expr | None:
    x = graph.quantized(call.args[0])
    if x is None or x.axis is not None or x.kind not in BYTES or str(call.ty.dtype) != "float32":
        return None
    found = average(graph.builder_, call, x.value, x.zero)
    return None if found is None else graph.real(found[0], x.scale / found[1])


def _matmul(graph: _Products, call: Call) -> Expr | None:
    pair = graph.operands_of(call, call.args[1].ty.ndim - 1)
    if pair is None or call.args[0].ty.ndim < 2 or call.args[1].ty.ndim < 2:
        return None
    a, b = pair
    sums = integers.matmul(graph.builder_, a.value, b.value, relax.const(a.zero), relax.const(b.zero))
    return graph.real(sums, a.scale * b.scale)


def _convolution(graph: _Products, call: Call) -> Expr | None:
    attributes, spatial = call.attrs, CONVOLUTIONS[operator_name(call)]
    data, kernel, axes = str(attributes.data_layout), str(attributes.kernel_layout), "DHW"[-spatial:]
    pair = graph.operands_of(call, kernel.index("O"))
    if pair is None or sorted(data) != sorted(f"NC{axes}") or sorted(kernel) != sorted(f"OI{axes}"):
        return None
    x, w = pair
    window = Window(
        [int(s) for s in attributes.strides],
        [int(p) for p in attributes.padding],
        [int(d) for d in attributes.dilation],
        int(attributes.groups),
    )
    weight = graph.turned(w.value, [kernel.index(c) for c in f"OI{axes}"])
    zero = relax.const(w.zero.reshape(-1, *(1,) * (spatial + 1)) if w.axis is not None else w.zero)
    image = graph.turned(x.value, [data.index(c) for c in f"NC{axes}"])
    sums = integers.convolution(graph.builder_, image, weight, relax.const(x.zero), zero, window)
    scale = x.scale * w.scale
    along = [-1 if c == "C" else 1 for c in data]
    sums = graph.turned(graph.emit(sums), [f"NC{axes}".index(c) for c in data])
    return graph.real(sums, scale.reshape(along) if scale.ndim else scale)


def _transposed(graph: _Products, call: Call) -> Expr | None:
    pair, attributes, spatial = graph.operands_of(call, 1), call.attrs, TRANSPOSED[operator_name(call)]
    if pair is None or attributes.data_layout[:2] != "NC" or attributes.kernel_layout[:2] != "IO":
        return None
    x, w = pair
    array, groups = array_of(w.value), int(attributes.groups)
    if array is None or (w.axis is not None and groups > 1):
        return None
    window = Window(
        [int(s) for s in attributes.strides],
        [int(p) for p in attributes.padding],
        [int(d) for d in attributes.dilation],
        groups,
    )
    extra = [int(p) for p in attributes.output_padding]
    wide = (1, -1, *(1,) * spatial)
    found = transposed_convolution(graph.builder_, x.value, array, relax.const(x.zero), w.zero, window, extra)
    if found is None:
        return None
    sums, shuffle = found
    scale = x.scale * w.scale
    spread = shuffle.spread(scale.reshape(wide) if scale.ndim else scale)
    assert spread is not None
    return graph.shuffled.add(graph.builder_, graph.at, graph.real(sums, spread), shuffle)


def _take(graph: _Products, call: Call) -> Expr | None:
    """Rows of a quantized table: dequantize the rows only."""
    x = graph.quantized(call.args[0])
    if x is None or x.axis is not None:
        return None
    rows = graph.emit(Call(call.op, [x.value, graph.visit_expr(call.args[1])], call.attrs))
    return op.dequantize(rows, relax.const(x.scale), relax.const(x.zero), axis=-1, out_dtype="float32")


def _along(parameter: Array, call: Call) -> Array:
    """A scale or zero point, so that it broadcasts along the axis of `quantize` or `dequantize`."""
    rank = call.ty.ndim
    shape = [-1 if i == int(call.attrs.axis) % rank else 1 for i in range(rank)]
    return parameter.reshape(shape) if parameter.ndim else parameter


def _constant(graph: _Products, call: Call) -> Expr | None:
    """A constant, such as a bias, as floats."""
    x, scale, zero = (graph.constant(a) for a in call.args)
    if x is None or scale is None or zero is None or str(call.ty.dtype) != "float32":
        return None
    scale, zero = (_along(v, call) for v in (scale, zero))
    return relax.const((x.astype(np.int32) - zero.astype(np.int32)).astype(np.float32) * scale)


_RULES: dict[str, Callable[[_Products, Call], Expr | None]] = {
    "relax.dequantize": _constant,
    "relax.matmul": _matmul,
    "relax.quantize": _quantize,
    "relax.take": _take,
    **dict.fromkeys(AVERAGES, _average),
    **dict.fromkeys(CONVOLUTIONS, _convolution),
    **dict.fromkeys(TRANSPOSED, _transposed),
}
