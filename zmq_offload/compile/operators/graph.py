"""Import an ONNX graph with TVM's importer, and refuse every node of which TVM would ignore something."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Sequence

import onnx
import tvm
from onnx.helper import tensor_dtype_to_np_dtype
from tvm import relax

from zmq_offload.byoc.extents import Extents
from zmq_offload.byoc.parameters import LARGEST
from zmq_offload.compile.operators import converters, pools
from zmq_offload.compile.operators.branches import CHOICE, for_importer
from zmq_offload.compile.operators.choices import choices
from zmq_offload.compile.operators.constants import without_weights
from zmq_offload.compile.operators.contrib import CONTRIB_CONVERTERS
from zmq_offload.compile.operators.index_bounds import IndexBounds
from zmq_offload.compile.operators.known_values import KnownValues, shape_of
from zmq_offload.compile.operators.node import Node, refuse
from zmq_offload.compile.operators.nodes import all_nodes, opset_of
from zmq_offload.compile.operators.refusal import cannot_import, reason, unknown
from zmq_offload.compile.operators.schemas import BY_TVM, EARLY, MICROSOFT, schema_of
from zmq_offload.compile.operators.scope import Scope, places_of
from zmq_offload.compile.operators.shape_arithmetic import NotKnown
from zmq_offload.compile.operators.tvm_importer import (
    AttributeValue,
    Expr,
    GraphImporter,
    expects_constant,
    known_operators,
    node_info,
)
from zmq_offload.compile.operators.unknown_shapes import check_extents
from zmq_offload.errors import InvalidArgument, OffloadError

OLDEST_IR = 4
"""The first version of ONNX's format in which weights need not be inputs."""

HARMLESS = {
    ("BatchNormalization", "momentum"),
    ("Conv", "kernel_shape"),  # the weights have this shape
    ("ConvTranspose", "kernel_shape"),
    ("Dropout", "seed"),  # inference drops nothing
    ("LayerNormalization", "stash_type"),  # affects the precision only
    ("GroupNormalization", "stash_type"),
    ("MaxPool", "storage_order"),  # affects the second output, which is refused
    ("Optional", "type"),
    ("Range", "stash_type"),
    ("SequenceEmpty", "dtype"),
    ("Split", "num_outputs"),  # it equals the number of the node's outputs
    ("TopK", "sorted"),
}
"""Attributes that do not change the result of a node."""


def import_graph(model: onnx.ModelProto, outputs: Sequence[str] | None = None) -> tvm.IRModule:
    """Import a model into a Relax module whose `main` has the model's inputs and outputs, in order.

    `outputs` are those outputs that are tensors even if they are shapes; default: all.

    Raises InvalidArgument, with the node, for an operator that TVM does not know, an attribute or an input that TVM
    would ignore, and a result whose shape or datatype differs from ONNX's.
    """
    check_operators(model.graph, opset_of(model))
    names = [output.name for output in model.graph.output] if outputs is None else outputs
    importer = _Importer(_types(model), names)
    for_importer(model.graph)
    return importer.import_model(model, opset_of(model)).with_attr(LARGEST, importer.largest())


def _types(model: onnx.ModelProto) -> dict[str, onnx.TypeProto.Tensor]:
    """The types of all tensors, as far as ONNX can infer them."""
    known = without_weights(model)
    # ONNX's shape inference ignores weights of an older file that are no inputs, as its converter of opsets makes them.
    known.ir_version = max(known.ir_version, OLDEST_IR)
    for output in known.graph.output:
        # What a file says of its outputs may be wrong, which ONNX Runtime tolerates, and the inference would keep it.
        output.type.tensor_type.ClearField("shape")
    with contextlib.suppress(Exception):  # invalid for ONNX's checker; TVM may import the model anyway
        known = onnx.shape_inference.infer_shapes(known)
    values = (*known.graph.value_info, *known.graph.output)
    return {v.name: v.type.tensor_type for v in values if v.type.tensor_type.elem_type}


