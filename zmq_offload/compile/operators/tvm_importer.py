"""Every use of the internals of TVM's ONNX importer.

`tests/compile/test_internals.py` compares them with the installed TVM, and fails where a new release changes them.
"""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, NamedTuple, TypeAlias

import onnx
import tvm
from tvm import relax
from tvm.relax.frontend.onnx import onnx_frontend

Builder: TypeAlias = relax.BlockBuilder
Expr: TypeAlias = relax.Expr
AttributeValue: TypeAlias = Any
"""The value of an ONNX attribute: a number, bytes, a list of either, a tensor or a graph."""


def known_operators() -> set[str]:
    """Names of the operators that TVM's importer has a converter for."""
    return set(onnx_frontend._get_convert_map())


def convert(
    bb: Builder, operator: str, opset: int, inputs: Sequence[Expr | None], attributes: dict[str, AttributeValue]
) -> Expr:
    """Convert a node as TVM's importer does."""
    converter = onnx_frontend._get_convert_map()[operator].get_converter(opset)
    return converter(bb, inputs, attributes, [{}, {}])  # without other nodes or parameters


def datatype(number: int) -> str:
    """The name of one of ONNX's datatypes."""
    return str(onnx_frontend.get_type(number))


def expects_constant(error: Exception) -> bool:
    """Whether a converter failed because it reads the value of an input that is not a constant."""
    return isinstance(error, AttributeError) and "Var' object" in str(error)


class _OneNode(NamedTuple):
    """A graph of one node, with the only field that `_construct_nodes` reads."""

    node: Sequence[onnx.NodeProto]


class GraphImporter(onnx_frontend.ONNXGraphImporter, ABC):  # type: ignore[misc]  # TVM has no types
    """TVM's importer, with a public method for each of its private ones that a subclass changes or calls."""

    def __init__(self) -> None:
        super().__init__(None, "float32")

    def import_model(self, model: onnx.ModelProto, opset: int) -> tvm.IRModule:
        try:
            return self.from_onnx(model.graph, opset)
        except BaseException:
            # TVM leaves blocks open, and prints a warning when the builder is collected.
            with contextlib.suppress(RuntimeError):
                while True:
                    self.bb._end_block()
            raise

    @abstractmethod
    def add_node(self, node: onnx.NodeProto) -> None:
        """Add a node of the graph, in order; calls `add_node_by_tvm`."""

    @abstractmethod
    def convert(self, operator: str, inputs: list[Expr], attributes: dict[str, AttributeValue], opset: int) -> Expr:
        """Convert a node of the graph, or of the body of a branch; may call `convert_by_tvm`."""

    def add_node_by_tvm(self, node: onnx.NodeProto) -> None:
        super()._construct_nodes(_OneNode([node]))

    def convert_by_tvm(
        self, operator: str, inputs: list[Expr], attributes: dict[str, AttributeValue], opset: int
    ) -> Expr:
        return super()._convert_operator(operator, inputs, attributes, opset)

    def result(self, tensor: str) -> Expr | None:
        """What was computed for a tensor so far."""
        return self._nodes.get(tensor)

    def set_result(self, tensor: str, value: Expr) -> None:
        self._nodes[tensor] = value

    def _check_for_unsupported_ops(self, graph: onnx.GraphProto) -> None:
        """Nothing: TVM's own check prints what it finds, and knows no operator of ours."""

    def add_nodes(self, nodes: Sequence[onnx.NodeProto]) -> None:
        """Add all nodes of the graph."""
        for node in nodes:
            self.add_node(node)

    def parameters(self) -> list[tuple[str, Expr]]:
        """The inputs of the model, which are parameters of `main`, with their names."""
        return [(name, value) for name, value in self._inputs.items() if isinstance(value, relax.Var)]

    def _construct_nodes(self, graph: onnx.GraphProto) -> None:
        self.add_nodes(graph.node)

    def _convert_operator(self, op_name: str, inputs: list[Expr], attrs: dict[str, AttributeValue], opset: int) -> Expr:
        return self.convert(op_name, inputs, attrs, opset)


def node_info(attributes: dict[str, AttributeValue]) -> tuple[str, int]:
    """The name of a node, and the number of its outputs, which TVM puts among its attributes."""
    info = attributes[NODE_INFO]
    return str(info["name"] or ""), int(info["num_outputs"])


NODE_INFO = "tvm_custom"
