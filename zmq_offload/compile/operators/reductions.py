"""Reductions as ONNX defines them."""

from __future__ import annotations

from typing import Any

import numpy as np
from tvm import relax

from zmq_offload.compile.operators.node import Converter, Node, by_tvm, dtype_of, static_shape
from zmq_offload.errors import InvalidArgument

op = relax.op


def reduce_mean(bb: Any, node: Node) -> Any:
    """The mean of integers is rounded towards zero, and an integer of the same size."""
    x = node.inputs[0]
    kind = dtype_of(x)
    if kind.startswith("float") or kind == "bfloat16":
        return by_tvm(bb, node)
    axes, keep = _axes(node), bool(node.attributes.get("keepdims", 1))
    if axes == []:
        return x
    shape = static_shape(x)
    if shape is None:
        raise InvalidArgument(
            f"TVM cannot import the operator ReduceMean ({node.name!r}) of {kind} with symbolic dimensions; "
            "cast to float32"
        )
    count = int(np.prod([shape[a] for a in axes] if axes is not None else shape))
    total = op.sum(op.astype(x, "int64"), axes, keep)
    return op.astype(op.divide(total, relax.const(count, "int64")), kind)


def _axes(node: Node) -> list[int] | None:
    """The axes of a reduction; None for all, [] for none (`noop_with_empty_axes`)."""
    given = node.attributes.get("axes")
    if given is None and node.opset >= 13:
        given = node.constant(1)
    if given is not None and len(given):
        return [int(a) for a in given]
    return [] if node.attributes.get("noop_with_empty_axes", 0) else None


def reduction(before: Converter | None, after: Converter | None) -> Converter:
    """A reduction of which ONNX keeps the arithmetic where no axis is reduced; TVM gives back the input."""

    def convert(bb: Any, node: Node) -> Any:
        if _axes(node) != []:
            return by_tvm(bb, node)
        node.attributes.get("keepdims")
        value = node.inputs[0]
        for step in (before, after):
            value = value if step is None else bb.normalize(step(value, node))
        return value

    return convert


def reduce_log_sum_exp(bb: Any, node: Node) -> Any:
    """TVM's is NaN where all are minus infinity."""
    x, axes, keep = node.inputs[0], _axes(node), bool(node.attributes.get("keepdims", 1))
    if axes == []:
        return x
    if not dtype_of(x).startswith("float"):
        return by_tvm(bb, node)
    largest = bb.normalize(op.max(x, axes, True))
    finite = op.where(op.isfinite(largest), largest, relax.const(0, dtype_of(x)))
    finite = bb.normalize(finite)
    total = bb.normalize(op.log(op.sum(op.exp(op.subtract(x, finite)), axes, True)))
    result = bb.normalize(op.add(total, finite))
    return result if keep else op.squeeze(result, axes)


def reduce_extreme(bb: Any, node: Node) -> Any:
    """TVM knows no smallest boolean."""
    if dtype_of(node.inputs[0]) != "bool":
        return by_tvm(bb, node)
    reduce = op.max if node.operator == "ReduceMax" else op.min
    axes = _axes(node)
    x = bb.normalize(op.astype(node.inputs[0], "uint8"))
    return op.astype(x if axes == [] else reduce(x, axes, bool(node.attributes.get("keepdims", 1))), "bool")
