"""Refuse nodes for which TVM would have to know a shape or an equality of extents that only the run tells."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import zip_longest

import onnx
from tvm import relax

from zmq_offload.byoc.extents import Extent
from zmq_offload.compile.operators.known_values import shape_of
from zmq_offload.compile.operators.refusal import cannot_import
from zmq_offload.compile.operators.scope import Scope
from zmq_offload.compile.operators.shape_arithmetic import NotKnown
from zmq_offload.compile.operators.tvm_importer import Expr
from zmq_offload.errors import InvalidArgument

ELEMENT_WISE = {
    *("Add", "And", "BitShift", "BitwiseAnd", "BitwiseOr", "BitwiseXor", "Div", "Equal", "Greater", "GreaterOrEqual"),
    *("Less", "LessOrEqual", "Max", "Mean", "Min", "Mod", "Mul", "Or", "Pow", "Sub", "Sum", "Where", "Xor"),
}
"""Operators whose inputs become one shape."""


def check_extents(
    node: onnx.NodeProto, name: str, inputs: Sequence[Expr | None], results: Sequence[Expr | None], scope: Scope
) -> None:
    """Raises InvalidArgument if extents of a node's inputs have to be equal and only the run tells whether they are."""
    for tensor, value in zip(node.input, inputs, strict=False):
        if _shapeless(value) and node.op_type not in ("Identity", "Shape", "Size"):
            why = f"the shape of its input {tensor!r} depends on the values of the model's inputs"
            raise cannot_import(node.op_type, node.domain, name, why, f"export a model that ends at {tensor!r}")
    try:
        dims = [shape_of(value, scope.extents) for value in inputs if value is not None]
    except NotKnown:
        return  # a shape that was not known before, or a sequence
    for a, b in _pairs(node, dims):
        if not scope.extents.equal(a, b):
            raise _different(node, name, a, b, scope)
    if node.op_type in ELEMENT_WISE:
        for others in dims[1:]:
            for a, b in zip_longest(reversed(dims[0]), reversed(others), fillvalue=1):
                if 1 not in (a, b) and not scope.extents.equal(a, b):
                    raise _different(node, name, a, b, scope)
    unknown = next((out for out, r in zip(node.output, results, strict=False) if _shapeless(r)), None)
    if unknown is None or node.op_type not in {*ELEMENT_WISE, "Concat", "MatMul"}:
        return  # it depends on the values of the inputs
    why = f"only the run tells the shape of its output {unknown!r}"
    raise cannot_import(node.op_type, node.domain, name, why, scope.to_fix([d for shape in dims for d in shape]))


def _shapeless(value: Expr | None) -> bool:
    ty = value.ty if isinstance(value, relax.Expr) else None
    return isinstance(ty, relax.TensorType) and not isinstance(ty.shape, relax.ShapeExpr)


def _pairs(node: onnx.NodeProto, dims: Sequence[Sequence[Extent]]) -> Iterator[tuple[Extent, Extent]]:
    """Extents that have to be equal. TVM does not check that they are when the model runs."""
    if node.op_type == "MatMul" and len(dims) == 2 and dims[0] and dims[1]:
        yield dims[0][-1], dims[1][-2 if len(dims[1]) > 1 else -1]
    if node.op_type == "Concat":
        axis = next((a.i for a in node.attribute if a.name == "axis"), 0) % len(dims[0])
        for others in dims[1:]:
            yield from ((a, b) for i, (a, b) in enumerate(zip(dims[0], others, strict=False)) if i != axis)


def _different(node: onnx.NodeProto, name: str, a: Extent, b: Extent, scope: Scope) -> InvalidArgument:
    text = scope.extents.text
    why = f"only the run tells whether the extents {text(a)} and {text(b)} of its inputs are equal"
    return cannot_import(node.op_type, node.domain, name, why, scope.to_equal(a, b))
