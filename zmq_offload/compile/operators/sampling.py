"""GridSample and RoiAlign: pixels between those of an image, read at places that are computed when the model runs.

Both read the image with its channels last, so that one place serves vectors of channels. TVM computes the place for
each channel again.
"""

from __future__ import annotations

import tvm
from tvm import relax, te, tirx
from tvm.ir import Expr as Scalar

from zmq_offload.compile.operators import places
from zmq_offload.compile.operators.node import Node, by_tvm, dtype_of, refuse
from zmq_offload.compile.operators.tvm_importer import Builder, Expr
from zmq_offload.schedules.tvm_internals import OPAQUE

op = relax.op

LEAST_CHANNELS = 4
"""Channels from which on transposing the image pays."""


def grid_sample(bb: Builder, node: Node) -> Expr:
    """Linear sampling of images. Other modes, and volumes, are TVM's."""
    x, grid = node.inputs[0], node.inputs[1]
    mode, padding = node.attributes.text("mode", "linear"), node.attributes.text("padding_mode", "zeros")
    if (
        mode not in ("linear", "bilinear")
        or padding == "reflection"
        or x.ty.ndim != 4
        or not _wide(x)
        or dtype_of(grid) != "float32"
    ):
        return places.grid_sample(bb, node)
    aligned, border = node.attributes.flag("align_corners"), padding == "border"

    def sample(image: te.Tensor, at: te.Tensor) -> te.Tensor:
        sizes = [image.shape[2], image.shape[1]]

        def place(n: Scalar, i: Scalar, j: Scalar, axis: int) -> Scalar:
            size = sizes[axis].astype("float32")
            last, half = size - 1.0, tirx.FloatImm("float32", 0.5)
            whole = at[n, i, j, axis] + 1.0
            position = whole * half * last if aligned else (whole * size - 1.0) * half
            return tirx.Max(tirx.Min(position, last), tirx.FloatImm("float32", 0.0)) if border else position

        def element(n: Scalar, i: Scalar, j: Scalar, c: Scalar) -> Scalar:
            return _between(image, n, place(n, i, j, 1), place(n, i, j, 0), c)

        return te.compute((image.shape[0], *at.shape[1:3], image.shape[3]), element, name="sample")

    return _channels_last(bb, sample, x, grid, name="grid_sample")


def roi_align(bb: Builder, node: Node) -> Expr:
    """The mean of a fixed number of samples for each bin of a box; TVM's if the number depends on the box."""
    mode = node.attributes.text("mode", "avg")
    if mode != "avg":
        refuse(node, "mode", mode, "use avg: TVM's maximum is of interpolated values, ONNX's of weighted ones")
    usual = "half_pixel" if node.opset >= 16 else "output_half_pixel"
    scale = node.attributes.number("spatial_scale", 1.0)
    half_pixel = node.attributes.text("coordinate_transformation_mode", usual) == "half_pixel"
    x, boxes, images = node.inputs[0], node.inputs[1], node.inputs[2]
    samples = node.attributes.integer("sampling_ratio", 0)
    if not 0 < samples <= 4 or not _wide(x) or dtype_of(boxes) != "float32":
        if half_pixel and scale != 1:
            # TVM shifts the boxes by half a pixel before it scales them, ONNX after.
            node.inputs[1] = bb.normalize(op.add(boxes, relax.const(0.5 - 0.5 / scale, dtype_of(boxes))))
        return by_tvm(bb, node)
    bins = [node.attributes.integer(name, 1) for name in ("output_height", "output_width")]
    shift, factor = (0.5 if half_pixel else 0.0), tirx.FloatImm("float32", scale)

    def mean(image: te.Tensor, corners: te.Tensor, numbers: te.Tensor) -> te.Tensor:
        sizes = [image.shape[1], image.shape[2]]

        def place(r: Scalar, axis: int, b: Scalar, s: Scalar) -> Scalar:
            """The position of sample `s` of bin `b`."""
            start, end = (corners[r, 1 - axis + far] * factor - shift for far in (0, 2))
            extent = end - start if half_pixel else tirx.Max(end - start, tirx.FloatImm("float32", 1.0))
            step = extent / float(bins[axis])
            return start + b.astype("float32") * step + (s.astype("float32") + 0.5) * step / float(samples)

        def sampled(r: Scalar, i: Scalar, j: Scalar, c: Scalar, s: Scalar, t: Scalar) -> Scalar:
            zero = tirx.FloatImm("float32", 0.0)
            image_number = _inside(numbers[r].astype("int64"), image.shape[0])
            there, positions = tirx.const(True, "bool"), []
            for axis, (b, k) in enumerate(((i, s), (j, t))):
                position, size = place(r, axis, b, k), sizes[axis].astype("float32")
                there = tirx.And(there, tirx.And(position >= -1.0, position <= size))
                positions.append(tirx.Max(tirx.Min(position, size - 1.0), zero))
            return tirx.Select(there, _between(image, image_number, positions[0], positions[1], c), zero)

        def element(r: Scalar, i: Scalar, j: Scalar, c: Scalar) -> Scalar:
            steps = [tirx.IntImm("int64", k) for k in range(samples)]
            total = sum((sampled(r, i, j, c, s, t) for s in steps for t in steps), tirx.FloatImm("float32", 0.0))
            return total / float(samples * samples)

        return te.compute((corners.shape[0], *bins, image.shape[3]), element, name="mean")

    return _channels_last(bb, mean, x, boxes, images, name="roi_align")


