"""A model with the places where it can be cut, found in its graph."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tvm import ir, relax

from zmq_offload.byoc.carried import constant_bytes, tensor_bytes
from zmq_offload.byoc.codegen import tensor_spec
from zmq_offload.byoc.graph import Graph
from zmq_offload.compile.cuts import multiply_adds
from zmq_offload.compile.onnx.importer import Imported
from zmq_offload.compile.typical import Typical
from zmq_offload.errors import InvalidArgument
from zmq_offload.plan.costs import Crossing, CutPoint, Pair
from zmq_offload.plan.frontiers import MOST_PLACES, MOST_TENSORS, places
from zmq_offload.plan.mincut import Dag, bits, members
from zmq_offload.protocol.tensors import ANY

_FEWEST = 12
"""So many places are compared of the largest models."""

_WEIGHTS = 3_000_000_000
"""About the most bytes of weights that are compiled for all places together."""


@dataclass(frozen=True)
class Cuttable:
    """A model with its points; `variables` has the variables that cross at each point, and `computed` the outputs of
    the model that are computed before it. `crossings` has what crosses for each pair of points that a split can
    have."""

    imported: Imported
    points: tuple[CutPoint, ...]
    variables: tuple[tuple[ir.Var, ...], ...]
    computed: tuple[tuple[ir.Var, ...], ...]
    crossings: dict[Pair, Crossing]


def cuttable(imported: Imported, most_tensors: int = MOST_TENSORS) -> Cuttable:
    """Find the points of a model, of at most so many tensors each.

    Of cuts without a convolution or matrix product between them, only the one with the fewest bytes counts, or the last
    of equal ones. The operators between them take little time, and a cut there would prevent their fusion.

    Raises InvalidArgument for a model with symbolic dimensions, which cannot run.
    """
    graph = imported.graph
    for spec in imported.inputs:
        if ANY in spec.shape:
            raise InvalidArgument(f"input {spec} has symbolic dimensions; give numbers with --input {spec.name}=...")
    results = list(dict.fromkeys(graph.result_vars()))
    for var in results:
        if var in graph.params:
            raise InvalidArgument(
                f"output {graph.name(var)!r} is an input of the model; a plan needs outputs that are computed"
            )
    values = _values(graph)
    dag = _dag(graph, values)
    every = (1 << len(values)) - 1
    compared = places(dag, most_tensors, most_places(sum(constant_bytes(step.value) for step in graph.steps)))
    done = [dag.inputs, *(place.done for place in compared), every]
    variables = [tuple(values[v] for v in members(dag.crossing(at))) for at in done[:-1]]
    computed = [tuple(var for var in results if at >> values.index(var) & 1) for at in done]
    points = tuple(map(_point, [graph] * len(done), [*variables, results]))
    crossings = {
        (start, end): _crossing(graph, values, dag, done[start], done[end])
        for start in range(len(done))
        for end in range(start + 1, len(done))
        if not done[start] & ~done[end] and _works(dag, done[end] & ~done[start])
    }
    return Cuttable(imported, points, (*variables, tuple(results)), tuple(computed), crossings)


def most_places(weights: int) -> int:
    """How many places to compare for a model of so many bytes of weights.

    The parts around each place are compiled with all of their weights, so a large model takes minutes for each.
    """
    return min(MOST_PLACES, max(_FEWEST, _WEIGHTS // max(1, weights)))


def _works(dag: Dag, region: int) -> bool:
    """Whether the server would have work, where the model has any."""
    return not any(dag.work) or any(dag.work[v] for v in members(region))


def _values(graph: Graph) -> list[ir.Var]:
    """What varies and is needed: inputs first, then in the graph's order."""
    live = graph.from_inputs() & graph.upstream(graph.result_vars())
    return [v for v in (*graph.params, *(step.var for step in graph.steps)) if v in live]


def _dag(graph: Graph, values: Sequence[ir.Var]) -> Dag:
    place = {var: v for v, var in enumerate(values)}
    typical = Typical(graph)
    work = {step.var: multiply_adds(step.value, typical) for step in graph.steps}
    return Dag(
        tuple(tuple(dict.fromkeys(place[u] for u in graph.used(var) if u in place)) for var in values),
        tuple(tensor_bytes([var]) if _sendable(graph, var) else None for var in values),
        tuple(work.get(var, 0) for var in values),
        bits(place[var] for var in graph.result_vars() if var in place),
    )


def _sendable(graph: Graph, var: ir.Var) -> bool:
    if not graph.named(var) or not isinstance(var.ty, relax.TensorType) or var.ty.shape is None:
        return False
    try:
        tensor_spec(graph.name(var), var.ty)
    except InvalidArgument:  # a datatype that messages do not support
        return False
    return True


def _point(graph: Graph, variables: Sequence[ir.Var]) -> CutPoint:
    return CutPoint(tuple(tensor_spec(graph.name(v), v.ty) for v in variables))


def _crossing(graph: Graph, values: Sequence[ir.Var], dag: Dag, start: int, end: int) -> Crossing:
    """What is sent and what comes back if the server computes what is in `end` and not in `start`. What it does not
    need stays on the device."""
    region = end & ~start
    sent = [values[v] for v in members(start) if dag.readers[v] & region]
    received = [values[v] for v in members(region) if dag.readers[v] & ~end or dag.results >> v & 1]
    return Crossing(_point(graph, sent), _point(graph, received))
