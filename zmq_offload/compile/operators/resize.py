"""Resize and Upsample as ONNX defines them. TVM derives the scale from rounded sizes and ignores several attributes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import tvm
from tvm import relax

from zmq_offload.byoc.extents import Extent, expression, fraction_of
from zmq_offload.compile.operators.node import Node, dtype_of, refuse, static_shape
from zmq_offload.compile.operators.tvm_importer import Builder, Expr
from zmq_offload.compile.quantization.integers import BYTES
from zmq_offload.protocol.payload import Array

COORDINATES = (
    "half_pixel",
    "asymmetric",
    "align_corners",
    "pytorch_half_pixel",
    "half_pixel_symmetric",
    "tf_crop_and_resize",
    "tf_half_pixel_for_nn",
)
SHARED = ("half_pixel", "asymmetric", "align_corners", "pytorch_half_pixel")
"""Modes in which TVM's kernels agree with ONNX, if the scale is the ratio of the sizes."""


@dataclass(frozen=True)
class Options:
    """The attributes of a Resize."""

    mode: str
    coordinates: str
    nearest: str
    cubic: float
    exclude_outside: bool
    antialias: bool
    extrapolation: float


@dataclass(frozen=True)
class Axis:
    """One axis to resize: extents before and after, the scale, and the cropped interval of the input, 0 to 1."""

    axis: int
    before: int
    after: int
    scale: np.float32
    start: float = 0.0
    end: float = 1.0

    @property
    def exact(self) -> bool:
        """Whether the scale is the ratio of the extents."""
        return bool(abs(float(self.scale) * self.before - self.after) < 1e-4)


def upsample(bb: Builder, node: Node) -> Expr:
    """Upsample of opsets 7 and 9 is Resize with asymmetric coordinates."""
    given = node.attributes.get("scales")
    scales = np.asarray(given, np.float32) if given is not None else node.constant(1)
    options = _options(node, "asymmetric", "floor")
    return _resized(bb, node, options, None, scales, None)


def resize(bb: Builder, node: Node) -> Expr:
    """Resize; bytes in float32 with the fraction dropped, as ONNX Runtime does for its own quantizer's models."""
    kind = dtype_of(node.inputs[0])
    if kind not in BYTES or node.attributes.text("mode", "nearest") != "linear":
        return _of_floats(bb, node)
    node.inputs[0] = bb.normalize(relax.op.astype(node.inputs[0], "float32"))
    return relax.op.astype(_of_floats(bb, node), kind)


def _of_floats(bb: Builder, node: Node) -> Expr:
    if node.opset < 11:
        return _resized(bb, node, _options(node, "asymmetric", "floor"), None, node.constant(1), None)
    options = _options(node, "half_pixel", "round_prefer_floor")
    roi = node.constant(1) if options.coordinates == "tf_crop_and_resize" else node.inputs[1] and None
    scales = node.constant(2)
    sizes = node.numbers(3) if node.inputs[3] is not None else None
    if sizes is not None and (static_shape(node.inputs[0]) is None or any(not isinstance(s, int) for s in sizes)):
        return _to_sizes(bb, node, options, sizes)
    return _resized(bb, node, options, roi, scales if scales is not None and scales.size else None, node.constant(3))


def _to_sizes(bb: Builder, node: Node, options: Options, sizes: Sequence[Extent]) -> Expr:
    """Resize to sizes, some of which are symbolic."""
    policy = node.attributes.text("keep_aspect_ratio_policy", "stretch")
    if policy != "stretch":
        refuse(node, "keep_aspect_ratio_policy", policy, "with symbolic dimensions use stretch")
    dims = node.dims(0)
    axes = node.attributes.integers("axes") or range(len(dims))
    for axis, size in zip(axes, sizes, strict=True):
        if axis % len(dims) < 2 and not node.extents.equal(dims[axis], size):
            raise node.refused(
                f"it resizes dimension {axis}, {node.extents.text(dims[axis])}, to {node.extents.text(size)}",
                "resize height and width only",
            )
        dims[axis] = size
    return _by_tvm(bb, node, options, [expression(d) for d in dims])


def _options(node: Node, coordinates: str, nearest: str) -> Options:
    attributes = node.attributes
    options = Options(
        attributes.text("mode", "nearest"),
        attributes.text("coordinate_transformation_mode", coordinates),
        attributes.text("nearest_mode", nearest),
        attributes.number("cubic_coeff_a", -0.75),
        attributes.flag("exclude_outside"),
        attributes.flag("antialias"),
        attributes.number("extrapolation_value", 0.0),
    )
    if options.coordinates not in COORDINATES:
        refuse(node, "coordinate_transformation_mode", options.coordinates, f"use {', '.join(COORDINATES)}")
    if options.mode not in ("nearest", "linear", "cubic"):
        refuse(node, "mode", options.mode, "use nearest, linear or cubic")
    if options.mode != "nearest" and dtype_of(node.inputs[0]) not in ("float16", "bfloat16", "float32", "float64"):
        refuse(node, "mode", options.mode, f"{dtype_of(node.inputs[0])} is rounded in another way; cast to float32")
    return options