def check_operators(graph: onnx.GraphProto, opset: int) -> None:
    """Raises InvalidArgument with all operators of a graph, bodies included, that cannot be imported."""
    missing: dict[tuple[str, str], list[str]] = {}
    by_tvm = known_operators()
    for node in all_nodes(graph):
        known = node.op_type in by_tvm or node.op_type in converters.CONVERTERS
        if node.domain in ("", "ai.onnx"):
            known = known and (schema_of(node, opset) is not None or node.op_type in EARLY)
            known = known or node.op_type == "If"
        else:
            known = node.domain == MICROSOFT and node.op_type in BY_TVM | CONTRIB_CONVERTERS.keys()
        if not known:
            missing.setdefault((node.op_type, node.domain), []).append(name_of(node))
    if missing:
        raise unknown(missing)


def name_of(node: onnx.NodeProto) -> str:
    """The name of a node; that of its first output if it has none."""
    return str(node.name or next((o for o in node.output if o), ""))


class _Importer(GraphImporter):
    def __init__(self, types: dict[str, onnx.TypeProto.Tensor], outputs: Sequence[str]) -> None:
        super().__init__()
        self._types, self._outputs = types, outputs
        self._current: onnx.NodeProto | None = None
        self._doubtful: set[str] = set()
        self._extents = Extents()
        self._values = KnownValues(self, self._extents)

    @functools.cached_property
    def _scope(self) -> Scope:
        places = places_of(self.parameters(), self._extents)
        return Scope(self._extents, self._values.of, places, lost=self._values.lost)

    @functools.cached_property
    def _bounds(self) -> IndexBounds:
        return IndexBounds(self._scope)

    def largest(self) -> dict[str, int]:
        """The largest values of symbols: a table ends there."""
        return dict(self._scope.most)

    def add_nodes(self, nodes: Sequence[onnx.NodeProto]) -> None:
        for _, param in self.parameters():
            for dim in param.ty.shape.values if isinstance(param.ty.shape, relax.ShapeExpr) else ():
                if isinstance(dim, tvm.tirx.Add):
                    # Sums of these symbols are then written in the order of the input, as TVM writes a concatenation
                    # of the past and what is new. It does not fuse operators whose extents have different forms.
                    self._extents.normal(dim)
        super().add_nodes(nodes)
        self._values.finish(self._outputs)

    def add_node(self, node: onnx.NodeProto) -> None:
        self._current = node
        if self._values.evaluate(node, self.opset):
            if node.op_type == "NonZero":
                self._bounds.note_places(node.output[0], shape_of(self.result(node.output[0]), self._extents)[1])
            return
        self._bounds.note(node)
        if node.op_type == "Gather":
            with contextlib.suppress(NotKnown):
                self._bounds.limit(node, shape_of(self.result(node.input[0]), self._extents))
        self._values.present(node)
        try:
            if node.domain == CHOICE:
                inputs = [self.result(name) for name in node.input]
                for name, value in zip(node.output, choices(self.bb, node, inputs, self._scope), strict=True):
                    self.set_result(name, value)
            else:
                self.add_node_by_tvm(node)
        except OffloadError:
            raise
        except Exception as error:
            raise _failed(node.op_type, node.domain, name_of(node), error) from error
        inputs, results = ([self.result(t) if t else None for t in names] for names in (node.input, node.output))
        check_extents(node, name_of(node), inputs, results, self._scope)
        for name, result in zip(node.output, results, strict=True):
            with contextlib.suppress(NotKnown):
                least = 1 if node.op_type in ("Conv", *pools.POOLS) else 0
                self._scope.note(name, shape_of(result, self._extents), least)
        for index, name in enumerate(node.output):
            result = self.result(name)
            if result is not None and name in self._types:
                self.set_result(name, self._as_declared(node, index, result, self._types[name]))

    def convert(self, operator: str, inputs: list[Expr], attributes: dict[str, AttributeValue], opset: int) -> Expr:
        current = self._current
        assert current is not None
        name, outputs = node_info(attributes)
        name = name or name_of(current)
        node = Node(operator, name, inputs, attributes, opset, outputs, current, self._scope)
        try:
            if (current.domain or "ai.onnx") == "ai.onnx":
                own = converters.CONVERTERS.get(operator)
            else:
                own = CONTRIB_CONVERTERS.get(operator)
            if own is not None:
                result = own(self.bb, node)
                if current.domain == MICROSOFT:
                    self._check_read(node)
                return self.bb.normalize(result) if isinstance(result, relax.Expr) else result
            result = self.convert_by_tvm(operator, node.inputs, node.attributes, opset)
        except OffloadError:
            raise
        except Exception as error:
            raise _failed(operator, node.domain, name, error) from error
        self._check_read(node)
        return result

    def _check_read(self, node: Node) -> None:
        """Raises InvalidArgument for an attribute or an input that TVM did not read, unless it has its default."""
        schema = schema_of(self._current, self.opset)
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
            raise node.refused(
                f"with its input {index + 1}, {node.input_name(index)}, which TVM would ignore",
                "export the model without it",
            )

    def _as_declared(self, node: onnx.NodeProto, index: int, value: Expr, right: onnx.TypeProto.Tensor) -> Expr:
        """Cast a result to the datatype that ONNX declares. Raises InvalidArgument if the cast would change values, or
        for another shape."""
        ty = value.ty if isinstance(value, relax.Expr) else None
        if not isinstance(ty, relax.TensorType) or ty.dtype is None:
            return value  # a shape or a sequence, which has no datatype
        have, want = str(ty.dtype.dtype), str(tensor_dtype_to_np_dtype(right.elem_type))
        if have != want:
            if not _may_become(have, want):
                raise _not_as_declared(node, index, have, want)
            value = self.bb.normalize(relax.op.astype(value, want))
        if right.HasField("shape") and isinstance(value.ty.shape, relax.ShapeExpr):
            dims = [d.dim_value if d.HasField("dim_value") else None for d in right.shape.dim]
            ours = [int(d) if isinstance(d, tvm.tirx.IntImm) else None for d in value.ty.shape.values]
            if node.op_type in (*pools.POOLS, "STFT") or self._doubtful.intersection(node.input):
                # With ceil_mode, and where frames have half of the spectrum, ONNX's shape inference differs from its
                # specification and from ONNX Runtime. So do the shapes that it infers from those.
                if ours != dims:
                    self._doubtful.add(node.output[index])
                return value
            clash = any(a is not None and b is not None and a != b for a, b in zip(ours, dims, strict=False))
            if clash or len(ours) != len(dims):
                shown = [",".join("?" if d is None else str(d) for d in shape) for shape in (ours, dims)]
                raise _not_as_declared(node, index, f"the shape [{shown[0]}]", f"[{shown[1]}]")
        return value


def _not_as_declared(node: onnx.NodeProto, index: int, have: str, want: str) -> InvalidArgument:
    why = f"TVM computes {have} for {node.output[index]!r} where the model has {want}"
    return cannot_import(node.op_type, node.domain, name_of(node), why)


def _failed(operator: str, domain: str, name: str, error: Exception) -> InvalidArgument:
    if expects_constant(error):
        why = "one of its inputs is computed when the model runs"
        return cannot_import(operator, domain, name, why, "it has to be a constant")
    why = reason(error)
    if "not broadcastable" in why:
        fitting = "give shapes with --input that fit together, for images often multiples of 32"
        return cannot_import(operator, domain, name, why, fitting)
    return cannot_import(operator, domain, name, why)


def _may_become(have: str, want: str) -> bool:
    """Whether a cast keeps the values: wider to narrower of one kind, signed to unsigned, mask to boolean."""
    if "bool" in (have, want):
        return True
    kinds = [d.rstrip("0123456789") for d in (have, want)]
    bits = [int(d[len(k) :] or 0) for d, k in zip((have, want), kinds, strict=True)]
    if kinds[0] == kinds[1]:
        return bits[0] >= bits[1] or kinds[0] == "int"
    return set(kinds) <= {"int", "uint"}
