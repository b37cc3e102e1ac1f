"""A node as converters see it: its attributes and inputs note what was read."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NoReturn

import numpy as np
import onnx
import tvm
from tvm import relax
from tvm.relax.frontend.onnx import onnx_frontend as frontend

from zmq_offload.errors import InvalidArgument

Array = np.ndarray[Any, Any]


class Attributes(dict[str, Any]):
    """The attributes of a node by name. What a converter never asks for, it ignores."""

    def __init__(self, values: dict[str, Any]) -> None:
        super().__init__(values)
        self._given = set(values) - {"tvm_custom"}
        self._read: set[str] = set()

    def __getitem__(self, name: str) -> Any:
        self._read.add(name)
        return super().__getitem__(name)

    def __contains__(self, name: object) -> bool:
        self._read.add(str(name))
        return super().__contains__(name)

    def get(self, name: str, default: Any = None) -> Any:
        self._read.add(name)
        return super().get(name, default)

    def pop(self, name: str, *default: Any) -> Any:
        self._read.add(name)
        return super().pop(name, *default)

    def unread(self) -> list[str]:
        return sorted(self._given - self._read)

    def peek(self, name: str) -> Any:
        """The value, without a note that it was read."""
        return super().get(name)

    def text(self, name: str, default: str) -> str:
        value = self.get(name, default)
        return value.decode() if isinstance(value, bytes) else str(value)


class Inputs(list[Any]):
    """The inputs of a node, None for one that is left out, also past the last."""

    def __init__(self, values: list[Any]) -> None:
        super().__init__(values)
        self._read: set[int] = set()

    def __getitem__(self, item: Any) -> Any:
        if isinstance(item, slice):
            return [self[i] for i in range(len(self) if item.stop is None else item.stop)[item]]
        self._read.add(item % len(self) if len(self) else item)
        return super().__getitem__(item) if -len(self) <= item < len(self) else None

    def __iter__(self) -> Iterator[Any]:
        self._read.update(range(len(self)))
        return super().__iter__()

    def __add__(self, other: list[Any]) -> Inputs:
        """Longer by `other`, as converters of an old opset give inputs to that of a new one."""
        longer = Inputs([super(Inputs, self).__getitem__(i) for i in range(len(self))] + list(other))
        longer._read = self._read
        return longer

    def unread(self) -> list[int]:
        return [i for i in range(len(self)) if super(Inputs, self).__getitem__(i) is not None and i not in self._read]


class Node:
    """What a converter gets: the operator and name of a node, its inputs and attributes, and the opset."""

    def __init__(
        self,
        operator: str,
        name: str,
        inputs: list[Any],
        attributes: dict[str, Any],
        opset: int,
        outputs: int,
        proto: onnx.NodeProto | None,
    ) -> None:
        self.operator, self.name, self.opset, self.outputs = operator, name, opset, outputs
        self.inputs, self.attributes = Inputs(list(inputs)), Attributes(attributes)
        self.proto = proto

    def input_name(self, index: int) -> str:
        return repr(self.proto.input[index]) if self.proto is not None else "inside a branch"

    def constant(self, index: int) -> Array | None:
        """An input that is a constant as an array; None for one that is left out. Raises InvalidArgument otherwise."""
        value = self.inputs[index]
        if value is None:
            return None
        if isinstance(value, tvm.ir.GenericConst):
            return np.asarray(value.value.numpy())
        if isinstance(value, relax.ShapeExpr) and all(isinstance(d, tvm.tirx.IntImm) for d in value.values):
            return np.array([int(d) for d in value.values], np.int64)
        raise InvalidArgument(
            f"TVM cannot import the operator {self.operator} ({self.name!r}): its input {index + 1}, "
            f"{self.input_name(index)}, is computed when the model runs; it has to be a constant"
        )


def refuse(node: Node, attribute: str, value: Any, right: str = "") -> NoReturn:
    """Raises InvalidArgument for an attribute's value; `right` says which would do."""
    shown = value.decode(errors="replace") if isinstance(value, bytes) else value
    instead = right or "export the model without it"
    raise InvalidArgument(
        f"TVM cannot import the operator {node.operator} ({node.name!r}) with {attribute}={shown!s:.80}; {instead}"
    )


def static_shape(value: Any) -> list[int] | None:
    """The extents of a tensor; None if one of them is known only when the model runs."""
    shape = value.ty.shape
    if not isinstance(shape, relax.ShapeExpr) or not all(isinstance(d, tvm.tirx.IntImm) for d in shape.values):
        return None
    return [int(d) for d in shape.values]


def dtype_of(value: Any) -> str:
    return str(value.ty.dtype.dtype)


Converter = Callable[[Any, Node], Any]
"""What makes Relax of a node, with a block builder."""


def by_tvm(bb: Any, node: Node) -> Any:
    """As TVM's importer has it."""
    convert = frontend._get_convert_map()[node.operator].get_converter(node.opset)
    return convert(bb, node.inputs, node.attributes, [{}, {}])
