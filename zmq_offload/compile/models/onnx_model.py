"""ONNX files as models."""

from __future__ import annotations

import ast
import itertools
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import ClassVar

import onnx
import tvm

from zmq_offload.compile import reference
from zmq_offload.compile.models.base import Model, Origins, Shapes
from zmq_offload.compile.models.modules import Step, module_outputs
from zmq_offload.compile.onnx import importer
from zmq_offload.compile.onnx.file import read_onnx
from zmq_offload.compile.onnx.importer import Imported
from zmq_offload.compile.operators.constants import without_data
from zmq_offload.compile.operators.nodes import all_nodes
from zmq_offload.protocol.payload import Array
from zmq_offload.protocol.tensors import TensorSpec


class OnnxModel(Model):
    format: ClassVar[str] = "ONNX"

    def __init__(self, file: Path) -> None:
        self.name = str(file)
        self.file = file
        self._whole: onnx.ModelProto | None = None

    @cached_property
    def _light(self) -> onnx.ModelProto:
        """The model without the data of its weights."""
        self._whole = read_onnx(self.file)
        return without_data(self._whole)

    def _taken(self) -> onnx.ModelProto:
        """The model with its weights, for the caller to change and to drop. The file is read once for the first."""
        _ = self._light
        whole, self._whole = self._whole, None
        return whole or read_onnx(self.file)

    def inputs(self, shapes: Shapes) -> tuple[TensorSpec, ...]:
        return importer.model_inputs(self._light, shapes)

    def imported(self, shapes: Shapes, tensors: Iterable[str] = ()) -> Imported:
        return importer.import_model(self._taken(), shapes, tensors)

    def uncut(self, shapes: Shapes) -> tvm.IRModule:
        return importer.import_whole(self._taken(), shapes)

    def reference(self) -> reference.Reference:
        return reference.open_reference(self.file)

    def random_inputs(self, specs: Sequence[TensorSpec], shapes: Shapes, number: int) -> dict[str, Array]:
        return reference.random_inputs(self._light, specs, shapes, number)

    def tensors(self) -> frozenset[str]:
        made = {name for node in all_nodes(self._light.graph) for name in node.output}
        graph = self._light.graph
        return frozenset(made | {v.name for v in graph.input} | {w.name for w in graph.initializer})

    def modules(self) -> dict[str, tuple[str, ...]]:
        return onnx_modules(self._light)

    def origins(self) -> Origins:
        return onnx_origins(self._light)


def onnx_modules(model: onnx.ModelProto) -> dict[str, tuple[str, ...]]:
    """For the path of each PyTorch module, where the exporter wrote it, the tensors that leave it."""
    steps = [
        Step([o for o in node.output if o], [i for i in (*node.input, *_captured(node)) if i], _path(node))
        for node in model.graph.node
    ]
    return module_outputs(steps, {o.name for o in model.graph.output})


def _path(node: onnx.NodeProto) -> str:
    """The path of the module that a node belongs to, from what torch.onnx.export writes: metadata, or the node's name.

    The exporter by TorchScript names a node /backbone/layer4/layer4.1/Conv; a child of a Sequential repeats its
    parent's name.
    """
    scopes = next((p.value for p in node.metadata_props if p.key == "pkg.torch.onnx.name_scopes"), None)
    if scopes is not None:
        try:
            found = ast.literal_eval(scopes)
        except (ValueError, SyntaxError):
            return ""
        # The last is the node's own name.
        return str(found[-2]) if isinstance(found, list) and len(found) > 1 else ""
    if not node.name.startswith("/"):
        return ""
    parts: list[str] = []
    for part in node.name.strip("/").split("/")[:-1]:
        if parts and part.startswith(f"{parts[-1]}."):
            parts.pop()
        parts.append(part)
    return ".".join(parts)


def onnx_origins(model: onnx.ModelProto) -> Origins:
    """Where the tensors of an ONNX model come from."""
    weights = {w.name for w in model.graph.initializer}
    weights |= {n.output[0] for n in model.graph.node if n.op_type == "Constant"}
    sources: dict[str, tuple[str, ...]] = {}
    for node in model.graph.node:
        inputs = (*(name for name in node.input if name), *_captured(node))
        # A Constant has no inputs; it is found by its own name.
        sources.update(dict.fromkeys((o for o in node.output if o), inputs))
    return Origins(frozenset(weights), sources, frozenset(i.name for i in model.graph.input))


def _captured(node: onnx.NodeProto) -> Iterable[str]:
    """The names that the subgraphs of an If or Loop use, among them all that they take from the outer graph."""
    graphs = [a.g for a in node.attribute if a.type == onnx.AttributeProto.GRAPH]
    for inner in itertools.chain.from_iterable(graph.node for graph in graphs):
        yield from inner.input
        yield from _captured(inner)
    for graph in graphs:
        yield from (o.name for o in graph.output)
