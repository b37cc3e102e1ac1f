"""Put the nodes of an ONNX graph in an order in which each comes after those that it reads from.

ONNX asks for that order. ONNX Runtime does not, and converters to float16 append their Casts at the end.
"""

from __future__ import annotations

import heapq

import onnx

from zmq_offload.compile.operators.nodes import all_graphs, read_inside


def sort_nodes(graph: onnx.GraphProto) -> None:
    """Sort the nodes of a graph and of its bodies; nodes that are in order keep their places."""
    for inner in all_graphs(graph):
        order = _order(inner)
        if order is not None:
            fresh = onnx.GraphProto(node=[inner.node[i] for i in order])
            del inner.node[:]
            inner.node.extend(fresh.node)


def _order(graph: onnx.GraphProto) -> list[int] | None:
    """The places of the nodes in order; None if they are in order, or if they read from each other in a circle."""
    places = {name: i for i, node in enumerate(graph.node) for name in node.output if name}
    needs = [
        {places[name] for name in (*node.input, *read_inside(node)) if name in places} - {i}
        for i, node in enumerate(graph.node)
    ]
    if all(max(need, default=-1) < i for i, need in enumerate(needs)):
        return None
    readers: list[list[int]] = [[] for _ in needs]
    for i, need in enumerate(needs):
        for place in need:
            readers[place].append(i)
    ready = [i for i, need in enumerate(needs) if not need]
    order: list[int] = []
    while ready:
        order.append(heapq.heappop(ready))
        for i in readers[order[-1]]:
            needs[i].discard(order[-1])
            if not needs[i]:
                heapq.heappush(ready, i)
    return order if len(order) == len(needs) else None
