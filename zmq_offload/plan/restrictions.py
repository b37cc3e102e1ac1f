"""Finds the weights that each part of a model needs, and the cuts at which an input is still raw."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterable, Mapping, Sequence

import onnx
from tvm import ir, relax

from zmq_offload.plan.halves import Cuttable
from zmq_offload.plan.rules import Rules, check_names

_MIXING = {
    f"relax.{name}"
    for name in (
        "nn.conv1d", "nn.conv2d", "nn.conv3d", "nn.conv1d_transpose", "nn.conv2d_transpose", "nn.conv3d_transpose",
        "matmul", "einsum", "outer", "nn.attention", "nn.attention_bias", "nn.attention_var_len",
        "nn.adaptive_avg_pool1d", "nn.adaptive_avg_pool2d", "nn.adaptive_avg_pool3d",
        "sum", "mean", "median", "prod", "std", "variance", "argmax", "argmin", "size", "shape_of",
    )
}  # fmt: skip
"""Operators that mix elements. All others (element-wise, layout, normalization, resizing) leave images recognizable."""


def rules_of(model: Cuttable, onnx_model: onnx.ModelProto, seal: Sequence[str], private: Sequence[str]) -> Rules:
    """The rules for a model. `seal` has names of weights, `private` names of inputs.

    Raises InvalidArgument for an unknown name, with the nearest known ones.
    """
    weights = {w.name for w in onnx_model.graph.initializer}
    weights |= {n.output[0] for n in onnx_model.graph.node if n.op_type == "Constant"}
    check_names("--seal", seal, weights, "weight")
    inputs = [spec.name for spec in model.imported.inputs]
    check_names("--private", private, inputs, "input")
    sources = _sources(onnx_model)
    known = set(sources) | {i.name for i in onnx_model.graph.input}
    every = frozenset(seal)
    before, after = [], []
    outputs = model.points[-1]
    for point in model.points:
        names = {t.name for t in point.tensors}
        if names <= known:
            before.append(every & _needed(names, sources))
            after.append(every & _needed({t.name for t in outputs.tensors}, sources, stop=names))
        else:
            # Simplifying the graph made this tensor. Its sources are unknown, so it counts as made from all weights.
            before.append(every)
            after.append(every)
    raw = [frozenset(private) & _raw(model, variables) for variables in model.variables]
    return Rules(tuple(before), tuple(after), tuple(raw))


def _sources(model: onnx.ModelProto) -> Mapping[str, tuple[str, ...]]:
    """For each tensor of the file, the tensors and weights that it is computed from directly."""
    found = {}
    for node in model.graph.node:
        inputs = (*(name for name in node.input if name), *_captured(node))
        # A Constant has no inputs; `_needed` finds it by its own name.
        found.update(dict.fromkeys((o for o in node.output if o), inputs))
    return found


def _captured(node: onnx.NodeProto) -> Iterable[str]:
    """The names that the subgraphs of an If or Loop use, among them all that they take from the outer graph."""
    graphs = [a.g for a in node.attribute if a.type == onnx.AttributeProto.GRAPH]
    for inner in itertools.chain.from_iterable(graph.node for graph in graphs):
        yield from inner.input
        yield from _captured(inner)
    for graph in graphs:
        yield from (o.name for o in graph.output)


def _needed(names: Collection[str], sources: Mapping[str, tuple[str, ...]], stop: Collection[str] = ()) -> set[str]:
    found, todo = set[str](), [name for name in names if name not in stop]
    while todo:
        name = todo.pop()
        if name not in found:
            found.add(name)
            todo += [source for source in sources.get(name, ()) if source not in stop]
    return found


def _raw(model: Cuttable, variables: Sequence[ir.Var]) -> set[str]:
    """The inputs of the model that reach these variables through operators that do not mix elements."""
    graph = model.imported.graph
    values = {b.var: b.value for b in graph.bindings}
    found, seen, todo = set[str](), set[ir.Var](), list(variables)
    while todo:
        var = todo.pop()
        if var in seen:
            continue
        seen.add(var)
        if var in graph.params:
            found.add(graph.name(var))
        elif var in values and not _mixes(values[var]):
            todo += graph.used(var)
    return found


def _mixes(value: relax.Expr) -> bool:
    return isinstance(value, ir.Call) and isinstance(value.op, ir.Op) and str(value.op.name) in _MIXING
