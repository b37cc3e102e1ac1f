"""Fold what is constant in an ONNX model: computations on shapes and weights, and branches that are always taken.

Nodes of other branches become nodes of the model, too, and their If chooses a result (branches.py).

Exporters write shapes as nodes (Shape, Gather, Concat, ...), which TVM's importer cannot leave to run time. One pass in
graph order infers the type of each tensor, evaluates each node whose inputs are known, and drops what nothing reads.
Weights are not copied, and large ones are not looked at.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
import onnx
from onnx import numpy_helper

from zmq_offload.compile.operators.branches import Types, both_branches, choice, choice_types, is_branch, is_choice
from zmq_offload.compile.operators.evaluate import Evaluator, type_of
from zmq_offload.compile.operators.nodes import bodies, read_inside
from zmq_offload.protocol.payload import Array

SMALL = 1 << 16
"""Elements up to which a result replaces its node even where it is larger than what it is computed from."""

SHAPE_VALUES = 1 << 10
"""Elements up to which ONNX's shape inference gets to know a value, the target of a Reshape for instance. Weights with
more stay behind in the copy for it."""

KEPT = {
    *("DequantizeLinear", "QuantizeLinear", "DynamicQuantizeLinear"),  # weights stay as small as they are
    *("RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Multinomial", "Bernoulli", "Dropout"),
    *("If", "Loop", "Scan", "SequenceMap", "Optional"),
}
"""Operators that are not evaluated."""

MOVES = {"Concat", "Flatten", "Gather", "Identity", "Reshape", "Slice", "Squeeze", "Transpose", "Unsqueeze"}
"""Operators that only move elements. What they make of a shape is known as far as that shape is."""


def fold(model: onnx.ModelProto, keep: Iterable[str] = ()) -> onnx.ModelProto:
    """Remove constant computations from the model, and return it. Nodes that compute the tensors in `keep` stay."""
    return _Folder(model, frozenset(keep)).folded()


def without_data(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy in which large weights have only a name, a datatype and a shape."""
    copy = onnx.ModelProto()
    for field, value in model.ListFields():
        if field.name != "graph":
            _assign(copy, field, value)
    for field, value in model.graph.ListFields():
        if field.name != "initializer":
            _assign(copy.graph, field, value)
    for weight in model.graph.initializer:
        type_only = onnx.TensorProto(name=weight.name, data_type=weight.data_type, dims=weight.dims)
        light = type_only if _is_large(weight) else weight
        copy.graph.initializer.append(light)
    return copy


