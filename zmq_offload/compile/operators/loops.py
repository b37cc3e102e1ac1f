"""Write out loops with a known number of rounds, and branches with a known condition.

A body is copied once for each round. Its tensors get the name of the node and the round before their own. Where only
the run tells when a loop ends, each round chooses between its results and those of the round before.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np
import onnx
from onnx import helper, numpy_helper

from zmq_offload.compile.operators.branches import choice
from zmq_offload.compile.operators.constants import without_weights
from zmq_offload.compile.operators.evaluate import Evaluator
from zmq_offload.compile.operators.nodes import bodies, defined, label_of, opset_of
from zmq_offload.compile.operators.refusal import cannot_import
from zmq_offload.errors import InvalidArgument
from zmq_offload.protocol.payload import Array

MOST_NODES = 4096
"""The most nodes that one loop may become: the time to compile grows with them."""

INSTEAD = "write it with operators that work on whole tensors (LSTM, GRU, CumSum, MatMul), or with fewer rounds"


def unrolled(model: onnx.ModelProto) -> onnx.ModelProto | None:
    """The model with each outer loop and branch written out that can be; None if it has none. The model is changed.

    Inner ones become outer ones, for the next call. Raises InvalidArgument for a loop that cannot be written out, if
    there is nothing else to do.
    """
    if not any(node.op_type in _WRITERS and node.domain in ("", "ai.onnx") for node in model.graph.node):
        return None
    scope = _Scope(model)
    nodes: list[onnx.NodeProto] = []
    refusals: list[InvalidArgument] = []
    changed = False
    for number, node in enumerate(model.graph.node):
        writer = _WRITERS.get(node.op_type) if node.domain in ("", "ai.onnx") else None
        if writer is not None:
            try:
                written = writer(scope, node, f"{node.name or node.op_type}.{number}")
            except InvalidArgument as error:
                refusals.append(error)
                written = None
            if written is not None:
                nodes += written
                changed = True
                continue
        nodes.append(node)
    if not changed:
        if refusals:
            raise refusals[0]
        return None
    fresh = onnx.GraphProto(node=nodes)  # a copy: most of them are the model's own
    del model.graph.node[:], model.graph.value_info[:]
    model.graph.node.extend(fresh.node)
    model.graph.initializer.extend(scope.added)
    return model


class _Scope:
    """The tensors of a graph of which the value or the shape is known, and constants to add to it."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.opset = opset_of(model)
        self.added: list[onnx.TensorProto] = []
        self._weights = {w.name: w for w in model.graph.initializer}
        self._values: dict[str, Array] = {}
        self._evaluate = Evaluator({o.domain or "": o.version for o in model.opset_import})
        for node in model.graph.node:
            if node.op_type == "Constant":
                self.evaluate(node)
        with contextlib.suppress(Exception):  # a model that ONNX cannot check: no shape is known
            model = onnx.shape_inference.infer_shapes(without_weights(model), data_prop=True)
        values = (*model.graph.input, *model.graph.value_info)
        self._shapes = {v.name: v.type.tensor_type.shape for v in values if v.type.tensor_type.HasField("shape")}

    def value(self, name: str) -> Array | None:
        if name in self._weights and name not in self._values:
            self._values[name] = numpy_helper.to_array(self._weights[name])
        return self._values.get(name)

    def extent(self, name: str, axis: int) -> int | None:
        if name in self._weights:
            return int(self._weights[name].dims[axis])
        shape = self._shapes.get(name)
        if shape is None or not -len(shape.dim) <= axis < len(shape.dim):
            return None
        return shape.dim[axis].dim_value or None

    def constant(self, name: str, value: Array) -> str:
        """Add a constant under a name that is new in the graph."""
        self.added.append(numpy_helper.from_array(value, name))
        self._values[name] = value
        return name

    def forget(self, count: int) -> None:
        """Take back all constants that were added after the first `count`."""
        for tensor in self.added[count:]:
            self._values.pop(tensor.name, None)
        del self.added[count:]

    def add(self, tensor: onnx.TensorProto) -> None:
        self.added.append(tensor)
        self._weights[tensor.name] = tensor

    def evaluate(self, node: onnx.NodeProto) -> None:
        """Compute a node whose inputs are known, so that a condition of constants becomes known."""
        inputs = [self.value(name) if name else None for name in node.input]
        if any(value is None for value, name in zip(inputs, node.input, strict=True) if name) or any(bodies(node)):
            return
        results = self._evaluate(node, inputs)
        if results is not None:
            self._values.update(zip((name for name in node.output if name), results, strict=True))


