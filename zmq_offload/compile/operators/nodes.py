"""The nodes, the bodies and the opset of an ONNX model."""

from __future__ import annotations

from collections.abc import Iterator

import onnx


def opset_of(model: onnx.ModelProto) -> int:
    """The version of ONNX's own operators that a model uses."""
    return next((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), 1)


def label_of(node: onnx.NodeProto) -> str:
    """The name of a node; that of its first result if it has none."""
    return str(node.name or node.output[0])


def bodies(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    """The bodies of a loop or a branch; none for other nodes."""
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs


def all_graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """A graph, and the bodies of its loops and branches, inner ones included."""
    yield graph
    for node in graph.node:
        for body in bodies(node):
            yield from all_graphs(body)


def all_nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """The nodes of a graph, each followed by those of its bodies."""
    for node in graph.node:
        yield node
        for body in bodies(node):
            yield from all_nodes(body)


def read_inside(node: onnx.NodeProto) -> Iterator[str]:
    """The tensors that the bodies of a node read, their own included."""
    for body in bodies(node):
        for graph in all_graphs(body):
            yield from (output.name for output in graph.output)
            for inner in graph.node:
                yield from (name for name in inner.input if name)


def defined(graph: onnx.GraphProto) -> Iterator[str]:
    """The tensors that a graph defines, those of its bodies included."""
    for inner in all_graphs(graph):
        yield from (value.name for value in (*inner.input, *inner.initializer))
        for node in inner.node:
            yield from (name for name in node.output if name)
