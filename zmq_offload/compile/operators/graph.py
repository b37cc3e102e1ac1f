"""An ONNX graph -> Relax by TVM's importer, under supervision: nothing that a node says may be ignored in silence."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import onnx
import tvm
from onnx.helper import tensor_dtype_to_np_dtype
from tvm import relax
from tvm.relax.frontend.onnx import onnx_frontend as frontend

from zmq_offload.compile.operators import converters, pools
from zmq_offload.compile.operators.node import Node, refuse
from zmq_offload.compile.operators.schemas import CONTRIB, schema_of
from zmq_offload.errors import InvalidArgument, OffloadError, one_line

HARMLESS = {
    ("BatchNormalization", "momentum"),
    ("Conv", "kernel_shape"),  # the weights have it
    ("ConvTranspose", "kernel_shape"),
    ("Dropout", "seed"),  # nothing is dropped at inference
    ("LayerNormalization", "stash_type"),  # a question of precision
    ("GroupNormalization", "stash_type"),
    ("MaxPool", "storage_order"),  # of the second output, which is refused
    ("Optional", "type"),
    ("Range", "stash_type"),
    ("SequenceEmpty", "dtype"),
    ("Split", "num_outputs"),  # the node has as many
    ("TopK", "sorted"),
}
"""Attributes that do not change what a node computes, or not by themselves."""


def import_graph(model: onnx.ModelProto) -> tvm.IRModule:
    """The model as a Relax module whose `main` has its inputs and outputs, in order.

    Raises InvalidArgument, naming the node, for what cannot be imported: an operator that TVM does not know, an
    attribute or an input that it would ignore, and a result of another shape than ONNX says.
    """
    return _Importer(_types(model)).from_onnx(model.graph, opset_of(model))


def opset_of(model: onnx.ModelProto) -> int:
    return next((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), 1)


def _types(model: onnx.ModelProto) -> dict[str, onnx.TypeProto.Tensor]:
    """The types of all tensors that ONNX can tell."""
    try:
        known = onnx.shape_inference.infer_shapes(model)
    except Exception:  # more than 2 GB, or a model that the checker does not like; TVM may import it all the same
        known = model
    values = (*known.graph.value_info, *known.graph.output)
    return {v.name: v.type.tensor_type for v in values if v.type.tensor_type.elem_type}


def unknown_operators(graph: onnx.GraphProto, opset: int) -> list[str]:
    """The operators of a graph and of the bodies in it that cannot be imported, each with its domain."""
    unknown: dict[str, None] = {}
    for node in _all_nodes(graph):
        known = node.op_type in frontend._get_convert_map() or node.op_type in converters.CONVERTERS
        if node.domain in ("", "ai.onnx"):
            known = (known and schema_of(node, opset) is not None) or node.op_type == "If"
        else:
            known = (node.domain, node.op_type) in CONTRIB
        if not known:
            unknown[f"{node.op_type} ({node.domain})" if node.domain else node.op_type] = None
    return list(unknown)


class _One(NamedTuple):
    """A graph of one node, as far as the importer asks."""

    node: Sequence[onnx.NodeProto]


class _Importer(frontend.ONNXGraphImporter):  # type: ignore[misc]
    def __init__(self, types: dict[str, onnx.TypeProto.Tensor]) -> None:
        super().__init__(None, "float32")
        self._types = types
        self._at: onnx.NodeProto | None = None

    def _check_for_unsupported_ops(self, graph: onnx.GraphProto) -> None:
        unknown = unknown_operators(graph, self.opset)
        if unknown:
            raise InvalidArgument(f"TVM cannot import the operator {', '.join(unknown)}")

    def _construct_nodes(self, graph: onnx.GraphProto) -> None:
        for node in graph.node:
            self._at = node
            try:
                super()._construct_nodes(_One([node]))
            except OffloadError:
                raise
            except Exception as error:
                name = node.name or node.output[0]
                said = _said(error)
                raise InvalidArgument(f"TVM cannot import the operator {node.op_type} ({name!r}): {said}") from error
            for index, name in enumerate(node.output):
                if name in self._nodes and name in self._types:
                    self._nodes[name] = self._settled(node, index, self._nodes[name], self._types[name])

    def _convert_operator(self, op_name: str, inputs: list[Any], attrs: dict[str, Any], opset: int) -> Any:
        assert self._at is not None
        name = attrs["tvm_custom"]["name"] or self._at.name or self._at.output[0]
        outputs = attrs["tvm_custom"]["num_outputs"]
        node = Node(op_name, name, inputs, attrs, opset, outputs, self._at if self._at.op_type == op_name else None)
        try:
            own = converters.CONVERTERS.get(op_name)
            if own is not None and (self._at.domain or "ai.onnx") == "ai.onnx":
                result = own(self.bb, node)
                return self.bb.normalize(result) if isinstance(result, relax.Expr) else result
            result = super()._convert_operator(op_name, node.inputs, node.attributes, opset)
        except OffloadError:
            raise
        except Exception as error:
            said = _said(error)
            raise InvalidArgument(f"TVM cannot import the operator {op_name} ({name!r}): {said}") from error
        self._check_read(node)
        return result

    def _check_read(self, node: Node) -> None:
        schema = schema_of(self._at, self.opset) if node.proto is not None else None
        for attribute in node.attributes.unread():
            if (node.operator, attribute) in HARMLESS:
                continue
            value = node.attributes.peek(attribute)
            default = schema.attributes[attribute] if schema and attribute in schema.attributes else None
            usual = onnx.helper.get_attribute_value(default.default_value) if default is not None else None
            if usual is not None and usual == value:
                continue
            refuse(node, attribute, value)
        for index in node.inputs.unread():
            raise InvalidArgument(
                f"TVM cannot import the operator {node.operator} ({node.name!r}) with its input {index + 1}, "
                f"{node.input_name(index)}, which it would ignore"
            )

    def _settled(self, node: onnx.NodeProto, index: int, value: Any, right: onnx.TypeProto.Tensor) -> Any:
        """A node's result with the datatype that ONNX says; refused if that would be another number, or its shape."""
        ty = value.ty if isinstance(value, relax.Expr) else None
        if not isinstance(ty, relax.TensorType) or ty.dtype is None:
            return value  # a shape or a sequence, which has no datatype of its own
        where = f"the operator {node.op_type} ({(node.name or node.output[0])!r})"
        have, want = str(ty.dtype.dtype), str(tensor_dtype_to_np_dtype(right.elem_type))
        if have != want:
            if not _may_become(have, want):
                raise InvalidArgument(
                    f"TVM cannot import {where}: it computes {have} where the model has {want} ({node.output[index]!r})"
                )
            value = self.bb.normalize(relax.op.astype(value, want))
        if right.HasField("shape") and isinstance(value.ty.shape, relax.ShapeExpr):
            dims = [d.dim_value if d.HasField("dim_value") else None for d in right.shape.dim]
            ours = [int(d) if isinstance(d, tvm.tirx.IntImm) else None for d in value.ty.shape.values]
            if node.op_type in pools.POOLS:
                return value  # with ceil_mode the rule of ONNX's text and ONNX Runtime is not that of its inference
            clash = any(a is not None and b is not None and a != b for a, b in zip(ours, dims, strict=False))
            if clash or len(ours) != len(dims):
                shown = [",".join("?" if d is None else str(d) for d in shape) for shape in (ours, dims)]
                raise InvalidArgument(
                    f"TVM cannot import {where}: it computes the shape [{shown[0]}] where the model has [{shown[1]}] "
                    f"({node.output[index]!r})"
                )
        return value


def _said(error: Exception) -> str:
    if isinstance(error, AttributeError) and "Var' object" in str(error):  # where TVM expects a constant
        return "one of its inputs is computed when the model runs; it has to be a constant"
    return one_line(error) or type(error).__name__


def _all_nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for body in (attribute.g, *attribute.graphs):
                yield from _all_nodes(body)


def _may_become(have: str, want: str) -> bool:
    """Whether a cast keeps what was computed: wider to narrower of a kind, signed to unsigned, mask to boolean."""
    if "bool" in (have, want):
        return True
    kinds = [d.rstrip("0123456789") for d in (have, want)]
    bits = [int(d[len(k) :] or 0) for d, k in zip((have, want), kinds, strict=True)]
    if kinds[0] == kinds[1]:
        return bits[0] >= bits[1] or kinds[0] == "int"
    return set(kinds) <= {"int", "uint"}