def without_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy in which large weights have only a type. Shape inference copies the model several times."""
    copy = without_data(model)
    large = [weight for weight in model.graph.initializer if _is_large(weight)]
    declared = {v.name for v in (*copy.graph.input, *copy.graph.value_info)}
    types = [onnx.ValueInfoProto(name=w.name, type=type_of(w)) for w in large if w.name not in declared]
    copy.graph.value_info.extend(types)
    names = {weight.name for weight in large}
    for index in reversed(range(len(copy.graph.initializer))):
        if copy.graph.initializer[index].name in names:
            del copy.graph.initializer[index]
    return copy


def _is_large(weight: onnx.TensorProto) -> bool:
    # By its shape: protobuf copies all bytes to tell their number.
    return bool(math.prod(weight.dims) > SHAPE_VALUES)


def _assign(message: onnx.ModelProto | onnx.GraphProto, field: object, value: object) -> None:
    name = field.name  # type: ignore[attr-defined]  # protobuf has no types
    if isinstance(value, str | bytes | int | float):
        setattr(message, name, value)
    elif hasattr(value, "CopyFrom"):
        getattr(message, name).CopyFrom(value)
    else:
        getattr(message, name).extend(value)


class _Folder:
    def __init__(self, model: onnx.ModelProto, keep: frozenset[str]) -> None:
        self._model, self._keep = model, keep
        self._opsets = {o.domain or "": o.version for o in model.opset_import}
        self._weights = {w.name: w for w in model.graph.initializer}
        self._values: dict[str, Array] = {}
        self._known: dict[str, Array] = {}  # which elements of a partly known shape are known
        self._types: Types = {i.name: i.type for i in model.graph.input}
        self._types |= {name: type_of(weight) for name, weight in self._weights.items()}
        self._evaluate = Evaluator(self._opsets)
        self._outputs = {o.name for o in model.graph.output}
        self._nodes: list[onnx.NodeProto] = []
        self._names = {name for node in model.graph.node for name in node.output} | set(self._types)

    def folded(self) -> onnx.ModelProto:
        for node in self._model.graph.node:
            self._visit(node)
        nodes, needed = self._live()
        graph, inputs = self._model.graph, {i.name for i in self._model.graph.input}
        fresh = onnx.GraphProto(node=nodes)
        del graph.node[:], graph.value_info[:]
        graph.node.extend(fresh.node)
        for index in reversed(range(len(graph.initializer))):
            if graph.initializer[index].name not in needed:
                # The weights of old files are inputs, too.
                for stated in [v for v in graph.input if v.name == graph.initializer[index].name]:
                    graph.input.remove(stated)
                del graph.initializer[index]
        present = {w.name for w in graph.initializer} | inputs | self._known.keys()
        for name in (name for name in needed if name not in present):
            if name in self._weights:  # it was inside a branch
                graph.initializer.append(self._weights[name])
            elif name in self._values:
                graph.initializer.append(numpy_helper.from_array(self._values[name], name))
        return self._model

    # -- nodes -------------------------------------------------------------------------------------------------------

    def _visit(self, node: onnx.NodeProto) -> None:
        if is_branch(node):
            taken = self._taken(node)
            if taken is not None or not is_choice(node):
                for inner in self._hoisted(node) if taken is None else self._inlined(taken, node.output):
                    self._visit(inner)
                return
        fixed = any(name in self._keep or name in self._outputs for name in node.output)
        kept = node.op_type in KEPT and not self._is_quantized_number(node)
        if not kept and node.domain in ("", "ai.onnx") and not fixed:
            results = self._evaluated(node)
            if results is not None and self._replaces(node, results):
                for name, value in zip(node.output, results, strict=False):
                    self._values[name] = value
                    self._types[name] = type_of(value)
                return
        self._infer(node)
        self._nodes.append(node)

    def _is_quantized_number(self, node: onnx.NodeProto) -> bool:
        """Whether a node quantizes or dequantizes one number, such as a divisor or the value of a Pad."""
        if node.op_type not in ("DequantizeLinear", "QuantizeLinear"):
            return False
        value = self._values.get(node.input[0])
        weight = self._weights.get(node.input[0])
        return value.size == 1 if value is not None else weight is not None and math.prod(weight.dims) == 1

    def _evaluated(self, node: onnx.NodeProto) -> list[Array] | None:
        """The results of a node whose inputs are all known; None for others."""
        if node.op_type in ("Shape", "Size"):
            return self._shape(node)
        if any(bodies(node)):
            return None
        partly = [name for name in node.input if name in self._known]
        if not all(name in self._values or name in self._weights for name in node.input if name):
            return None  # the others, weights perhaps, are not read
        inputs = [self._value(name) if name else None for name in node.input]
        if any(value is None for value, name in zip(inputs, node.input, strict=True) if name):
            return None
        if node.op_type == "Cast" and any(v is not None and v.size > SMALL for v in inputs):
            return None  # a weight stays as small as it is
        if not partly:
            return self._evaluate(node, inputs)
        if node.op_type == "Cast" and next(a.i for a in node.attribute if a.name == "to") in _INTEGERS:
            self._known[node.output[0]] = self._known[partly[0]]
            return self._evaluate(node, inputs)
        if node.op_type not in MOVES or (node.op_type != "Concat" and partly != [node.input[0]]):
            return None
        masks = [
            self._known.get(name, np.ones_like(value)) if i == 0 or node.op_type == "Concat" else value
            for i, (name, value) in enumerate(zip(node.input, inputs, strict=True))
            if value is not None
        ]
        results, known = self._evaluate(node, inputs), self._evaluate(node, masks)
        if results is None or known is None:
            return None
        if not known[0].all():
            self._known[node.output[0]] = known[0]
        return results

    def _replaces(self, node: onnx.NodeProto, results: list[Array]) -> bool:
        if any(name in self._known for name in node.output):
            # A value for other nodes; this one stays.
            self._values.update(zip(node.output, results, strict=False))
            return False
        given = sum(value.size for name in node.input if name and (value := self._value(name)) is not None)
        return all(r.size <= max(SMALL, given) for r in results)

    def _shape(self, node: onnx.NodeProto) -> list[Array] | None:
        kind = self._types.get(node.input[0])
        if kind is None or not kind.tensor_type.HasField("shape"):
            return None
        dims = [d.dim_value if d.HasField("dim_value") else None for d in kind.tensor_type.shape.dim]
        if node.op_type == "Size":
            return None if None in dims else [np.array(np.prod([d or 0 for d in dims], dtype="int64"))]
        ends = {a.name: a.i for a in node.attribute}
        dims = dims[ends.get("start", 0) : ends.get("end", len(dims))]
        if None in dims:
            self._known[node.output[0]] = np.array([int(d is not None) for d in dims], "int64")
        return [np.array([d or 0 for d in dims], "int64")]

    def _value(self, name: str) -> Array | None:
        """The value of a weight or a folded tensor. Of a partly known shape, the unknown elements are 0."""
        value = self._values.get(name)
        if value is None and name in self._weights:
            weight = self._weights[name]
            if weight.data_type in _UNUSUAL or weight.data_location == onnx.TensorProto.EXTERNAL:
                return None
            value = self._values[name] = numpy_helper.to_array(weight)
        return value

    def _infer(self, node: onnx.NodeProto) -> None:
        """Infer the types of a node's results by ONNX's rules; they stay unknown if an input's is."""
        if is_branch(node):
            self._types |= choice_types(node, self._types)
            return
        try:
            schema = onnx.defs.get_schema(node.op_type, self._opsets.get(node.domain.replace("ai.onnx", ""), 1), "")
            types = {name: self._types[name] for name in node.input if name}
            data = {
                name: numpy_helper.from_array(value, name)
                for name in types
                if name not in self._known and _elements(types[name]) <= SHAPE_VALUES
                if (value := self._value(name)) is not None
            }

            def infer(this: onnx.NodeProto) -> dict[str, onnx.TypeProto]:
                return dict(
                    onnx.shape_inference.infer_node_outputs(
                        schema, this, types, data, opset_imports=list(self._model.opset_import), ir_version=8
                    )
                )

            found = infer(node)
            # ONNX's shape inference differs from its specification where rounding up makes a difference.
            if node.op_type in _POOLS and any(a.name == "ceil_mode" and a.i for a in node.attribute):
                found = {name: kind for name, kind in infer(_rounding_down(node)).items() if kind == found.get(name)}
        except Exception:  # an unknown operator, a type that is not known, or a faulty node; the importer refuses it
            return
        self._types.update(found)

    # -- branches ----------------------------------------------------------------------------------------------------

    def _taken(self, node: onnx.NodeProto) -> onnx.GraphProto | None:
        """The branch of an If whose condition is known."""
        if node.input[0] in self._known:
            return None
        condition = self._value(node.input[0])
        if condition is None or condition.size != 1:
            return None
        return both_branches(node)[0 if bool(condition.reshape(-1)[0]) else 1]

    def _hoisted(self, node: onnx.NodeProto) -> Iterator[onnx.NodeProto]:
        """The nodes of both branches of an If that is decided at run time, and an If that only chooses."""
        sides = []
        for body, word in zip(both_branches(node), ("then", "else"), strict=True):
            sides.append([self._fresh(f"{name}.{word}") for name in node.output])
            self._names.update(sides[-1])
            yield from self._inlined(body, sides[-1])
        yield choice(node, *sides)

    def _inlined(self, branch: onnx.GraphProto, results: Sequence[str]) -> Iterator[onnx.NodeProto]:
        """The nodes of a branch that compute `results`, with new names where the model has theirs already."""
        copy = onnx.GraphProto()
        copy.CopyFrom(branch)
        own = {name for inner in copy.node for name in inner.output} | {w.name for w in copy.initializer}
        new = {name: self._fresh(name) for name in own if name in self._names}
        outputs = [o.name for o in copy.output]
        computed = {name for inner in copy.node for name in inner.output}
        pairs = zip(outputs, results, strict=False)
        new |= {inner: name for inner, name in pairs if name and inner in computed and outputs.count(inner) == 1}
        _rename(copy, new)
        self._names |= {new.get(name, name) for name in own}
        for weight in copy.initializer:
            self._weights[weight.name] = weight
            self._types[weight.name] = type_of(weight)
        yield from copy.node
        for output, name in zip(copy.output, results, strict=False):
            if name and output.name != name:  # it hands a tensor of the model through
                yield onnx.helper.make_node("Identity", [output.name], [name])

    def _fresh(self, name: str) -> str:
        number = 1
        while f"{name}.{number}" in self._names:
            number += 1
        return f"{name}.{number}"

    def _live(self) -> tuple[list[onnx.NodeProto], dict[str, None]]:
        """The nodes that outputs or kept tensors need, and what these read, weights included."""
        needed = dict.fromkeys((*self._outputs, *self._keep))
        live = []
        for node in reversed(self._nodes):
            if any(name in needed for name in node.output):
                live.append(node)
                needed.update(dict.fromkeys(name for name in (*node.input, *read_inside(node)) if name))
        return live[::-1], needed