class _Body(NamedTuple):
    """A body, ready to be copied: its graph, all names that it defines, and the nodes that its condition needs."""

    graph: onnx.GraphProto
    defined: frozenset[str]
    needed: frozenset[int]


def _body(graph: onnx.GraphProto, condition: bool = False) -> _Body:
    inputs = [value.name for value in graph.input]
    wanted = {graph.output[0].name} if condition else set()
    needed: set[int] = set()
    # A carried tensor that the condition reads is needed of the round before.
    while condition:
        before = len(needed), len(wanted)
        for index in reversed(range(len(graph.node))):
            if wanted & set(graph.node[index].output):
                needed.add(index)
                wanted |= set(graph.node[index].input)
        wanted |= {graph.output[i - 1].name for i, name in enumerate(inputs) if i >= 2 and name in wanted}
        if before == (len(needed), len(wanted)):
            break
    return _Body(graph, frozenset(defined(graph)), frozenset(needed))


def _copied(
    scope: _Scope, body: _Body, prefix: str, given: Mapping[str, str]
) -> tuple[list[onnx.NodeProto], list[str]]:
    """Copy a body whose inputs are the tensors `given`. Returns its nodes and the names of its outputs."""
    names = {name: f"{prefix}.{name}" for name in body.defined} | dict(given)
    for weight in body.graph.initializer:
        tensor = onnx.TensorProto()
        tensor.CopyFrom(weight)
        tensor.name = names[weight.name]
        scope.add(tensor)
    nodes = []
    for index, node in enumerate(body.graph.node):
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        copy.name = f"{prefix}.{node.name}" if node.name else ""
        _rename(copy, names)
        nodes.append(copy)
        if index in body.needed or node.op_type == "Constant":
            scope.evaluate(copy)
    return nodes, [names.get(value.name, value.name) for value in body.graph.output]


def _rename(node: onnx.NodeProto, names: Mapping[str, str]) -> None:
    node.input[:] = [names.get(name, name) for name in node.input]
    node.output[:] = [names.get(name, name) for name in node.output]
    for inner in bodies(node):
        for value in (*inner.input, *inner.output, *inner.initializer):
            value.name = names.get(value.name, value.name)
        del inner.value_info[:]
        for each in inner.node:
            _rename(each, names)


def _branch(scope: _Scope, node: onnx.NodeProto, prefix: str) -> list[onnx.NodeProto] | None:
    condition = scope.value(node.input[0])
    if condition is None:
        return None  # both branches are computed
    wanted = "then_branch" if condition.reshape(-1)[0] else "else_branch"
    nodes, outputs = _copied(scope, _body(_graph(node, wanted)), prefix, {})
    return nodes + [helper.make_node("Identity", [a], [b]) for a, b in zip(outputs, node.output, strict=True) if b]


def _loop(scope: _Scope, node: onnx.NodeProto, prefix: str) -> list[onnx.NodeProto]:
    def refused(why: str) -> InvalidArgument:
        return cannot_import("Loop", node.domain, label_of(node), why, INSTEAD)

    body = _body(_graph(node, "body"), condition=True)
    count, going = (scope.value(name) if name else None for name in (*node.input[:2], "", "")[:2])
    if node.input[0] and count is None:
        raise refused(f"the number of its rounds, {node.input[0]!r}, is computed when the model runs")
    rounds = None if count is None else int(count.reshape(-1)[0])
    carried = list(node.input[2:])
    kept = any(node.output[len(carried) :])
    # A round after the end is computed, too, and its results are not chosen. That has to be bounded.
    bounded = rounds is not None and rounds * len(body.graph.node) <= MOST_NODES
    if len(node.input) > 1 and node.input[1] and going is None:
        condition = node.input[1]
        if not bounded or kept:
            raise refused(f"its condition {condition!r} is computed when the model runs")
    else:
        condition = scope.constant(f"{prefix}.condition", np.asarray(going is None or bool(going.reshape(-1)[0])))
    mark, nodes, collected, number = len(scope.added), [], list[list[str]](), 0
    while rounds is None or number < rounds:
        open_ended = scope.value(condition) is None
        if not open_ended and not bool(scope.value(condition)):
            break
        here = f"{prefix}.{number}"
        inputs = [scope.constant(f"{here}.round", np.asarray(number, np.int64)), condition, *carried]
        given = dict(zip((value.name for value in body.graph.input), inputs, strict=True))
        copy, outputs = _copied(scope, body, here, given)
        nodes += copy
        results = outputs[1 : 1 + len(carried)]
        if open_ended:
            chosen = [f"{here}.chosen.{index}" for index in range(len(carried))]
            still = f"{here}.still"
            pattern = helper.make_node("If", [condition], chosen, f"{label_of(node)}.{number}")
            nodes += [choice(pattern, results, carried), helper.make_node("And", [condition, outputs[0]], [still])]
            condition, carried = still, chosen
        else:
            condition, carried = outputs[0], results
        collected.append(outputs[1 + len(results) :])
        number += 1
        why = None
        if scope.value(condition) is None and (not bounded or kept):
            why = f"the condition to go on, {body.graph.output[0].name!r}, is computed when the model runs"
        elif len(nodes) > MOST_NODES:
            total = "" if rounds is None else f"{rounds:,} "
            why = f"its {total}rounds of {len(body.graph.node)} nodes are more than {MOST_NODES:,} nodes"
        if why:
            scope.forget(mark)
            raise refused(why)
    if not number and len(node.output) > len(carried):
        raise refused("it has no round, and a result of each round")
    return nodes + _results(scope, node, prefix, carried, collected, [], [])


