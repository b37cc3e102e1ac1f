"""Indices that count up to an extent, as positions do: a table that they index has to have so many rows.

ONNX leaves an index past the end undefined, and ONNX Runtime fails when it meets one. Here the extent gets a maximum,
so that longer inputs are refused before the run.
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx

from zmq_offload.byoc.extents import Extent
from zmq_offload.compile.operators.scope import Scope
from zmq_offload.compile.operators.shape_values import Value

_SAME_ELEMENTS = {"Cast", "Expand", "Flatten", "Identity", "Reshape", "Squeeze", "Tile", "Transpose", "Unsqueeze"}


class IndexBounds:
    """The largest elements of a graph's tensors, where they are known as extents."""

    def __init__(self, scope: Scope) -> None:
        self._scope = scope
        self._largest: dict[str, Extent] = {}

    def note(self, node: onnx.NodeProto) -> None:
        """Note the largest element of a node's result, as far as its inputs tell."""
        first = node.input[0] if node.input else ""
        if node.op_type == "Range":
            largest = self._last(node)
        elif node.op_type in _SAME_ELEMENTS:
            largest = self._largest.get(first)
        elif node.op_type == "Add":
            largest = self._sum(node)
        else:
            return
        if largest is not None:
            self._largest[node.output[0]] = largest

    def note_places(self, name: str, extent: Extent) -> None:
        """Note that a tensor has the places 0, 1, 2, ... of an axis."""
        self._largest[name] = self._scope.extents.normal(extent - 1)

    def limit(self, node: onnx.NodeProto, dims: Sequence[Extent]) -> None:
        """State the maximum that a Gather from a tensor of the shape `dims` asks for."""
        axis = next((a.i for a in node.attribute if a.name == "axis"), 0)
        rows = dims[axis] if -len(dims) <= axis < len(dims) else None
        if not isinstance(rows, int):
            return
        value = self._scope.known(node.input[1])
        indices = [self._largest.get(node.input[1])] if value is None else list(value.elements.flat)
        for index in indices:
            if index is not None and not isinstance(index, int):
                self._scope.limit(self._scope.extents.normal(index + 1), rows)

    def _last(self, node: onnx.NodeProto) -> Extent | None:
        start, limit, step = (self._number(self._scope.known(name)) for name in node.input)
        if start is None or limit is None or step != 1:
            return None
        return self._scope.extents.normal(limit - 1)

    def _sum(self, node: onnx.NodeProto) -> Extent | None:
        for one, other in (node.input, reversed(node.input)):
            value, largest = self._scope.known(other), self._largest.get(one)
            numbers = None if value is None else value.numbers
            if largest is not None and numbers is not None and numbers.size and numbers.dtype.kind in "iu":
                return self._scope.extents.normal(largest + int(numbers.max()))
        return None

    @staticmethod
    def _number(value: Value | None) -> Extent | None:
        """The only element of a value of integers."""
        if value is None or value.elements.size != 1 or value.dtype not in ("int32", "int64"):
            return None
        element: Extent = value.elements.reshape(-1)[0]
        return element
