"""What the tensors of a model give away: which weights a part needs, and where an input can still be had back."""

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
"""What makes one number of many. All else leaves a picture a picture: it moves, scales or bends each number by itself,
as a normalization or an activation does, or makes the picture smaller."""


def rules_of(model: Cuttable, onnx_model: onnx.ModelProto, seal: Sequence[str], private: Sequence[str]) -> Rules:
    """The rules for a model by the names of weights and inputs.

    Raises InvalidArgument for a name that the file does not have, with the nearest that it has.
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
            # A tensor that simplifying made: what went into it cannot be told, so it is held to have everything.
            before.append(every)
            after.append(every)
    raw = [frozenset(private) & _raw(model, variables) for variables in model.variables]
    return Rules(tuple(before), tuple(after), tuple(raw))


def _sources(model: onnx.ModelProto) -> Mapping[str, tuple[str, ...]]:
    """For each tensor of the file the tensors that it is computed from directly, weights included."""
    found = {}
    for node in model.graph.node:
        inputs = (*(name for name in node.input if name), *_captured(node))
        # A Constant is a weight without an input: it is its own source.
        found.update(dict.fromkeys((o for o in node.output if o), inputs))
    return found


def _captured(node: onnx.NodeProto) -> Iterable[str]:
    """What the subgraphs of an If or Loop take from around them, by name; more than that does no harm."""
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
    """The inputs of the model that these variables are, or are but for what mixes nothing."""
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
