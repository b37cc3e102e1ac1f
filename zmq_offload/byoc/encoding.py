"""How float32 tensors travel as something smaller: operators that encode and decode, in the graph itself.

float16 is a cast: finite values beyond 65504 become that, infinities and NaN stay what they are.

int8 is affine, with the range taken from the values themselves: x = (q + 128 - zero) * scale, the range from min(x, 0)
to max(x, 0) in 255 steps, so that 0 stays 0 exactly and no other finite value is off by more than half a step. `scale`
and `zero` travel beside, as the last axis of a small float32 tensor: one pair a tensor, or one a row where dimension 0
is symbolic, so that a row has the same bytes whatever it is batched with. There is no NaN and no infinity in eight
bits: a tensor (or row) that has one arrives as NaN altogether, rather than as numbers that look right.
"""

from __future__ import annotations

import math
from typing import Any, Literal, get_args

import numpy as np
from tvm import relax, tirx
from tvm.relax import op

from zmq_offload.errors import InvalidArgument

Wire = Literal["float32", "float16", "int8"]
WIRES: tuple[Wire, ...] = get_args(Wire)

_LARGEST = 65504.0
"""The largest finite float16."""

_STEPS = 255.0
_SMALLEST_SCALE = 1e-37
"""Its reciprocal is finite, and so are 255 steps of it: a tensor of zeros needs a scale, too."""


def check_wire(wire: Any) -> Wire:
    """`wire`, if it is one of `WIRES`; raises InvalidArgument otherwise."""
    for known in WIRES:
        if wire == known:
            return known
    raise InvalidArgument(f"wire {wire!r} is not one of {', '.join(WIRES)}")


def encoded_as(ty: relax.TensorType, wire: Wire) -> Wire:
    """What a tensor of this type travels as: as it is, if it is not float32 or would not become smaller."""
    if str(ty.dtype) != "float32":
        return "float32"
    return "float32" if wire == "int8" and _values_per_scale(ty) <= 2 else wire


def wire_types(ty: relax.TensorType, wire: Wire) -> list[relax.TensorType]:
    """The types of what a tensor travels as: one tensor, for int8 the values and the scales."""
    if wire == "float32":
        return [ty]
    if wire == "float16":
        return [relax.TensorType(ty.shape, "float16")]
    return [relax.TensorType(ty.shape, "int8"), relax.TensorType([*_rows(ty), 2], "float32")]


def encode(builder: relax.BlockBuilder, value: relax.Expr, wire: Wire) -> list[relax.Expr]:
    """Emit what turns a float32 tensor into `wire_types` of it."""
    if wire == "float32":
        return [value]
    emit = builder.emit
    if wire == "float16":
        # Infinities stay, and NaN compares with nothing. (One comparison: LLVM refuses what TVM makes of a logical_and
        # of two where a schedule has vectors for the tail of a tile.)
        finite = emit(op.less(op.abs(value), _const(math.inf)))
        limited = emit(op.minimum(op.maximum(value, _const(-_LARGEST)), _const(_LARGEST)))
        inside = op.where(finite, limited, value)
        return [emit(op.astype(inside, "float16"))]
    ty = value.ty
    axes = list(range(len(_rows(ty)), len(ty.shape)))
    # A maximum may ignore NaN; it does not ignore infinity. (TVM takes a comparison of x with x for true.)
    known = emit(op.where(op.less(op.abs(value), _const(math.inf)), value, _const(math.inf)))
    high = emit(op.maximum(emit(op.max(known, axes)), _const(0.0)))
    low = emit(op.minimum(emit(op.min(value, axes)), _const(0.0)))
    # Each of the two divided: the difference of finite values may be infinite.
    step = emit(op.subtract(op.divide(high, _const(_STEPS)), op.divide(low, _const(_STEPS))))
    scale = emit(op.maximum(step, _const(_SMALLEST_SCALE)))
    zero = emit(op.floor(op.add(op.divide(op.negative(low), scale), _const(0.5))))
    honest = emit(op.where(op.less(step, _const(math.inf)), scale, _const(math.nan)))
    scales = emit(op.stack([honest, zero], axis=-1))
    # From the tensor that is stored anyway: what computes it would be computed again for each element.
    step, origin = _scale_and_zero(emit, scales, len(ty.shape))
    # Half a step more, for the conversion to an integer cuts off. NaN becomes 0 by the maximum, and is none on arrival.
    place = emit(op.add(op.divide(value, step), op.add(origin, _const(0.5))))
    inside = emit(op.minimum(op.maximum(place, _const(0.0)), _const(_STEPS + 0.5)))
    whole = emit(op.subtract(op.astype(inside, "int32"), relax.const(128, "int32")))
    return [emit(op.astype(whole, "int8")), scales]


def decode(builder: relax.BlockBuilder, parts: list[relax.Expr], wire: Wire) -> relax.Expr:
    """Emit what turns tensors of `wire_types` into the float32 tensor again."""
    if wire == "float32":
        return parts[0]
    emit = builder.emit
    if wire == "float16":
        return emit(op.astype(parts[0], "float32"))
    quantized, scales = parts
    scale, zero = _scale_and_zero(emit, scales, len(quantized.ty.shape))
    steps = emit(op.subtract(op.astype(quantized, "float32"), op.subtract(zero, _const(128.0))))
    return emit(op.multiply(steps, scale))


def _scale_and_zero(emit: Any, scales: relax.Expr, rank: int) -> list[relax.Expr]:
    """The two of each row, of the rank of what they belong to."""
    rows = list(scales.ty.shape.values)[:-1]
    wide = [*rows, *[1] * (rank - len(rows))]
    return [emit(op.reshape(op.strided_slice(scales, [len(rows)], [i], [i + 1]), wide)) for i in (0, 1)]


def _rows(ty: relax.TensorType) -> list[Any]:
    """The extents over which scales are apart: the batch, if there is one."""
    dims = list(ty.shape.values)
    return dims[:1] if dims and not isinstance(dims[0], tirx.IntImm) else []


def _values_per_scale(ty: relax.TensorType) -> float:
    """How many values share one scale, as far as that is known before the model runs."""
    dims = list(ty.shape.values)[len(_rows(ty)) :]
    return math.prod(int(d) if isinstance(d, tirx.IntImm) else math.inf for d in dims)


def _const(value: float) -> relax.Constant:
    return relax.const(np.float32(value), "float32")
