"""Choose between the results of two branches that are both computed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import onnx
from tvm import relax, tirx

from zmq_offload.byoc.extents import Extent, Extents
from zmq_offload.compile.operators.known_values import shape_of
from zmq_offload.compile.operators.nodes import label_of
from zmq_offload.compile.operators.refusal import cannot_import
from zmq_offload.compile.operators.scope import Scope
from zmq_offload.compile.operators.shape_arithmetic import NotKnown
from zmq_offload.compile.operators.tvm_importer import Builder, Expr
from zmq_offload.errors import InvalidArgument

Kind: TypeAlias = tuple[str, list[Extent]]
"""The datatype and the extents of a tensor."""

INSTEAD = "export the model with one of its branches"


def choices(bb: Builder, node: onnx.NodeProto, inputs: Sequence[Expr | None], scope: Scope) -> list[Expr]:
    """The results of an If: its inputs are the condition, the results where it holds, and those where it does not.

    Raises InvalidArgument for two results of different shapes or datatypes.
    """
    condition, *results = inputs
    half = len(results) // 2
    found = []
    for name, yes, no in zip(node.output, results[:half], results[half:], strict=True):
        try:
            kinds = [_kind(value, scope.extents) for value in (yes, no)]
        except NotKnown:
            raise _refused(node, f"only the run tells the shape of its result {name!r}", INSTEAD) from None
        if _alike_if_nothing_is_there(node, kinds, scope):
            found.append(no)
            continue
        _check_alike(node, name, kinds, scope)
        scalar = relax.op.reshape(relax.op.astype(condition, "bool"), relax.ShapeExpr([]))
        found.append(yes if yes is no else bb.emit(relax.op.where(scalar, yes, no)))
    return found


def _alike_if_nothing_is_there(node: onnx.NodeProto, kinds: Sequence[Kind], scope: Scope) -> bool:
    """Whether the If only spares work where a tensor is empty: the other branch has no elements either, then.

    So exporters write `zeros(0) if boxes.numel() == 0 else nms(boxes)`.
    """
    value = scope.known(node.input[0])
    condition = value.elements.reshape(-1)[0] if value is not None and value.elements.size == 1 else None
    if not isinstance(condition, tirx.EQ) or kinds[0][0] != kinds[1][0] or len(kinds[0][1]) != len(kinds[1][1]):
        return False
    empty = scope.extents.normal(condition.a - condition.b)
    return 0 in kinds[0][1] and all(
        scope.extents.equal(a, b) or (a == 0 and _is_part(b, empty, scope))
        for a, b in zip(kinds[0][1], kinds[1][1], strict=True)
    )


def _is_part(extent: Extent, whole: Extent, scope: Scope) -> bool:
    """Whether an extent is 0 if `whole` is."""
    multiple = scope.extents.quotient(whole, extent) if extent != 0 else None
    if isinstance(multiple, int) and multiple > 0:
        return True
    linear = scope.extents.linear(extent)
    if linear is None or linear[2] != 0:
        return False
    symbol = str(linear[1].name)
    return symbol in scope.at_most and _is_part(scope.at_most[symbol], whole, scope)


def _kind(value: Expr | None, extents: Extents) -> Kind:
    shape = shape_of(value, extents)
    assert value is not None  # it has a shape
    return str(value.ty.dtype.dtype), shape


def _check_alike(node: onnx.NodeProto, name: str, kinds: Sequence[Kind], scope: Scope) -> None:
    (dtype, shape), (other_dtype, other_shape) = kinds
    pairs = list(zip(shape, other_shape, strict=False))
    different = [(a, b) for a, b in pairs if not scope.extents.equal(a, b)]
    if dtype == other_dtype and len(shape) == len(other_shape) and not different:
        return
    shown = " and ".join(f"{dtype}[{','.join(map(scope.extents.text, shape))}]" for dtype, shape in kinds)
    symbols = [extent for pair in different for extent in pair if not isinstance(extent, int)]
    instead = scope.to_equal(*different[0]) if symbols else INSTEAD
    raise _refused(node, f"its branches give {shown} for {name!r}, and only the run decides between them", instead)


def _refused(node: onnx.NodeProto, why: str, instead: str) -> InvalidArgument:
    return cannot_import("If", "", label_of(node), why, instead)