def _resized(
    bb: Builder, node: Node, options: Options, roi: Array | None, scales: Array | None, sizes: Array | None
) -> Expr:
    x = node.inputs[0]
    dims = list(x.ty.shape.values)
    axes = [a % len(dims) for a in node.attributes.integers("axes") or range(len(dims))]
    if (scales is None) == (sizes is None):
        raise node.refused("it has neither scales nor sizes", "export the model with one of them")
    policy = node.attributes.text("keep_aspect_ratio_policy", "stretch")
    symbolic = [d for d, extent in enumerate(dims) if not isinstance(extent, tvm.tirx.IntImm) and d in axes]
    if symbolic and any(scales is None or scales[axes.index(d)] != 1 for d in symbolic):
        return _symbolic(bb, node, options, axes, scales, policy)
    static = [axis for axis in axes if axis not in symbolic]
    given = np.asarray(scales if scales is not None else sizes)[[axes.index(a) for a in static]]
    factors, after = _extents(given, scales is not None, np.array([int(dims[a]) for a in static]), policy)
    changed = []
    for a, factor, extent in zip(static, factors, after, strict=True):
        crop = (0.0, 1.0) if roi is None else (float(roi[axes.index(a)]), float(roi[axes.index(a) + len(axes)]))
        axis = Axis(a, int(dims[a]), int(extent), factor, *crop)
        if not axis.after:
            why = f"its output has no elements: axis {a} of extent {axis.before} becomes 0"
            raise node.refused(why, "give a larger scale, or a larger image with --input")
        if axis.before != axis.after or axis.scale != 1 or crop != (0.0, 1.0):
            changed.append(axis)
    if any(not axis.exact for axis in changed) and options.coordinates == "align_corners":
        refuse(node, "coordinate_transformation_mode", "align_corners", "ONNX and ONNX Runtime disagree; give sizes")
    if _same_by_tvm(options, changed, len(dims)):
        return _by_tvm(
            bb, node, options, [next((c.after for c in changed if c.axis == a), d) for a, d in enumerate(dims)]
        )
    for axis in changed:
        x = _along(bb, x, axis, options)
    return x


def _symbolic(bb: Builder, node: Node, options: Options, axes: list[int], scales: Array | None, policy: str) -> Expr:
    """Resize symbolic dimensions, by factors that keep them whole."""
    if scales is None or policy != "stretch":
        refuse(node, "keep_aspect_ratio_policy", policy, "with symbolic dimensions give scales")
    dims, extents = node.dims(0), node.extents
    for axis, scale in zip(axes, scales, strict=True):
        factor = fraction_of(float(scale))
        if factor is None:
            refuse(node, "scales", [float(s) for s in scales], "with symbolic dimensions use whole numbers")
        after = extents.product([dims[axis], factor.numerator])
        exact = extents.quotient(after, factor.denominator)
        if exact is None:  # TVM takes the ratio of the extents, ONNX the scale
            raise node.refused(
                f"it scales the extent {extents.text(dims[axis])} by {float(scale):g}",
                node.scope.to_divide([after], factor.denominator),
            )
        dims[axis] = exact
    return _by_tvm(bb, node, options, [expression(d) for d in dims])


def _extents(given: Array, are_scales: bool, before: Array, policy: str) -> tuple[Array, Array]:
    """The scale and the new extent of each axis, from scales or sizes."""
    if are_scales:
        scales = given.astype(np.float32)
        return scales, np.floor(scales * before.astype(np.float32))
    if policy == "stretch":
        return (given / before).astype(np.float32), given
    one = (min if policy == "not_larger" else max)(given / before)
    return np.full(len(before), one, np.float32), np.floor(one * before + 0.5)


