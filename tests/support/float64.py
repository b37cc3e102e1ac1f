"""Evaluate an ONNX model in float64: what float32, float16 and int8 results are measured against.

All floats of the graph are float64: inputs, weights as stored, scales, constants, casts. Integers stay as they are.
Operators of com.microsoft on quantized tensors are written out first as what they mean: dequantize, compute, quantize.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import onnx
from onnx import AttributeProto, TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

from zmq_offload.compile.onnx.order import sort_nodes
from zmq_offload.compile.operators.qlinear import write_out_quantized

Array = np.ndarray[Any, Any]

FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16)
_DATATYPES = ("to", "dtype", "output_dtype", "precision")
"""Attributes that name a datatype."""


class GatherElements(OpRun):
    """onnx's own takes few shapes."""

    def _run(self, data: Array, indices: Array, axis: int = 0) -> tuple[Array]:
        return (np.take_along_axis(data, np.where(indices < 0, indices + data.shape[axis], indices), axis),)


class DynamicQuantizeLinear(OpRun):
    """onnx's own computes the scale in float32."""

    def _run(self, x: Array) -> tuple[Array, Array, Array]:
        lowest, highest = min(x.min(), 0.0), max(x.max(), 0.0)
        scale = (highest - lowest) / 255 or 1.0
        zero = np.clip(np.rint(-lowest / scale), 0, 255)
        y = np.clip(np.rint(x / scale) + zero, 0, 255)
        return y.astype("u1"), np.asarray(scale), zero.astype("u1")


class MatMulInteger(OpRun):
    """onnx's own is a product of integers, which NumPy computes without BLAS. Sums below 2^53 are exact in float64."""

    def _run(self, a: Array, b: Array, a_zero: Array | None = None, b_zero: Array | None = None) -> tuple[Array]:
        if a_zero is not None and a_zero.ndim == 1 and a_zero.size > 1:
            a_zero = a_zero[:, None]
        a, b = (v.astype("f8") if z is None else v.astype("f8") - z for v, z in ((a, a_zero), (b, b_zero)))
        return ((a @ b).astype("i4"),)


class DequantizeLinear(OpRun):
    """onnx's own subtracts in float32, which int32 does not fit in."""

    def _run(
        self,
        x: Array,
        scale: Array,
        zero: Array | None = None,
        axis: int = 1,
        block_size: int = 0,
        output_dtype: int | None = None,
    ) -> tuple[Array]:
        def along(value: Array) -> Array:
            if block_size:
                return np.take(np.repeat(value, block_size, axis), np.arange(x.shape[axis]), axis)
            return value.reshape([-1 if i == axis % x.ndim else 1 for i in range(x.ndim)]) if value.size > 1 else value

        moved = x.astype("f8") if zero is None else x.astype("f8") - along(zero).astype("f8")
        return (np.asarray(moved * (along(scale) if scale.size > 1 else scale.reshape(()))),)


_OPERATORS = [GatherElements, DynamicQuantizeLinear, MatMulInteger, DequantizeLinear]


def widened(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same model with float64 in place of all floats."""
    wide = onnx.ModelProto()
    wide.CopyFrom(model)
    sort_nodes(wide.graph)
    if any(node.domain == "com.microsoft" for node in wide.graph.node):
        write_out_quantized(wide)
    for graph in _graphs(wide.graph):
        for weight in graph.initializer:
            _widen(weight)
        for value in (*graph.input, *graph.output, *graph.value_info):
            tensor = value.type.tensor_type
            tensor.elem_type = TensorProto.DOUBLE if tensor.elem_type in FLOATS else tensor.elem_type
        _widen_nodes(graph.node)
    for function in wide.functions:
        _widen_nodes(function.node)
        for graph in _bodies(function.node):
            _widen_nodes(graph.node)
    return wide


def in_float64(model: onnx.ModelProto, feeds: Mapping[str, Array]) -> list[Array]:
    """The outputs of the same graph with float64 in place of all floats."""
    doubles = {n: a.astype("f8") if a.dtype.kind not in "iub" else a for n, a in feeds.items()}
    with np.errstate(all="ignore"):
        outputs = ReferenceEvaluator(widened(model), new_ops=_OPERATORS).run(None, doubles)
    return [np.asarray(v) for v in outputs]


def _widen(tensor: onnx.TensorProto) -> None:
    if tensor.data_type in FLOATS:
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype("f8"), tensor.name))


def _widen_nodes(nodes: Any) -> None:
    for node in nodes:
        for attribute in node.attribute:
            if attribute.type == AttributeProto.TENSOR:
                _widen(attribute.t)
            elif attribute.name in _DATATYPES and attribute.i in FLOATS:
                attribute.i = TensorProto.DOUBLE
            elif node.op_type == "Constant" and attribute.name in ("value_float", "value_floats"):
                value = np.asarray(helper.get_attribute_value(attribute), "f8")
                attribute.CopyFrom(helper.make_attribute("value", numpy_helper.from_array(value)))
        if node.op_type == "ConstantOfShape" and not node.attribute:
            node.attribute.append(helper.make_attribute("value", numpy_helper.from_array(np.zeros(1))))


def _graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    yield graph
    yield from _bodies(graph.node)


def _bodies(nodes: Any) -> Iterator[onnx.GraphProto]:
    for node in nodes:
        for attribute in node.attribute:
            for body in (*((attribute.g,) if attribute.HasField("g") else ()), *attribute.graphs):
                yield from _graphs(body)
