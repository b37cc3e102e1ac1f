"""Encodings of float32 tensors at a boundary, as Relax operators that encode and decode.

float16 is a cast. Finite values beyond +-65504 become +-65504; infinities and NaN stay.

int8 is affine: x = (q + 128 - zero) * scale. The range from min(x, 0) to max(x, 0) has 255 steps, so 0 is exact and no
other finite value is off by more than half a step. A second tensor, float32, holds `scale` and `zero` in its last axis:
one pair for the tensor, or one for each row if dimension 0 is symbolic. So a row has the same bytes in every batch.
Eight bits hold no NaN or infinity: a tensor or row that has one arrives as all NaN, not as plausible numbers.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, get_args

import numpy as np
from tvm import ir, relax, tirx
from tvm.relax import op

from zmq_offload.errors import InvalidArgument

Wire = Literal["float32", "float16", "int8"]
"""How a float32 tensor travels: as it is, as float16, or as int8 with a scale. Other datatypes always travel as they
are."""

WIRES: tuple[Wire, ...] = get_args(Wire)

_LARGEST = 65504.0
"""The largest finite float16."""

_STEPS = 255.0
_SMALLEST_SCALE = 1e-37
"""The scale of a tensor of zeros. Its reciprocal and 255 times itself are finite."""


def check_wire(wire: object) -> Wire:
    """Return `wire` if it is one of `WIRES`; raise InvalidArgument otherwise."""
    for known in WIRES:
        if wire == known:
            return known
    raise InvalidArgument(f"wire {wire!r} is not an encoding; choose one of {', '.join(WIRES)}")


def encoded_as(ty: relax.TensorType, wire: Wire) -> Wire:
    """Return the encoding for a tensor of this type: "float32", unless it is float32 and `wire` makes it smaller."""
    if str(ty.dtype) != "float32":
        return "float32"
    return "float32" if wire == "int8" and _values_per_scale(ty) <= 2 else wire


def wire_types(ty: relax.TensorType, wire: Wire) -> list[relax.TensorType]:
    """Return the types of the tensors that travel: one, or for int8 the values and the scales."""
    if wire == "float32":
        return [ty]
    if wire == "float16":
        return [relax.TensorType(ty.shape, "float16")]
    return [relax.TensorType(ty.shape, "int8"), relax.TensorType([*_rows(ty), 2], "float32")]


def encode(builder: relax.BlockBuilder, value: relax.Expr, wire: Wire) -> list[relax.Expr]:
    """Emit the operators that turn a float32 tensor into tensors of `wire_types`."""
    if wire == "float32":
        return [value]
    emit = builder.emit
    if wire == "float16":
        # False for infinities and NaN, which stay. (A single comparison: LLVM refuses the vectors that TVM makes of a
        # logical_and of two in the tail of a tile.)
        finite = emit(op.less(op.abs(value), _const(math.inf)))
        limited = emit(op.minimum(op.maximum(value, _const(-_LARGEST)), _const(_LARGEST)))
        inside = op.where(finite, limited, value)
        return [emit(op.astype(inside, "float16"))]
    ty = value.ty
    axes = list(range(len(_rows(ty)), len(ty.shape)))
    # A maximum may ignore NaN but not infinity. (x == x does not find NaN: TVM simplifies it to true.)
    known = emit(op.where(op.less(op.abs(value), _const(math.inf)), value, _const(math.inf)))
    high = emit(op.maximum(emit(op.max(known, axes)), _const(0.0)))
    low = emit(op.minimum(emit(op.min(value, axes)), _const(0.0)))
    # Divide before subtracting: the difference of finite values may be infinite.
    step = emit(op.subtract(op.divide(high, _const(_STEPS)), op.divide(low, _const(_STEPS))))
    scale = emit(op.maximum(step, _const(_SMALLEST_SCALE)))
    zero = emit(op.floor(op.add(op.divide(op.negative(low), scale), _const(0.5))))
    known_or_nan = emit(op.where(op.less(step, _const(math.inf)), scale, _const(math.nan)))
    scales = emit(op.stack([known_or_nan, zero], axis=-1))
    # Read the stored scales: fused, their computation would run for each element.
    step, origin = _scale_and_zero(emit, scales, len(ty.shape))
    # Half a step more, since conversion to an integer truncates. The maximum turns NaN into 0; its scale is NaN.
    place = emit(op.add(op.divide(value, step), op.add(origin, _const(0.5))))
    inside = emit(op.minimum(op.maximum(place, _const(0.0)), _const(_STEPS + 0.5)))
    whole = emit(op.subtract(op.astype(inside, "int32"), relax.const(128, "int32")))
    return [emit(op.astype(whole, "int8")), scales]


def decode(builder: relax.BlockBuilder, tensors: list[relax.Expr], wire: Wire) -> relax.Expr:
    """Emit the operators that turn tensors of `wire_types` into the float32 tensor."""
    if wire == "float32":
        return tensors[0]
    emit = builder.emit
    if wire == "float16":
        return emit(op.astype(tensors[0], "float32"))
    quantized, scales = tensors
    scale, zero = _scale_and_zero(emit, scales, len(quantized.ty.shape))
    steps = emit(op.subtract(op.astype(quantized, "float32"), op.subtract(zero, _const(128.0))))
    return emit(op.multiply(steps, scale))


def _scale_and_zero(emit: Callable[[relax.Expr], relax.Var], scales: relax.Expr, rank: int) -> list[relax.Expr]:
    """Emit scale and zero of each row, with the rank of the tensor that they belong to."""
    rows = list(scales.ty.shape.values)[:-1]
    wide = [*rows, *[1] * (rank - len(rows))]
    return [emit(op.reshape(op.strided_slice(scales, [len(rows)], [i], [i + 1]), wide)) for i in (0, 1)]


def _rows(ty: relax.TensorType) -> list[ir.Expr]:
    """Return the extents with a scale of their own: the batch, if dimension 0 is symbolic."""
    dims = list(ty.shape.values)
    return dims[:1] if dims and not isinstance(dims[0], tirx.IntImm) else []


def _values_per_scale(ty: relax.TensorType) -> float:
    """Return how many values share one scale; infinity for symbolic extents."""
    dims = list(ty.shape.values)[len(_rows(ty)) :]
    return math.prod(int(d) if isinstance(d, tirx.IntImm) else math.inf for d in dims)


def _const(value: float) -> relax.Constant:
    return relax.const(np.float32(value), "float32")
