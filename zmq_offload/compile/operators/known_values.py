"""The values of a graph that are known as expressions of extents, while the graph is imported.

A node that computes such a value is evaluated instead of converted. A converter that takes a shape sees the expressions
(`Node.known`); to any other the value is a tensor, made when it is needed.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
from tvm import ir, relax, te, tirx

from zmq_offload.byoc.extents import Extent, Extents
from zmq_offload.compile.operators.nodes import read_inside
from zmq_offload.compile.operators.shape_arithmetic import NotKnown, Ratio
from zmq_offload.compile.operators.shape_values import EVALUATED, Value, evaluated, value_of
from zmq_offload.compile.operators.tvm_importer import Builder, Expr, GraphImporter
from zmq_offload.protocol.payload import Array

TAKEN = {
    ("ConstantOfShape", 0),
    ("Expand", 1),
    ("OneHot", 1),
    ("Pad", 1),
    ("Range", 0),
    ("Range", 1),
    ("Range", 2),
    ("Reshape", 1),
    ("Resize", 2),
    ("Resize", 3),
    ("Slice", 1),
    ("Slice", 2),
    ("Split", 1),
    ("Tile", 1),
    ("TopK", 1),
    ("Upsample", 1),
}
"""Inputs that a converter takes as expressions: (operator, number of the input)."""


class KnownValues:
    """The known values by the names of their tensors."""

    def __init__(self, importer: GraphImporter, extents: Extents) -> None:
        self._importer, self._extents = importer, extents
        self._values: dict[str, Value] = {}
        self._tensors: dict[str, Expr] = {}
        self._filled: dict[str, Extent] = {}
        self._lost: dict[str, tuple[str, list[object]]] = {}

    def of(self, name: str) -> Value | None:
        """The value of a tensor, constants included; None if it is not known."""
        found = self._values.get(name)
        constant = self._importer.result(name) if name and found is None else None
        if isinstance(constant, ir.GenericConst):
            found = value_of(np.asarray(constant.value.numpy()))
        return found

    def lost(self, name: str) -> tuple[str, list[object]] | None:
        """Where in the computation of a tensor a value of extents could not be followed, and the extents there."""
        return self._lost.get(name)

    def evaluate(self, node: onnx.NodeProto, opset: int) -> bool:
        """Evaluate a node, if its results are known."""
        if node.domain not in ("", "ai.onnx"):
            return False
        if node.op_type == "NonZero":
            return self._places(node)
        try:
            results = self._results(node, opset)
        except NotKnown:
            if node.op_type == "ConstantOfShape":
                self._note_filled(node)
            self._note_lost(node)
            return False
        for name, value in zip(node.output, results, strict=False):
            if name:
                self._set(name, value)
        return True

    def present(self, node: onnx.NodeProto) -> None:
        """Give a node's inputs the form that its converter takes."""
        for index, name in enumerate(node.input):
            if name in self._values and self._values[name].numbers is None:
                taken = (node.op_type, index) in TAKEN and not node.domain
                self._importer.set_result(name, _SEEN if taken else self.tensor(name))
        for name in read_inside(node):
            if name in self._values:
                self._importer.set_result(name, self.tensor(name))

    def finish(self, outputs: Sequence[str]) -> None:
        """Make tensors of the known values that are outputs of the model; the others are shapes."""
        for name, value in self._values.items():
            if name in outputs:
                self._importer.set_result(name, self.tensor(name))
            elif value.numbers is None:
                self._importer.set_result(name, relax.ShapeExpr([]))
        for name in outputs:
            # TVM makes a shape of constants that it joins.
            joined = self._importer.result(name)
            if isinstance(joined, relax.ShapeExpr) and all(isinstance(d, tirx.IntImm) for d in joined.values):
                self._importer.set_result(name, _constant(np.array([int(d) for d in joined.values], np.int64)))

    def tensor(self, name: str) -> Expr:
        """A known value as a tensor."""
        if name not in self._tensors:
            value = self._values[name]
            numbers = value.numbers
            self._tensors[name] = _made(self._importer.bb, value) if numbers is None else _constant(numbers)
        return self._tensors[name]

    def _set(self, name: str, value: Value) -> None:
        self._values[name] = value
        numbers = value.numbers
        self._importer.set_result(name, _constant(numbers) if numbers is not None else _SEEN)

    def _results(self, node: onnx.NodeProto, opset: int) -> list[Value]:
        if node.op_type in ("Shape", "Size"):
            return [self._shape(node)]
        if not any(name in self._values for name in node.input):
            raise NotKnown  # constants have been folded
        inputs = [self.of(name) if name else None for name in node.input]
        if any(name and value is None for name, value in zip(node.input, inputs, strict=True)):
            raise NotKnown
        return evaluated(node, inputs, opset, self._extents)

    def _shape(self, node: onnx.NodeProto) -> Value:
        name = node.input[0]
        known = self._values.get(name)
        if known is not None:
            dims: list[Extent] = list(known.elements.shape)
        else:
            dims = shape_of(self._importer.result(name), self._extents)
        if node.op_type == "Size":
            return Value(np.array(self._extents.product(dims), object), "int64")
        attributes = {a.name: a.i for a in node.attribute}
        dims = dims[attributes.get("start", 0) : attributes.get("end", len(dims))]
        elements = np.empty(len(dims), object)
        elements[:] = dims
        return Value(elements, "int64")

    def _note_lost(self, node: onnx.NodeProto) -> None:
        found = next((self._lost[name] for name in node.input if name in self._lost), None)
        if found is None and node.op_type in EVALUATED:
            elements: list[object] = []
            for value in (self.of(name) for name in node.input if name):
                if value is None:  # before the others are looked at: they are weights
                    return
                elements += value.elements.flat
            found = node.output[0], elements
        if found is not None:
            self._lost.update(dict.fromkeys(filter(None, node.output), found))

    def _note_filled(self, node: onnx.NodeProto) -> None:
        """Note a vector that a symbolic number of equal elements, not 0, make up."""
        value = self.of(node.input[0])
        given = next((onnx.numpy_helper.to_array(a.t) for a in node.attribute if a.name == "value"), None)
        if value is not None and value.elements.shape == (1,) and given is not None and given.all():
            self._filled[node.output[0]] = value.elements[0]

    def _places(self, node: onnx.NodeProto) -> bool:
        """The places of a filled vector's elements are 0, 1, 2, ...: so the TorchScript exporter writes a range."""
        extent = self._filled.get(node.input[0])
        if extent is None:
            return False
        numbers = self._importer.bb.normalize(relax.op.arange(0, extent, 1, "int64"))
        self._importer.set_result(
            node.output[0], self._importer.bb.emit(relax.op.reshape(numbers, relax.ShapeExpr([1, extent])))
        )
        return True


