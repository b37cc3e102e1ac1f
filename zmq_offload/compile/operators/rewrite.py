"""Rewrite an ONNX model before it is imported: replace operators that ONNX defines by simpler ones."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterable

import numpy as np
import onnx
import onnx.inliner

from zmq_offload.compile.operators.constants import without_weights
from zmq_offload.compile.operators.converters import CONVERTERS
from zmq_offload.compile.operators.nodes import opset_of
from zmq_offload.compile.operators.qlinear import write_out_quantized
from zmq_offload.compile.operators.tvm_importer import known_operators
from zmq_offload.errors import InvalidArgument


def slopes_per_channel(model: onnx.ModelProto) -> None:
    """Give the slopes of each PRelu of a model from before opset 7 the shape of channels: they were [channels]."""
    ranks = {v.name: len(v.type.tensor_type.shape.dim) for v in (*_typed(model).graph.value_info, *model.graph.input)}
    weights = {w.name: w for w in model.graph.initializer}
    slopes = {node.input[1]: ranks.get(node.input[0], 0) for node in model.graph.node if node.op_type == "PRelu"}
    for name, rank in slopes.items():
        weight = weights.get(name)
        if weight is not None and len(weight.dims) == 1 and rank > 2:
            weight.dims.extend([1] * (rank - 2))
            stated = [value for value in model.graph.input if value.name == name]
            for value in stated:
                value.CopyFrom(onnx.helper.make_tensor_value_info(name, weight.data_type, weight.dims))


MOST_NODES = 1_000_000
"""The most nodes that a model's functions may become. No known network has a tenth of that."""


def resized_as_before(model: onnx.ModelProto) -> None:
    """Give each Resize of a model converted from an opset before 11 the coordinates of that opset.

    onnx.version_converter omits them, and opset 11 has other defaults.
    """
    for node in model.graph.node:
        given = {attribute.name for attribute in node.attribute}
        for name, value in (("coordinate_transformation_mode", "asymmetric"), ("nearest_mode", "floor")):
            if node.op_type == "Resize" and name not in given:
                node.attribute.append(onnx.helper.make_attribute(name, value))


def inlined(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the model with functions inlined: its own, and ONNX's definitions of operators that TVM does not know or
    confuses with others. The given model is changed: a copy of its weights would take long, and much memory."""
    if model.functions:
        _check_size(model)
        model = onnx.inliner.inline_local_functions(model)
    write_out_quantized(model)
    _write_out_splits(model)
    # Before ONNX 1.17 the inliner handles the model's own functions only. Other operators stay and are refused.
    if "inline_schema_functions" not in inspect.signature(onnx.inliner.inline_selected_functions).parameters:
        return model
    opset = opset_of(model)
    known, done = known_operators() | set(CONVERTERS), set[str]()
    # A definition may use operators that have one, too.
    while True:
        names = {node.op_type for node in model.graph.node if node.domain in ("", "ai.onnx")} - known - done
        chosen = [("", name) for name in sorted(names) if _defined_by_others(name, opset)]
        if not chosen:
            return model
        done |= {name for _, name in chosen}
        # Where ONNX cannot infer a type, the operator stays and is refused by name.
        with contextlib.suppress(Exception):
            model = onnx.inliner.inline_selected_functions(_typed(model), chosen, inline_schema_functions=True)


def _check_size(model: onnx.ModelProto) -> None:
    """Raises InvalidArgument for functions that call themselves, or that would become too many nodes."""
    functions = {(f.domain, f.name): f for f in model.functions}
    sizes: dict[tuple[str, str], int | None] = {}

    def size(nodes: Iterable[onnx.NodeProto]) -> int:
        return sum(size_of((n.domain, n.op_type)) for n in nodes)

    def size_of(key: tuple[str, str]) -> int:
        if key not in functions:
            return 1
        if key not in sizes:
            sizes[key] = None  # in progress
            sizes[key] = size(functions[key].node)
        known = sizes[key]
        if known is None:
            raise InvalidArgument(f"the model's function {key[1]!r} calls itself; export the model without it")
        return known

    total = size(model.graph.node)
    if total > MOST_NODES:
        raise InvalidArgument(
            f"the model's functions stand for {total:,} nodes; at most {MOST_NODES:,} can be compiled"
        )


def _write_out_splits(model: onnx.ModelProto) -> None:
    """Write out the sizes of each Split into a number of unequal pieces, which TVM divides differently.

    In ONNX all pieces have the same size, except for a smaller last one.
    """
    nodes = [n for n in model.graph.node if n.op_type == "Split" and any(a.name == "num_outputs" for a in n.attribute)]
    if not nodes:
        return
    typed = without_weights(model)
    with contextlib.suppress(Exception):  # a faulty node, which the importer refuses by name
        typed = onnx.shape_inference.infer_shapes(typed)
    known = {v.name: v.type.tensor_type for v in (*typed.graph.input, *typed.graph.value_info, *typed.graph.output)}
    for number, node in enumerate(nodes):
        pieces = [known.get(name) for name in node.output]
        axis = next((a.i for a in node.attribute if a.name == "axis"), 0)
        dims = [piece.shape.dim[axis] for piece in pieces if piece is not None and len(piece.shape.dim)]
        sizes = [dim.dim_value for dim in dims if dim.HasField("dim_value")]
        if len(sizes) < len(pieces) or len(set(sizes)) < 2:
            continue
        name = f"{node.output[0]}.sizes.{number}"
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.array(sizes, "int64"), name))
        node.input[1:] = [name]
        kept = [a for a in node.attribute if a.name != "num_outputs"]
        del node.attribute[:]
        node.attribute.extend(kept)


def _typed(model: onnx.ModelProto) -> onnx.ModelProto:
    """Infer the types of all tensors, weights included. Some operators' definitions depend on them."""
    typed = onnx.shape_inference.infer_shapes(model)
    known = {v.name for v in (*typed.graph.input, *typed.graph.value_info)}
    typed.graph.value_info.extend(
        onnx.helper.make_tensor_value_info(w.name, w.data_type, list(w.dims))
        for w in typed.graph.initializer
        if w.name not in known
    )
    return typed


def _defined_by_others(name: str, opset: int) -> bool:
    try:
        schema = onnx.defs.get_schema(name, opset, "")
    except onnx.defs.SchemaError:
        return False
    return bool(schema.has_function or schema.has_context_dependent_function)