def _wide(x: Expr) -> bool:
    """Whether `x` is of float32, with channels enough for vectors."""
    channels = x.ty.shape.values[1] if isinstance(x.ty.shape, relax.ShapeExpr) else None
    return dtype_of(x) == "float32" and isinstance(channels, tvm.tirx.IntImm) and int(channels) >= LEAST_CHANNELS


def _channels_last(bb: Builder, compute: object, x: Expr, *others: Expr, name: str) -> Expr:
    """Emit `compute` of `x` with its channels last, and put those of the result back."""
    image = bb.normalize(op.permute_dims(x, [0, 2, 3, 1]))
    # Not fused: a transpose would put the places back into the inner loop.
    result = bb.emit_te(compute, image, *others, primfunc_name_hint=name, primfunc_attrs={"op_pattern": OPAQUE})
    return op.permute_dims(result, [0, 3, 1, 2])


def _inside(place: Scalar, extent: Scalar) -> Scalar:
    """The valid index that is nearest to `place`; 0 for NaN."""
    if str(place.ty).startswith("float"):
        # A conversion of NaN, or of a number that int64 does not have, is undefined.
        zero = tirx.FloatImm("float32", 0.0)
        place = tirx.Min(tirx.Select(place >= 0.0, place, zero), extent.astype("float32"))
    return tirx.Max(tirx.Min(place.astype("int64"), extent - 1), tirx.IntImm("int64", 0))


def _between(image: te.Tensor, n: Scalar, y: Scalar, x: Scalar, c: Scalar) -> Scalar:
    """The value of an image at the position (y, x), from the four pixels around it; those outside count as 0."""
    top, left = tirx.floor(y), tirx.floor(x)
    height, width = image.shape[1].astype("float32"), image.shape[2].astype("float32")
    zero = tirx.FloatImm("float32", 0.0)
    rows = []
    for row, down in ((top, top + 1.0 - y), (top + 1.0, y - top)):
        values = []
        for column, right in ((left, left + 1.0 - x), (left + 1.0, x - left)):
            there = tirx.And(tirx.And(row >= 0.0, row < height), tirx.And(column >= 0.0, column < width))
            pixel = image[n, _inside(row, image.shape[1]), _inside(column, image.shape[2]), c]
            values.append(tirx.Select(there, pixel, zero) * right)
        rows.append((values[0] + values[1]) * down)
    return rows[0] + rows[1]