def _same_by_tvm(options: Options, changed: Sequence[Axis], rank: int) -> bool:
    """Whether TVM's own kernel, for which there are schedules, computes the same."""
    if rank != 4 or any(axis.axis < 2 or not axis.exact for axis in changed) or options.coordinates not in SHARED:
        return False
    if options.antialias or (options.mode == "cubic" and options.exclude_outside):
        return False
    if options.coordinates == "align_corners" and any(axis.after == 1 for axis in changed):
        return False  # it divides by 0
    if options.mode != "nearest":
        return options.coordinates != "pytorch_half_pixel" or all(axis.after > 1 for axis in changed)
    # The kernel computes in float32. With whole ratios no coordinate is near a tie.
    return all(
        axis.after % axis.before == 0
        and (_taps(axis, options)[0][:, 0] == np.arange(axis.after) // (axis.after // axis.before)).all()
        for axis in changed
    )


def _by_tvm(bb: Builder, node: Node, options: Options, sizes: Sequence[Expr]) -> Expr:
    x = node.inputs[0]
    special = options.coordinates not in SHARED or options.antialias or options.exclude_outside
    if special or len(sizes) != 4:
        name = "coordinate_transformation_mode" if options.coordinates not in SHARED else "mode"
        refuse(
            node, name, getattr(options, "coordinates" if "coord" in name else "mode"), "give the image a fixed size"
        )
    nearest = options.mode == "nearest"
    return bb.normalize(
        relax.op.image.resize2d(
            x,
            size=relax.ShapeExpr(sizes[2:]),
            roi=[0.0] * 4,
            layout="NCHW",
            method="nearest_neighbor" if nearest else options.mode,
            coordinate_transformation_mode=options.coordinates,
            rounding_method=options.nearest if nearest else "",
            cubic_alpha=options.cubic,
            cubic_exclude=0,
            extrapolation_value=0.0,
        )
    )


def _along(bb: Builder, x: Expr, axis: Axis, options: Options) -> Expr:
    """Resize along one axis: a weighted sum of slices, at the places and with the weights of `_taps`."""
    indices, weights = _taps(axis, options)
    kind = dtype_of(x)
    shape = [1] * x.ty.ndim
    shape[axis.axis] = axis.after
    if options.mode == "nearest":
        result = relax.op.take(x, relax.const(indices[:, 0], "int64"), axis.axis, mode="clip")
    else:
        wide = "float64" if kind == "float64" else "float32"
        x = bb.normalize(relax.op.astype(x, wide)) if kind != wide else x
        result = None
        for tap in range(indices.shape[1]):
            taken = relax.op.take(x, relax.const(indices[:, tap], "int64"), axis.axis, mode="clip")
            term = relax.op.multiply(taken, relax.const(weights[:, tap].reshape(shape).astype(wide), wide))
            result = term if result is None else relax.op.add(result, term)
        result = relax.op.astype(result, kind) if kind != wide else result
    if options.coordinates == "tf_crop_and_resize":
        at = _coordinates(axis, options.coordinates)
        inside = ((at >= 0) & (at <= axis.before - 1)).reshape(shape)
        result = relax.op.where(relax.const(inside, "bool"), result, relax.const(options.extrapolation, kind))
    return bb.normalize(result)


def _coordinates(axis: Axis, mode: str) -> Array:
    """The input coordinate of each output, in float32 as in ONNX Runtime, so that ties are rounded alike."""
    x, scale, before = np.arange(axis.after, dtype=np.float32), np.float32(axis.scale), axis.before
    half = np.float32(0.5)
    if mode == "align_corners":
        return np.asarray(x * np.float32(before - 1) / np.float32(max(axis.after - 1, 1)))
    if mode == "asymmetric":
        return np.asarray(x / scale)
    if mode == "tf_half_pixel_for_nn":
        return np.asarray((x + half) / scale)
    if mode == "tf_crop_and_resize":
        if axis.after == 1:
            return np.array([0.5 * (axis.start + axis.end) * (before - 1)], np.float32)
        step = (axis.end - axis.start) * (before - 1) / (axis.after - 1)
        return (axis.start * (before - 1) + x * step).astype(np.float32)
    if mode == "pytorch_half_pixel" and axis.after == 1:
        return np.asarray(x * 0)
    center = (x + half) / scale - half
    if mode == "half_pixel_symmetric":
        return np.asarray(center + before / 2 * (1 - axis.after / (float(scale) * before)), np.float32)
    return np.asarray(center)


def _taps(axis: Axis, options: Options) -> tuple[Array, Array]:
    """The inputs that each output is computed from, and their weights; both are [outputs, taps]."""
    at = _coordinates(axis, options.coordinates)
    last = axis.before - 1
    if options.mode == "nearest":
        half = np.float32(0.5)
        modes = {
            "round_prefer_floor": np.ceil(at - half),
            "round_prefer_ceil": np.floor(at + half),
            "floor": np.floor(at),
            "ceil": np.ceil(at),
        }
        return np.clip(modes[options.nearest], 0, last).astype(np.int64)[:, None], np.ones((axis.after, 1))
    narrow = min(float(axis.scale), 1.0) if options.antialias else 1.0
    reach = (1 if options.mode == "linear" else 2) / narrow
    first = int(np.floor(-reach)) + 1
    steps = np.arange(first, 2 - first)
    base = np.floor(at)
    distance = np.abs((steps[None, :] - (at - base)[:, None]) * narrow)
    weights = np.clip(1 - distance, 0, None) if options.mode == "linear" else _cubic(distance, options.cubic)
    places = base[:, None].astype(np.int64) + steps[None, :]
    if options.exclude_outside and options.mode == "cubic":
        weights = np.where((places < 0) | (places > last), 0, weights)
    weights = weights / weights.sum(axis=1, keepdims=True)
    return np.clip(places, 0, last), weights


def _cubic(x: Array, a: float) -> Array:
    near = (a + 2) * x**3 - (a + 3) * x**2 + 1
    far = a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a
    return np.where(x <= 1, near, np.where(x < 2, far, 0))
