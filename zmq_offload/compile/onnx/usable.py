"""Check that an ONNX file is a network of tensors for inference, and whole. Each error names what is not."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from pathlib import Path

import onnx

from zmq_offload.compile.operators.nodes import all_nodes, bodies
from zmq_offload.errors import InvalidArgument

TRAINING = ("ai.onnx.preview.training", "ai.onnx.training")
"""Domains of operators that train."""

CLASSIC = "ai.onnx.ml"
"""The domain of decision trees, support vector machines and other classical models."""

_KINDS = {
    "sequence_type": "a sequence",
    "map_type": "a map",
    "optional_type": "optional",
    "sparse_tensor_type": "a sparse tensor",
    "opaque_type": "opaque",
}


def check_usable(model: onnx.ModelProto, file: Path) -> None:
    """Raises InvalidArgument, with the file's name, for a model that no compiler of networks can use.

    That is one without a graph, for training, of classical machine learning, with inputs or outputs that are not
    tensors of numbers, with sparse or damaged weights, or with a node that reads what nothing computes.
    """
    graph = model.graph
    # An empty file is a valid protobuf message, and so are many files of other formats.
    if model.ir_version and model.functions and not graph.node:
        raise InvalidArgument(
            f"{file} has functions ({model.functions[0].name!r}) and no graph; give the model that calls them"
        )
    if not model.ir_version or not graph.node or not graph.output:
        raise InvalidArgument(f"{file} is not an ONNX model: it has no graph")
    nodes = list(all_nodes(graph))
    for node in nodes:
        _check_node(node, file)
    _check_purpose(model, nodes, file)
    _check_values(graph, file)
    for tensor in _weights(graph):
        _check_weight(tensor, file)
    _check_order(graph, set(), file)


def _check_node(node: onnx.NodeProto, file: Path) -> None:
    """Raises InvalidArgument for names that are not text, and for a loop or a branch without its bodies."""
    for name in (node.op_type, node.domain, node.name, *node.input, *node.output):
        if isinstance(name, bytes):  # protobuf keeps what is not UTF-8
            raise InvalidArgument(f"{file} is damaged: the name {name!r} is not text (UTF-8); export it again")
    given = {attribute.name for attribute in node.attribute if attribute.HasField("g")}
    lacking = [name for name in _BODIES.get((node.domain, node.op_type), ()) if name not in given]
    if lacking:
        raise InvalidArgument(
            f"{file} is damaged: node {_name(node)!r} ({node.op_type}) has no {lacking[0]!r}; export it again"
        )


_BODIES = {("", "If"): ("then_branch", "else_branch"), ("", "Loop"): ("body",), ("", "Scan"): ("body",)}
"""The bodies that an operator must have."""


def _check_purpose(model: onnx.ModelProto, nodes: Iterable[onnx.NodeProto], file: Path) -> None:
    training = next((n for n in nodes if n.domain in TRAINING), None)
    if model.training_info or training is not None:
        raise InvalidArgument(
            f"{file} is for training{_named(training)}; export the network for inference (model.eval() in PyTorch)"
        )
    classic = next((n for n in nodes if n.domain == CLASSIC), None)
    if classic is not None:
        raise InvalidArgument(
            f"{file} is a model of classical machine learning{_named(classic)}, which TVM cannot compile; run it with "
            "ONNX Runtime, or turn it into a network with hummingbird.ml.convert(model, 'torch') and torch.export.save"
        )


def _named(node: onnx.NodeProto | None) -> str:
    return "" if node is None else f" (operator {node.op_type} of {node.domain}, node {_name(node)!r})"


def _name(node: onnx.NodeProto) -> str:
    return str(node.name or next(iter(node.output), node.op_type))


def _check_values(graph: onnx.GraphProto, file: Path) -> None:
    for sparse in graph.sparse_initializer:
        raise InvalidArgument(
            f"{file} keeps the weight {sparse.values.name!r} as a sparse tensor; export it as a dense one"
        )
    for what, values in (("input", graph.input), ("output", graph.output)):
        for value in values:
            kind = value.type.WhichOneof("value")
            if kind not in (None, "tensor_type"):
                more = "; for scikit-learn export with options={'zipmap': False}" if what == "output" else ""
                raise InvalidArgument(
                    f"{file}: {what} {value.name!r} is {_KINDS.get(kind, kind)}, not a tensor; only models whose "
                    f"inputs and outputs are tensors can be used{more}"
                )


def _check_weight(tensor: onnx.TensorProto, file: Path) -> None:
    """Raises InvalidArgument for text, and for a weight that has another number of bytes than its shape claims."""
    if tensor.data_type == onnx.TensorProto.STRING:
        raise InvalidArgument(
            f"{file}: the weight {tensor.name!r} holds text; only numbers and booleans can be used, so export the "
            "model without its text processing"
        )
    if any(d < 0 for d in tensor.dims):
        raise InvalidArgument(f"{file} is damaged: the weight {tensor.name!r} claims the shape {list(tensor.dims)}")
    if tensor.data_location == onnx.TensorProto.EXTERNAL or not tensor.HasField("raw_data"):
        return
    try:
        dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
    except KeyError:
        raise InvalidArgument(
            f"{file} is damaged: the weight {tensor.name!r} has the unknown datatype {tensor.data_type}"
        ) from None
    claimed = math.prod(tensor.dims) * dtype.itemsize
    if dtype.isbuiltin == 1 and claimed != len(tensor.raw_data):
        raise InvalidArgument(
            f"{file} is damaged: the weight {tensor.name!r} claims {claimed:,} bytes ({list(tensor.dims)} of {dtype}) "
            f"and has {len(tensor.raw_data):,}; copy or export it again"
        )


def _check_order(graph: onnx.GraphProto, outer: set[str], file: Path) -> None:
    """Raises InvalidArgument for a node that reads a tensor before it is computed, and for an output that is not."""
    names = [v.name for v in graph.input]
    again = next((name for name in names if names.count(name) > 1), None)
    if again is not None:
        raise InvalidArgument(f"{file} is damaged: it has two inputs {again!r}; export it again")
    own = {*names, *(w.name for w in graph.initializer)}
    known = outer | {""} | {v.name for v in graph.input} | {w.name for w in graph.initializer}
    for node in graph.node:
        missing = next((name for name in node.input if name not in known), None)
        if missing is not None:
            raise InvalidArgument(
                f"{file} is damaged: node {_name(node)!r} ({node.op_type}) reads the tensor {missing!r}, which no node "
                "before it computes; export it again"
            )
        for body in bodies(node):
            _check_order(body, known, file)
        twice = next((name for name in node.output if name and name in own), None)
        if twice is not None:
            raise InvalidArgument(
                f"{file} is damaged: node {_name(node)!r} ({node.op_type}) computes the tensor {twice!r}, which is "
                "there before it; export it again"
            )
        own.update(node.output)
        known.update(node.output)
    missing = next((v.name for v in graph.output if v.name not in known), None)
    if missing is not None:
        raise InvalidArgument(f"{file} is damaged: nothing computes the output {missing!r}; export it again")


def _weights(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    yield from graph.initializer
    for node in all_nodes(graph):
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
