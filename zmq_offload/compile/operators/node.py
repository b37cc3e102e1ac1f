"""A node as converters see it. Its attributes and inputs record which of them a converter reads."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NoReturn, SupportsIndex, TypeAlias

import numpy as np
import onnx
import tvm
from tvm import relax

from zmq_offload.byoc.extents import Extent, Extents
from zmq_offload.compile.operators.refusal import cannot_import
from zmq_offload.compile.operators.scope import Scope
from zmq_offload.compile.operators.shape_values import Value, value_of
from zmq_offload.compile.operators.tvm_importer import NODE_INFO, AttributeValue, Builder, Expr, convert
from zmq_offload.errors import InvalidArgument
from zmq_offload.protocol.payload import Array


class Attributes(dict[str, AttributeValue]):
    """The attributes of a node by name. An attribute that nobody reads would be ignored."""

    def __init__(self, values: dict[str, AttributeValue]) -> None:
        super().__init__(values)
        self._given = set(values) - {NODE_INFO}
        self._read: set[str] = set()

    def __getitem__(self, name: str) -> AttributeValue:
        self._read.add(name)
        return super().__getitem__(name)

    def __contains__(self, name: object) -> bool:
        self._read.add(str(name))
        return super().__contains__(name)

    def get(self, name: str, default: AttributeValue = None) -> AttributeValue:
        self._read.add(name)
        return super().get(name, default)

    def pop(self, name: str, *default: AttributeValue) -> AttributeValue:
        self._read.add(name)
        return super().pop(name, *default)

    def unread(self) -> list[str]:
        return sorted(self._given - self._read)

    def peek(self, name: str) -> AttributeValue:
        """The value, without a record that it was read."""
        return super().get(name)

    def integer(self, name: str, default: int) -> int:
        return int(self.get(name, default))

    def flag(self, name: str, default: bool = False) -> bool:
        return bool(self.get(name, default))

    def number(self, name: str, default: float) -> float:
        return float(self.get(name, default))

    def integers(self, name: str) -> list[int] | None:
        """A list of integers; None if the attribute is absent."""
        value = self.get(name)
        return None if value is None else [int(v) for v in value]

    def text(self, name: str, default: str) -> str:
        value = self.get(name, default)
        return value.decode() if isinstance(value, bytes) else str(value)


class Inputs(list[Expr]):
    """The inputs of a node. An omitted input is None, and so is each past the last one."""

    def __init__(self, values: Sequence[Expr]) -> None:
        super().__init__(values)
        self._read: set[int] = set()

    def __getitem__(self, item: SupportsIndex | slice) -> Expr:
        if isinstance(item, slice):
            return [self[i] for i in range(len(self) if item.stop is None else item.stop)[item]]
        index = int(item)
        self._read.add(index % len(self) if len(self) else index)
        return super().__getitem__(index) if -len(self) <= index < len(self) else None

    def __iter__(self) -> Iterator[Expr]:
        self._read.update(range(len(self)))
        return super().__iter__()

    def __add__(self, other: list[Expr]) -> Inputs:
        """Append inputs, as a converter of an old opset does to call that of a newer one."""
        longer = Inputs([super(Inputs, self).__getitem__(i) for i in range(len(self))] + list(other))
        longer._read = self._read
        return longer

    def unread(self) -> list[int]:
        return [i for i in range(len(self)) if super(Inputs, self).__getitem__(i) is not None and i not in self._read]


class Node:
    """The argument of a converter: operator, name, inputs, attributes, opset and number of outputs of a node."""

    def __init__(
        self,
        operator: str,
        name: str,
        inputs: Sequence[Expr],
        attributes: dict[str, AttributeValue],
        opset: int,
        outputs: int,
        proto: onnx.NodeProto | None,
        scope: Scope | None = None,
    ) -> None:
        self.operator, self.name, self.opset, self.outputs = operator, name, opset, outputs
        self.inputs, self.attributes = Inputs(list(inputs)), Attributes(attributes)
        self.proto, self.scope = proto, scope or Scope()

    @property
    def domain(self) -> str:
        return self.proto.domain if self.proto is not None else ""

    def input_name(self, index: int) -> str:
        return repr(self.proto.input[index]) if self.proto is not None else "inside a branch"

    def output_name(self, index: int) -> str:
        return str(self.proto.output[index]) if self.proto is not None else self.operator

    def constant(self, index: int) -> Array | None:
        """A constant input as an array; None if it is omitted. Raises InvalidArgument if it is not a constant."""
        value = self.inputs[index]
        if value is None:
            return None
        if isinstance(value, tvm.ir.GenericConst):
            return np.asarray(value.value.numpy())
        if isinstance(value, relax.ShapeExpr) and all(isinstance(d, tvm.tirx.IntImm) for d in value.values):
            return np.array([int(d) for d in value.values], np.int64)
        why = f"its input {index + 1}, {self.input_name(index)}, is computed when the model runs"
        name = self.proto.input[index] if self.proto is not None and index < len(self.proto.input) else ""
        lost = self.scope.lost(name)
        if lost is not None:
            at = "" if lost[0] == name else f", because {lost[0]!r} is"
            raise self.refused(why + at, f"it has to be a constant: {self.scope.to_fix(lost[1])}")
        raise self.refused(why, "it has to be a constant")

    @property
    def extents(self) -> Extents:
        return self.scope.extents

    def known(self, index: int) -> Value | None:
        """The value of an input as expressions of extents; None if it is not known."""
        value = self.inputs[index]
        name = self.proto.input[index] if self.proto is not None and index < len(self.proto.input) else ""
        found = self.scope.known(name) if name else None
        if found is not None:
            return found
        if isinstance(value, tvm.ir.GenericConst):
            return value_of(np.asarray(value.value.numpy()))
        dims = [*value.values] if isinstance(value, relax.ShapeExpr) else None
        if dims is None and isinstance(value, tvm.ir.Expr) and tvm.ir.is_prim_expr(value):
            dims = [value]
        if dims is None:
            return None
        elements = np.empty(len(dims), object)
        elements[:] = [self.extents.normal(d) for d in dims]
        return Value(elements, "int64")

    def numbers(self, index: int) -> list[Extent]:
        """An input of integers: numbers and expressions. Raises InvalidArgument if it is not known."""
        value = self.known(index)
        if value is None or value.dtype.startswith("float"):
            self.constant(index)
            raise self.refused(f"its input {index + 1}, {self.input_name(index)}, is missing", "export the model again")
        return list(value.elements.reshape(-1))

    def dims(self, index: int) -> list[Extent]:
        """The extents of an input. Raises InvalidArgument if they are not known."""
        ty = getattr(self.inputs[index], "ty", None)
        if not isinstance(ty, relax.TensorType) or not isinstance(ty.shape, relax.ShapeExpr):
            raise self.refused(
                f"only the run tells the shape of its input {index + 1}, {self.input_name(index)}", "cut elsewhere"
            )
        return [self.extents.normal(d) for d in ty.shape.values]

    def refused(self, why: str, instead: str) -> InvalidArgument:
        """The error that says that this node cannot be imported, why, and what to do instead."""
        return cannot_import(self.operator, self.domain, self.name, why, instead)


def refuse(node: Node, attribute: str, value: object, right: str = "") -> NoReturn:
    """Raises InvalidArgument for an attribute's value; `right` says which value can be used."""
    shown = value.decode(errors="replace") if isinstance(value, bytes) else value
    raise node.refused(f"with {attribute}={shown!s:.80}", right or "export the model without it")


def static_shape(value: Expr) -> list[int] | None:
    """The extents of a tensor; None if one of them is symbolic."""
    shape = value.ty.shape
    if not isinstance(shape, relax.ShapeExpr) or not all(isinstance(d, tvm.tirx.IntImm) for d in shape.values):
        return None
    return [int(d) for d in shape.values]


def dtype_of(value: Expr) -> str:
    return str(value.ty.dtype.dtype)


Converter: TypeAlias = Callable[[Builder, Node], Expr]
"""A function that converts a node to Relax."""


def by_tvm(bb: Builder, node: Node) -> Expr:
    """Convert a node as TVM's importer does."""
    return convert(bb, node.operator, node.opset, node.inputs, node.attributes)
