"""Padding and rounding of windows, as ONNX defines them: TVM's importer and its kernels have other rules."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from tvm import relax
from tvm.relax.frontend.onnx import onnx_frontend as frontend

from zmq_offload.compile.operators.node import Node, dtype_of, refuse, static_shape

POOLS = {"AveragePool": frontend.AveragePool, "MaxPool": frontend.MaxPool, "LpPool": frontend.LpPool}


def pool(bb: Any, node: Node) -> Any:
    """A pool with `auto_pad` and `ceil_mode` written out as padding."""
    attributes = node.attributes
    spatial = len(attributes["kernel_shape"])
    reach = _reach(node, attributes["kernel_shape"])
    strides = list(attributes.get("strides", [1] * spatial))
    shape = static_shape(node.inputs[0])
    extents = shape[2:] if shape is not None else None
    _write_out(node, reach, strides, extents)
    windows: list[int] = []
    if attributes.get("ceil_mode", 0):
        pads = list(attributes.get("pads", [0] * 2 * spatial))
        if extents is None:
            # TVM also counts a window that begins in the padding at the end; ONNX does not.
            if any(s + p > r for s, p, r in zip(strides, pads[spatial:], reach, strict=True)):
                refuse(node, "ceil_mode", 1, "with symbolic dimensions use ceil_mode=0")
        else:
            longer = list(pads)
            for axis, (extent, stride, size) in enumerate(zip(extents, strides, reach, strict=True)):
                whole = extent + pads[axis] + pads[axis + spatial]
                count = math.ceil((whole - size) / stride) + 1
                windows.append(count - 1 if (count - 1) * stride >= extent + pads[axis] else count)
                longer[axis + spatial] += max(0, (windows[-1] - 1) * stride + size - whole)
            # What is past the padding is never counted, so it can be padding only where that is not counted, either.
            if node.operator == "LpPool" or not attributes.get("count_include_pad", 0):
                attributes["pads"], attributes["ceil_mode"] = longer, 0
    result = bb.normalize(POOLS[node.operator].get_converter(node.opset)(bb, node.inputs, attributes, [{}, {}]))
    found = static_shape(result)
    extra = [a for a, n in enumerate(windows, 2) if found is not None and found[a] > n]
    if extra:
        result = relax.op.strided_slice(result, extra, [0] * len(extra), [windows[a - 2] for a in extra])
    return result


def convolution(bb: Any, node: Node) -> Any:
    """A convolution with `auto_pad` written out, where the image's size is known."""
    attributes, weight, shape = node.attributes, static_shape(node.inputs[1]), static_shape(node.inputs[0])
    if weight is not None:
        given = attributes.get("kernel_shape")
        if given is not None and list(given) != weight[2:]:
            refuse(node, "kernel_shape", list(given), f"its weights have {weight[2:]}")
        if shape is not None:
            strides = list(attributes.get("strides", [1] * len(weight[2:])))
            _write_out(node, _reach(node, weight[2:]), strides, shape[2:])
    return _in_float32(bb, node, frontend.Conv)


def transposed_convolution(bb: Any, node: Node) -> Any:
    """A transposed convolution with `output_shape` written out as padding."""
    attributes = node.attributes
    wanted = attributes.get("output_shape")
    if wanted is not None:
        shape, weight = static_shape(node.inputs[0]), static_shape(node.inputs[1])
        if shape is None or weight is None:
            refuse(node, "output_shape", list(wanted), "with symbolic dimensions use pads")
        spatial = len(shape) - 2
        strides = list(attributes.get("strides", [1] * spatial))
        extra = list(attributes.get("output_padding", [0] * spatial))
        upper = attributes.text("auto_pad", "NOTSET") == "SAME_UPPER"
        begin, end = [], []
        for axis, reach in enumerate(_reach(node, weight[2:])):
            total = strides[axis] * (shape[2 + axis] - 1) + extra[axis] + reach - list(wanted)[-spatial:][axis]
            extra[axis] += max(-total, 0)
            if extra[axis] >= max(strides[axis], 2):
                refuse(node, "output_shape", list(wanted), "it is larger than the strides can fill")
            total = max(total, 0)
            begin.append(total // 2 if upper else total - total // 2)
            end.append(total - begin[-1])
        attributes.update(pads=begin + end, output_padding=extra, auto_pad=b"NOTSET")
    return _in_float32(bb, node, frontend.ConvTranspose)


def _in_float32(bb: Any, node: Node, converter: Any) -> Any:
    """By TVM's converter. Sums of float16 are float32, as in ONNX Runtime."""
    kind = dtype_of(node.inputs[0])
    if kind == "float16":
        node.inputs[:] = [v if v is None else bb.normalize(relax.op.astype(v, "float32")) for v in node.inputs]
    result = converter.get_converter(node.opset)(bb, node.inputs, node.attributes, [{}, {}])
    return relax.op.astype(result, kind) if kind == "float16" else result


def _reach(node: Node, kernel: Sequence[int]) -> list[int]:
    """The extents of a window with its gaps."""
    dilations = node.attributes.get("dilations") or [1] * len(kernel)
    return [(k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True)]


def _write_out(node: Node, reach: Sequence[int], strides: Sequence[int], extents: Sequence[int] | None) -> None:
    mode = node.attributes.text("auto_pad", "NOTSET")
    if mode == "VALID":
        node.attributes["pads"] = [0] * 2 * len(reach)
    if mode not in ("SAME_UPPER", "SAME_LOWER"):
        return
    if extents is None:
        if node.operator != "Conv":
            refuse(node, "auto_pad", mode, "with symbolic dimensions use pads")
        return
    begin, end = [], []
    for extent, stride, size in zip(extents, strides, reach, strict=True):
        total = max((math.ceil(extent / stride) - 1) * stride + size - extent, 0)
        begin.append(total // 2 if mode == "SAME_UPPER" else total - total // 2)
        end.append(total - begin[-1])
    node.attributes.update(pads=begin + end, auto_pad=b"NOTSET")
    if "ceil_mode" in node.attributes:
        node.attributes["ceil_mode"] = 0