def _rounding_down(pool: onnx.NodeProto) -> onnx.NodeProto:
    """The same pool without `ceil_mode`."""
    other = onnx.NodeProto()
    other.CopyFrom(pool)
    del other.attribute[:]
    other.attribute.extend(a for a in pool.attribute if a.name != "ceil_mode")
    return other


def _rename(graph: onnx.GraphProto, names: Mapping[str, str]) -> None:
    """Rename tensors of a graph, also where its bodies read them."""
    for node in graph.node:
        for field in (node.input, node.output):
            field[:] = [names.get(name, name) for name in field]
        for body in bodies(node):
            _rename(body, names)
    for value in (*graph.output, *graph.initializer):
        value.name = names.get(value.name, value.name)


def _elements(kind: onnx.TypeProto) -> int:
    return int(np.prod([d.dim_value for d in kind.tensor_type.shape.dim], dtype="int64"))


_INTEGERS = {onnx.TensorProto.INT64, onnx.TensorProto.INT32}
_UNUSUAL = {
    *(onnx.TensorProto.STRING, onnx.TensorProto.COMPLEX64, onnx.TensorProto.COMPLEX128, onnx.TensorProto.BFLOAT16),
    *range(onnx.TensorProto.FLOAT8E4M3FN, max(onnx.TensorProto.DataType.values()) + 1),
}
_POOLS = {"AveragePool", "MaxPool", "LpPool"}
