"""Finds the weights that each part of a model needs, and the cuts at which an input is still raw."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from tvm import ir, relax

from zmq_offload.compile.models.base import Origins
from zmq_offload.plan.costs import Pair
from zmq_offload.plan.cuttable import Cuttable
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


def rules_of(model: Cuttable, origins: Origins, seal: Sequence[str], private: Sequence[str]) -> Rules:
    """The rules for a model. `seal` has names of weights, `private` names of inputs.

    Raises InvalidArgument for an unknown name, with the nearest known ones.
    """
    check_names("--seal", seal, origins.weights, "weight")
    inputs = [spec.name for spec in model.imported.inputs]
    check_names("--private", private, inputs, "input")
    sources = origins.sources
    known = set(sources) | origins.inputs
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
    return Rules(tuple(before), tuple(after), tuple(raw), _sent_raw(model, raw))


def _sent_raw(model: Cuttable, raw: Sequence[frozenset[str]]) -> dict[Pair, frozenset[str]]:
    """The private inputs that are sent raw, for pairs that send less than crosses where they start."""
    found = {}
    for (start, end), crossing in model.crossings.items():
        if raw[start] and crossing.sent != model.points[start]:
            tensors = zip(model.points[start].tensors, model.variables[start], strict=True)
            found[start, end] = raw[start] & _raw(
                model, [var for spec, var in tensors if spec in crossing.sent.tensors]
            )
    return found


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