def _scan(scope: _Scope, node: onnx.NodeProto, prefix: str) -> list[onnx.NodeProto]:
    def refused(why: str) -> InvalidArgument:
        return cannot_import("Scan", node.domain, label_of(node), why, INSTEAD)

    body = _body(_graph(node, "body"))
    read = _integers(node, "num_scan_inputs")[0]
    carried, scanned = list(node.input[:-read]), list(node.input[-read:])
    axes = _integers(node, "scan_input_axes") or [0] * read
    backward = _integers(node, "scan_input_directions") or [0] * read
    rounds = scope.extent(scanned[0], axes[0])
    if rounds is None:
        raise refused(f"the extent of {scanned[0]!r} at axis {axes[0]}, the number of its rounds, is not known")
    if rounds * len(body.graph.node) > MOST_NODES:
        raise refused(f"its {rounds:,} rounds of {len(body.graph.node)} nodes are more than {MOST_NODES:,} nodes")
    nodes, collected = [], list[list[str]]()
    for number in range(rounds):
        here, taken = f"{prefix}.{number}", []
        for i, name in enumerate(scanned):
            place = rounds - 1 - number if backward[i] else number
            index = scope.constant(f"{here}.index.{i}", np.asarray(place, np.int64))
            taken.append(f"{here}.element.{i}")
            nodes.append(helper.make_node("Gather", [name, index], [taken[-1]], axis=axes[i]))
        given = dict(zip((value.name for value in body.graph.input), [*carried, *taken], strict=True))
        copy, outputs = _copied(scope, body, here, given)
        nodes += copy
        carried = outputs[: len(carried)]
        collected.append(outputs[len(carried) :])
    outwards = _integers(node, "scan_output_axes"), _integers(node, "scan_output_directions")
    return nodes + _results(scope, node, prefix, carried, collected, *outwards)


def _results(
    scope: _Scope,
    node: onnx.NodeProto,
    prefix: str,
    carried: list[str],
    collected: list[list[str]],
    axes: list[int],
    backward: list[int],
) -> list[onnx.NodeProto]:
    """The outputs of a loop: the carried tensors after the last round, and those of all rounds along a new axis."""
    nodes = [helper.make_node("Identity", [a], [b]) for a, b in zip(carried, node.output, strict=False) if b]
    for i, output in enumerate(node.output[len(carried) :]):
        if not output:
            continue
        axis, pieces = axes[i] if axes else 0, [names[i] for names in collected]
        wide = [f"{prefix}.{number}.piece.{i}" for number in range(len(pieces))]
        for piece, name in zip(pieces, wide, strict=True):
            nodes.append(_unsqueeze(scope, piece, name, axis))
        order = wide[::-1] if backward and backward[i] else wide
        nodes.append(helper.make_node("Concat", order, [output], axis=axis))
    return nodes


def _unsqueeze(scope: _Scope, name: str, result: str, axis: int) -> onnx.NodeProto:
    if scope.opset < 13:
        return helper.make_node("Unsqueeze", [name], [result], axes=[axis])
    axes = scope.constant(f"{result}.axes", np.asarray([axis], np.int64))
    return helper.make_node("Unsqueeze", [name, axes], [result])


def _graph(node: onnx.NodeProto, name: str) -> onnx.GraphProto:
    return next(attribute.g for attribute in node.attribute if attribute.name == name)


def _integers(node: onnx.NodeProto, name: str) -> list[int]:
    found: Iterable[int] = ()
    for attribute in node.attribute:
        if attribute.name == name:
            found = attribute.ints or [attribute.i]
    return list(found)


_WRITERS = {"If": _branch, "Loop": _loop, "Scan": _scan}