_SEEN = tirx.IntImm("int64", 0)
"""Stands for a known value that the converter reads by `Node.known`."""


def shape_of(value: Expr | None, extents: Extents) -> list[Extent]:
    """The extents of a tensor. Raises NotKnown."""
    ty = value.ty if isinstance(value, relax.Expr) else None
    if not isinstance(ty, relax.TensorType) or not isinstance(ty.shape, relax.ShapeExpr):
        raise NotKnown
    return [extents.normal(d) for d in ty.shape.values]


def _constant(numbers: Array) -> Expr:
    """A constant of the same datatype. TVM makes int32 of a scalar of int64."""
    return relax.const(numbers, str(numbers.dtype))


def _made(bb: Builder, value: Value) -> Expr:
    """A tensor of expressions."""
    shape, flat = value.elements.shape, [_scalar(element, value.dtype) for element in value.elements.flat]

    def tensor(*elements: ir.Expr) -> te.Tensor:
        def at(*index: tirx.Var) -> ir.Expr:
            place: ir.Expr = tirx.IntImm("int64", 0)
            for i, extent in zip(index, shape, strict=True):
                place = place * extent + i
            chosen = elements[-1]
            for number in range(len(elements) - 2, -1, -1):
                chosen = tirx.Select(tirx.EQ(place, tirx.IntImm("int64", number)), elements[number], chosen)
            return chosen

        return te.compute([tirx.IntImm("int64", d) for d in shape], at, name="extents", tag="injective")

    return bb.emit_te(tensor, *flat, primfunc_name_hint="extents")


def _scalar(element: object, dtype: str) -> ir.Expr:
    if isinstance(element, Ratio):
        if isinstance(element.above, int):
            return tirx.const(element.above / element.below, dtype)
        return tirx.Cast(dtype, element.above) / tirx.const(float(element.below), dtype)
    if isinstance(element, bool | int):
        return tirx.const(element, dtype)
    assert isinstance(element, ir.Expr)
    return element if str(element.ty.dtype) == dtype else tirx.Cast(dtype, element)
