"""The layout pass: convolutions and the operators between them in channels-last layout, (n, h, w, c).

It takes and returns a module of Relax operators. Convolutions and products become calls of the annotated PrimFuncs of
`operators`; their constant weights are packed in chunks as wide as the tile that the rules will use. Pools, resizes,
reductions, concatenations and element-wise operators follow if an operand already is channels last.

An operator in the new layout is bound as a transpose back to the old one. A user that can take the new layout looks
through that transpose, any other uses it; dead code elimination removes the transposes without users.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
from tvm import relax, te, tirx
from tvm.ir import Call, Expr, IRModule, Var
from tvm.relax.expr_functor import mutator

from zmq_offload.schedules import layout_pools, operators, upright, volumes
from zmq_offload.schedules.channel_axes import ELEMENTWISE, REDUCTIONS, first_axes, last_axes
from zmq_offload.schedules.integers import byte_lookup
from zmq_offload.schedules.integers import layout as integer_layout
from zmq_offload.schedules.machine import Machine
from zmq_offload.schedules.operators import Array, Conv, shape_of
from zmq_offload.schedules.reach import without_idle_taps
from zmq_offload.schedules.recurrent.operators import packed_call
from zmq_offload.schedules.simplify import GraphRewriter, constant_expr, rewritten
from zmq_offload.schedules.tiles import choose_tile
from zmq_offload.schedules.tvm_internals import FUSABLE, last_part, operator_name
from zmq_offload.schedules.weights import stored

# The method of the rewriter for each operator.
_RULES = {
    "relax.call_tir": "_recurrent",
    "relax.nn.conv1d": "_convolution",
    "relax.nn.conv2d": "_convolution",
    "relax.nn.conv3d": "_volume",
    "relax.nn.conv1d_transpose": "_transposed",
    "relax.nn.conv2d_transpose": "_transposed",
    "relax.matmul": "_matmul",
    "relax.nn.max_pool2d": "_pool",
    "relax.nn.avg_pool2d": "_pool",
    "relax.nn.adaptive_avg_pool2d": "_pool",
    "relax.nn.max_pool3d": "_pool",
    "relax.nn.avg_pool3d": "_pool",
    "relax.nn.adaptive_avg_pool3d": "_pool",
    "relax.take": "_lookup",
    "relax.image.resize2d": "_resize",
    "relax.concat": "_concat",
    "relax.nn.softmax": "_softmax",
    "relax.nn.log_softmax": "_softmax",
    "relax.nn.pad": "_pad",
    "relax.permute_dims": "_permute",
    "relax.reshape": "_reshape",
    "relax.flatten": "_reshape",
    "relax.squeeze": "_reshape",
    **dict.fromkeys(ELEMENTWISE, "_elementwise"),
    **dict.fromkeys(REDUCTIONS, "_reduction"),
}
# An image with so few channels is not transposed by itself: the convolution transposes when it copies its window.
_FEW_CHANNELS = 5


@mutator
class _ChannelsLast(GraphRewriter):
    def __init__(self, mod: IRModule, machine: Machine) -> None:
        super().__init__(mod)
        self._machine = machine
        self._moved: dict[Var, Expr] = {}

    def _weights(self, expr: Expr) -> Array | None:
        """Return constant weights as a kernel reads them: float32, or what `weights.stored` makes of 16 bits."""
        half = self.half(expr)
        return self.array(expr) if half is None else stored(half, self._machine.converts_float16)

    # -- operands in the new layout ------------------------------------------------------------------------------

    def _known_last(self, expr: Expr) -> Expr | None:
        """Return the channels-last form of `expr` if it exists already."""
        call = self.bound(expr)
        if operator_name(call) != "relax.permute_dims" or not call.attrs.axes:
            return None
        moved = call.ty.ndim >= 3 and [int(a) for a in call.attrs.axes] == first_axes(call.ty.ndim)
        return call.args[0] if moved else None

    def _last(self, expr: Expr) -> Expr:
        """Return the channels-last form of a tensor of rank 3 or more."""
        if (known := self._known_last(expr)) is not None:
            return known
        rank = expr.ty.ndim
        if (array := self.array(expr)) is not None:
            return constant_expr(array.transpose(last_axes(rank)))
        if isinstance(expr, Var) and expr in self._moved:
            return self._moved[expr]
        sizes = shape_of(expr)
        if len(sizes) == rank and (sizes[1] == 1 or all(s == 1 for s in sizes[2:])):
            shape = expr.ty.shape.values
            moved = self.builder_.emit(relax.op.reshape(expr, [shape[a] for a in last_axes(rank)]))
        else:
            moved = self.builder_.emit(relax.op.permute_dims(expr, last_axes(rank)))
        if isinstance(expr, Var):
            self._moved[expr] = moved
        return moved

    def _back(self, value: Expr) -> Expr:
        """Return the transpose of a channels-last `value` to the original layout."""
        value = self.builder_.emit(value)
        return relax.op.permute_dims(value, first_axes(value.ty.ndim))

    # -- operators -----------------------------------------------------------------------------------------------

    def visit_call_(self, call: Call) -> Expr:
        call = self.operands(call)
        name = operator_name(call)
        rule = _RULES.get(name)
        if rule is None or any(isinstance(a.ty, relax.TensorType) and a.ty.ndim < 0 for a in call.args):
            return call
        result = getattr(self, rule)(call)
        return call if result is None else result

    def _convolution(self, call: Call) -> Expr | None:
        call = upright.columns_as_channels(self, without_idle_taps(self, call), self._last)
        attrs, (data, weight) = call.attrs, call.args
        spatial = data.ty.ndim - 2
        layouts = (str(attrs.data_layout), str(attrs.kernel_layout))
        if layouts not in (("NCHW", "OIHW"), ("NCW", "OIW"), ("NHWC", "OHWI"), ("NHWC", "HWIO"), ("NHWC", "HWOI")):
            return None
        integer = integer_layout.is_integer_convolution(call) and self.array(weight) is not None
        if not integer and any(str(t.dtype) != "float32" for t in (call.ty, data.ty, weight.ty)):
            return None
        sizes = shape_of(weight)
        kernel_order = [layouts[1].index(axis) for axis in ("OIW" if spatial == 1 else "OIHW")]
        if None in sizes:
            return None
        out, per_group, *kernel = (sizes[i] or 0 for i in kernel_order)
        pads = [int(p) for p in attrs.padding]
        lift = [1] if spatial == 1 else []
        padding = (0, pads[0], 0, pads[1]) if spatial == 1 else (pads[0], pads[1], pads[2], pads[3])
        strides = [*lift, *(int(s) for s in attrs.strides)]
        dilation = [*lift, *(int(d) for d in attrs.dilation)]
        kernel = [*lift, *kernel]
        first, fill = layouts[0].startswith("NC"), 0
        if integer and not any(padding) and (pad := self._padding(data, first)) is not None:
            data, padding, fill = pad.data, pad.widths, pad.fill
        channels = per_group * int(attrs.groups)
        conv = Conv(
            (kernel[0], kernel[1]),
            (strides[0], strides[1]),
            padding,
            (dilation[0], dilation[1]),
            int(attrs.groups),
            out,
            fill=fill,
        )
        if spatial == 2 and (conv := upright.turned(conv, shape_of(data)[layouts[0].index("W")])).upright:
            kernel_order = [layouts[1].index(axis) for axis in "OIWH"]
        elif first and spatial == 2 and channels < _FEW_CHANNELS and self._known_last(data) is None:
            conv = replace(conv, channels_first=True)
        source = data if conv.channels_first or not first else self._last(data)
        value = self._emit_convolution(source, self._kernel_order(weight, kernel_order, spatial), conv, channels)
        return self._back(value) if first else value

    def _padding(self, data: Expr, first: bool) -> integer_layout.Padding | None:
        """Return the padding that makes `data`, if the convolution can take it over."""
        if first and (known := self._known_last(data)) is not None:
            pad = integer_layout.padding(self.bound(known), channels_last=True)
            return None if pad is None else replace(pad, data=self.builder_.emit(self._back(pad.data)))
        return integer_layout.padding(self.bound(data), channels_last=not first)

    def _volume(self, call: Call) -> Expr | None:
        call = without_idle_taps(self, call)
        data, weight = call.args
        conv, array = volumes.geometry(call), self._weights(weight)
        if conv is None or array is None:
            return None
        if volumes.pointwise(conv):
            return self._back(self._dense(self._last(data), weight, array[:, :, 0, 0, 0].T, conv.out_channels))
        return self._back(volumes.convolution(self._machine, conv, self._last(data), array, self._kernel))

    def _kernel_order(self, weight: Expr, order: list[int], spatial: int) -> Expr:
        """Return the weights as (o, i, kh, kw)."""
        array = self._weights(weight)
        if array is not None:
            array = array.transpose(order)
            return constant_expr(array[:, :, None] if spatial == 1 else array)
        if order != sorted(order):
            weight = self.builder_.emit(relax.op.permute_dims(weight, order))
        return self.builder_.emit(relax.op.expand_dims(weight, 2)) if spatial == 1 else weight

    def _emit_convolution(self, data: Expr, weight: Expr, conv: Conv, channels: int) -> Expr:
        bb = self.builder_
        array = self.array(weight)
        if array is not None and array.dtype == np.int8:
            return integer_layout.conv2d(bb, self._machine, data, array, conv)
        if conv.groups == channels == conv.out_channels and channels > 1 and not conv.channels_first:
            if array is not None:
                filters = constant_expr(array[:, 0].transpose(1, 2, 0))
            else:
                filters = bb.emit(relax.op.permute_dims(bb.emit(relax.op.squeeze(weight, [1])), [1, 2, 0]))
            return self._kernel("depthwise", lambda x, w: operators.depthwise(x, w, conv), data, filters)
        per_group = conv.out_channels // conv.groups
        pointwise = conv.kernel == (1, 1) and conv.strides == (1, 1) and conv.groups == 1 and not any(conv.padding)
        if pointwise and not conv.channels_first:
            matrix = None if array is None else array[:, :, 0, 0].T
            return self._dense(data, weight, matrix, conv.out_channels)
        sizes = shape_of(data)
        width = sizes[3] if conv.channels_first else sizes[1 if conv.upright else -2]
        results = None if width is None else conv.out_width(width)
        lanes = choose_tile(self._machine, results, per_group).columns
        if array is not None:
            packed = constant_expr(operators.pack_conv(array, conv.groups, lanes))
        else:
            packed = bb.emit_te(lambda w: operators.packed_conv(w, conv.groups, lanes), weight)
        return self._kernel("conv2d", lambda x, w: operators.conv2d(x, w, conv), data, packed)

    def _kernel(self, name: str, compute: Callable[..., te.Tensor], *operands: Expr) -> Call:
        """Call an operator of `operators`. TVM would not see that element-wise operators can follow all of them."""
        return self.builder_.call_te(
            compute, *operands, primfunc_name_hint=name, primfunc_attrs={"op_pattern": FUSABLE}
        )

    def _dense(self, data: Expr, weight: Expr, matrix: Array | None, columns: int) -> Expr:
        """Multiply rows of `data` by a constant matrix, or by the weights of a 1x1 convolution at run time."""
        bb = self.builder_
        sizes = shape_of(data)[:-1]
        rows = None if None in sizes else int(np.prod([s or 1 for s in sizes]))
        if matrix is None:
            reshaped = bb.emit(relax.op.reshape(weight, weight.ty.shape.values[:2]))
            right = bb.emit(relax.op.permute_dims(reshaped, [1, 0]))
            return self._kernel("matmul", operators.matmul, data, right)
        lanes = choose_tile(self._machine, rows, columns).columns
        packed = constant_expr(operators.pack_matrix(matrix, lanes))
        return self._kernel("dense", lambda x, w: operators.dense(x, w, columns), data, packed)

    def _transposed(self, call: Call) -> Expr | None:
        attrs, (data, weight) = call.attrs, call.args
        array = self._weights(weight)
        layouts = (str(attrs.data_layout), str(attrs.kernel_layout))
        if layouts not in (("NCHW", "IOHW"), ("NCW", "IOW"), ("NHWC", "IOHW")) or array is None:
            return None
        if int(attrs.groups) != 1 or any(int(d) != 1 for d in attrs.dilation) or str(call.ty.dtype) != "float32":
            return None
        conv, array = upright.transposed(call, array)
        width = shape_of(data)[layouts[0].index("H" if conv.upright else "W")]
        lanes = choose_tile(self._machine, width, conv.out_channels).columns
        packed = constant_expr(operators.pack_conv(array.transpose(1, 0, 2, 3), 1, lanes))
        first = layouts[0].startswith("NC")
        source = self._last(data) if first else data
        value = self._kernel("transposed", lambda x, w: operators.transposed(x, w, conv), source, packed)
        return self._back(value) if first else value

    def _matmul(self, call: Call) -> Expr | None:
        a, b = call.args
        if integer_layout.is_integer_product(call):
            return integer_layout.matmul(self.builder_, self._machine, a, self.array(b))
        if any(str(t.ty.dtype) != "float32" for t in (a, b)) or a.ty.ndim < 2 or b.ty.ndim < 2:
            return None
        if a.ty.shape is None or b.ty.shape is None:
            return None
        matrix = self._weights(b)
        if matrix is not None and matrix.ndim == 2:
            return self._dense(a, b, matrix, matrix.shape[1])
        if matrix is not None:
            b = constant_expr(matrix)
        return self._kernel("matmul", operators.matmul, a, b)

    def _recurrent(self, call: Call) -> Expr | None:
        weight = self.array(call.args[1].fields[1]) if len(call.args[1].fields) > 1 else None
        return packed_call(self.builder_, call, weight, self._machine)

    def _pool(self, call: Call) -> Expr | None:
        data = self._known_last(call.args[0])
        return self._back(layout_pools.pool(call, data)) if data is not None and layout_pools.takes(call) else None

    def _lookup(self, call: Call) -> Expr | None:
        values, at = self.array(call.args[0]), self.bound(call.args[1])
        if values is None or not byte_lookup.is_table(values) or str(at.ty.dtype) != "uint8":
            return None
        x = at.args[0] if byte_lookup.is_reinterpreted(at) else call.args[1]
        known = self._known_last(x)
        result = byte_lookup.emit(self.builder_, x if known is None else known, values)
        return result if known is None else self._back(result)

    def _resize(self, call: Call) -> Expr | None:
        data = self._known_last(call.args[0])
        if data is None or not layout_pools.takes(call):
            return None
        return self._back(layout_pools.resize(call, data))

    def _elementwise(self, call: Call) -> Expr | None:
        if not isinstance(call.ty, relax.TensorType):
            return None
        rank = call.ty.ndim
        tensors = [a for a in call.args if isinstance(a.ty, relax.TensorType)]
        if rank < 3 or not any(t.ty.ndim == rank and self._known_last(t) is not None for t in tensors):
            return None
        args = [self._operand(a, rank) if isinstance(a.ty, relax.TensorType) else a for a in call.args]
        return self._back(Call(call.op, args, call.attrs, call.ty_args)) if all(a is not None for a in args) else None

    def _operand(self, expr: Expr, rank: int) -> Expr | None:
        """Return an operand of an operator of `rank` in the new layout, with missing axes in front."""
        sizes = shape_of(expr)
        if expr.ty.ndim == 0 or (sizes and all(s == 1 for s in sizes) and expr.ty.ndim < rank):
            return expr
        if expr.ty.ndim == rank:
            return self._last(expr)
        if (array := self.array(expr)) is not None:
            return self._last(constant_expr(array.reshape([1] * (rank - array.ndim) + list(array.shape))))
        if expr.ty.shape is None:
            return None
        shape = [1] * (rank - expr.ty.ndim) + list(expr.ty.shape.values)
        return self._last(self.builder_.emit(relax.op.reshape(expr, shape)))

    def _reduction(self, call: Call) -> Expr | None:
        data, attrs = self._known_last(call.args[0]), call.attrs
        if data is None or (attrs.axis is None and attrs.keepdims):
            return None
        make = getattr(relax.op, last_part(operator_name(call)))
        if attrs.axis is None:
            return make(data)
        rank = call.args[0].ty.ndim
        axes = sorted(int(a) % rank for a in attrs.axis)
        moved = [last_axes(rank).index(a) for a in axes]
        if attrs.keepdims:
            return self._back(make(data, moved, True))
        rest = [a for a in last_axes(rank) if a not in axes]
        return make(data, moved, False) if rest == sorted(rest) else None

    def _concat(self, call: Call) -> Expr | None:
        fields = getattr(self.bound(call.args[0]), "fields", None)
        if fields is None or call.attrs.axis is None or not any(self._known_last(f) is not None for f in fields):
            return None
        axis = last_axes(call.ty.ndim).index(int(call.attrs.axis) % call.ty.ndim)
        return self._back(relax.op.concat([self._last(f) for f in fields], axis))

    def _softmax(self, call: Call) -> Expr | None:
        data = self._known_last(call.args[0])
        if data is None:
            return None
        axis = last_axes(call.ty.ndim).index(int(call.attrs.axis) % call.ty.ndim)
        return self._back(getattr(relax.op.nn, last_part(operator_name(call)))(data, axis))

    def _pad(self, call: Call) -> Expr | None:
        data = self._known_last(call.args[0])
        if data is None:
            return None
        rank, widths = call.ty.ndim, [int(w) for w in call.attrs.pad_width]
        moved = [w for a in last_axes(rank) for w in widths[2 * a : 2 * a + 2]]
        return self._back(relax.op.nn.pad(data, moved, call.attrs.pad_mode, call.attrs.pad_value))

    def _permute(self, call: Call) -> Expr | None:
        data = self._known_last(call.args[0])
        if data is None:
            return None
        rank = call.ty.ndim
        axes = [int(a) for a in call.attrs.axes] if call.attrs.axes else list(range(rank))[::-1]
        composed = [first_axes(rank)[a] for a in axes]
        return data if composed == list(range(rank)) else relax.op.permute_dims(data, composed)

    def _reshape(self, call: Call) -> Expr | None:
        """Both layouts of a single pixel have the same values in the same order."""
        data = self._known_last(call.args[0])
        sizes = shape_of(call.args[0])
        if data is None or not sizes or any(s != 1 for s in sizes[2:]) or call.ty.shape is None:
            return None
        return relax.op.reshape(data, call.ty.shape)

    def visit_tuple_getitem_(self, item: relax.TupleGetItem) -> Expr:
        item = self.visit_expr_post_order(item)
        call = self.bound(item.tuple_value) if isinstance(item, relax.TupleGetItem) else None
        if call is None or operator_name(call) != "relax.split":
            return item
        data = self._known_last(call.args[0])
        if data is None:
            return item
        rank = call.args[0].ty.ndim
        axis = last_axes(rank).index(int(call.attrs.axis) % rank)
        key = item.tuple_value
        if key not in self._moved:
            parts = call.attrs.indices_or_sections
            many = int(parts) if isinstance(parts, int | tirx.IntImm) else [int(i) for i in parts]
            self._moved[key] = self.builder_.emit(relax.op.split(data, many, axis))
        return self._back(relax.TupleGetItem(self._moved[key], item.index))


def channels_last(mod: IRModule, machine: Machine) -> IRModule:
    """Return `mod` with convolutions and their surroundings channels last, and the weights of products packed."""
    return rewritten(mod, _ChannelsLast(mod, machine))
