"""An If that is decided at run time: both branches are computed before it, and it chooses their results.

So the tensors of branches are as those of other nodes: their shapes are known, and the model can be cut at them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import onnx

Types: TypeAlias = dict[str, onnx.TypeProto]

CHOICE = "zmq_offload.choice"
"""The domain of the node that an If becomes for the importer. Its inputs are the condition and both sides' results."""


def is_branch(node: onnx.NodeProto) -> bool:
    return node.op_type == "If" and node.domain in ("", "ai.onnx")


def both_branches(node: onnx.NodeProto) -> tuple[onnx.GraphProto, onnx.GraphProto]:
    """The branches of an If: where the condition holds, and where not."""
    named = {attribute.name: attribute.g for attribute in node.attribute}
    return named["then_branch"], named["else_branch"]


def is_choice(node: onnx.NodeProto) -> bool:
    """Whether the branches of an If only hand tensors of the model through."""
    return not any(
        body.initializer
        or any(inner.op_type != "Identity" for inner in body.node)
        or [inner.output[0] for inner in body.node] != [output.name for output in body.output]
        or {inner.input[0] for inner in body.node} & {inner.output[0] for inner in body.node}
        for body in both_branches(node)
    )


def choice(node: onnx.NodeProto, yes: Sequence[str], no: Sequence[str]) -> onnx.NodeProto:
    """An If that chooses between tensors of the model."""
    branches = []
    for names in (yes, no):
        passed = [onnx.helper.make_node("Identity", [name], [f"{name}.passed"]) for name in names]
        outputs = [onnx.ValueInfoProto(name=inner.output[0]) for inner in passed]
        branches.append(onnx.helper.make_graph(passed, "branch", [], outputs))
    return onnx.helper.make_node(
        "If", node.input, node.output, node.name, then_branch=branches[0], else_branch=branches[1]
    )


def choice_types(node: onnx.NodeProto, types: Types) -> Types:
    """The types of the results of an If that only chooses, as far as both branches agree."""
    found = {}
    for name, *pair in zip(node.output, *_sources(node), strict=True):
        yes, no = (types.get(source) for source in pair)
        if yes is None or no is None or yes.tensor_type.elem_type != no.tensor_type.elem_type:
            continue
        kind = onnx.TypeProto()
        kind.CopyFrom(yes)
        shapes = [each.tensor_type.shape for each in (kind, no)]
        if not no.tensor_type.HasField("shape") or len(shapes[0].dim) != len(shapes[1].dim):
            kind.tensor_type.ClearField("shape")
        else:
            for mine, other in zip(shapes[0].dim, shapes[1].dim, strict=True):
                if mine != other:
                    mine.Clear()
        found[name] = kind
    return found


def for_importer(graph: onnx.GraphProto) -> None:
    """Turn each If that chooses into one node with the tensors as inputs."""
    for node in graph.node:
        if is_branch(node):
            yes, no = _sources(node)
            del node.attribute[:]
            node.domain, node.op_type = CHOICE, "Choose"
            node.input.extend([*yes, *no])


def _sources(node: onnx.NodeProto) -> list[list[str]]:
    return [[inner.input[0] for inner in body.node] for body in both_branches(node)]
