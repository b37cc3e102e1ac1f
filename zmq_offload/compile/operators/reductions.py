"""Reductions as ONNX defines them."""

from __future__ import annotations

from tvm import ir, relax, te, tirx

from zmq_offload.compile.operators.node import Converter, Node, by_tvm, dtype_of
from zmq_offload.compile.operators.tvm_importer import Builder, Expr

op = relax.op


def reduce_mean(bb: Builder, node: Node) -> Expr:
    """The mean of integers is rounded toward zero and keeps their datatype."""
    x = node.inputs[0]
    kind = dtype_of(x)
    if kind.startswith("float") or kind == "bfloat16":
        return by_tvm(bb, node)
    axes, keep = _axes(node), node.attributes.flag("keepdims", True)
    if axes == []:
        return x
    shape = node.dims(0)
    count = node.extents.product([shape[a] for a in axes] if axes is not None else shape)
    total = bb.normalize(op.sum(op.astype(x, "int64"), axes, keep))
    if isinstance(count, int):
        return op.astype(op.divide(total, relax.const(count, "int64")), kind)

    def mean(sums: te.Tensor, number: ir.Expr) -> te.Tensor:
        return te.compute(
            sums.shape, lambda *at: tirx.truncdiv(sums(*at), number).astype(kind), name="mean", tag="elemwise"
        )

    return bb.emit_te(mean, total, count, primfunc_name_hint="mean")


def _axes(node: Node) -> list[int] | None:
    """The axes of a reduction; None for all, [] for none (`noop_with_empty_axes`)."""
    axes = node.attributes.integers("axes")
    if axes is None and node.opset >= 13:
        given = node.constant(1)
        axes = None if given is None else [int(a) for a in given]
    if axes:
        return axes
    return [] if node.attributes.flag("noop_with_empty_axes") else None


def reduction(before: Converter | None, after: Converter | None) -> Converter:
    """A reduction that computes `before` and `after` even if no axis is reduced. TVM would return the input."""

    def convert(bb: Builder, node: Node) -> Expr:
        if _axes(node) != []:
            return by_tvm(bb, node)
        node.attributes.get("keepdims")
        value = node.inputs[0]
        for step in (before, after):
            value = value if step is None else bb.normalize(step(value, node))
        return value

    return convert


def reduce_log_sum_exp(bb: Builder, node: Node) -> Expr:
    """TVM returns NaN where all elements are minus infinity."""
    x, axes, keep = node.inputs[0], _axes(node), node.attributes.flag("keepdims", True)
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


def reduce_extreme(bb: Builder, node: Node) -> Expr:
    """TVM has no minimum and maximum of booleans."""
    if dtype_of(node.inputs[0]) != "bool":
        return by_tvm(bb, node)
    reduce = op.max if node.operator == "ReduceMax" else op.min
    axes = _axes(node)
    x = bb.normalize(op.astype(node.inputs[0], "uint8"))
    return op.astype(x if axes == [] else reduce(x, axes, node.attributes.flag("keepdims", True)), "bool")
