"""A model's graph as stretches between its cuts, for a picture."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass

from tvm import ir, relax

from zmq_offload.byoc.graph import Graph
from zmq_offload.compile.cuts import CutPoint, cut_points, multiply_adds
from zmq_offload.compile.typical import Typical

MOST_STRETCHES = 90
"""Above this, neighbors without a cut between them become one stretch: nobody reads a longer picture."""


@dataclass
class Stretch:
    """Operators in graph order, and the place after them: its bytes, tensors, and the cut there, if it has a name."""

    operators: str
    multiply_adds: int
    nbytes: int
    tensors: int
    cut: str | None


@dataclass
class Stretches:
    """`skips` are pairs of indices: a tensor of the first is read by the second, beyond the next one."""

    stretches: list[Stretch]
    skips: list[tuple[int, int]]


def stretches(graph: Graph) -> Stretches:
    """Divide a graph after each product's group of operators, at the cut of the fewest bytes where there is one."""
    live = graph.from_inputs() & graph.upstream(graph.result_vars())
    bindings = [b for b in graph.bindings if b.var in live]
    typical = Typical(graph)
    ends = _ends(graph, bindings, typical)
    if len(ends) > MOST_STRETCHES:
        ends = {at: point for at, point in ends.items() if point is not None or at == len(bindings) - 1}
    home: dict[ir.Var, int] = {}
    number = 0
    for at, binding in enumerate(bindings):
        home[binding.var] = number
        number += at in ends
    readers: dict[ir.Var, set[int]] = {}
    for binding in bindings:
        for var in graph.used(binding.var):
            if var in home:
                readers.setdefault(var, set()).add(home[binding.var])
    skips = {(home[var], at) for var, places in readers.items() for at in places if at > home[var] + 1}
    found, start = [], 0
    last = {var: max(places) for var, places in readers.items()}
    for order, (end, point) in enumerate(ends.items()):
        group = bindings[start : end + 1]
        crossing = [v for v in home if home[v] <= order and last.get(v, -1) > order]
        work = sum(multiply_adds(b.value, typical) for b in group)
        size, name = (typical.nbytes(crossing), None) if point is None else (point.nbytes, point.name)
        found.append(Stretch(_described(group), work, size, len(crossing), name))
        start = end + 1
    return Stretches(found, sorted(skips))


def _ends(graph: Graph, bindings: list[relax.Binding], typical: Typical) -> dict[int, CutPoint | None]:
    """The last binding of each stretch, by position, with the cut after it."""
    place = {b.var: at for at, b in enumerate(bindings)}
    named: dict[int, CutPoint] = {}
    for point in cut_points(graph):
        var = graph.find(point.name, "--cut")
        if var in place:
            named[place[var]] = point
    ends: dict[int, CutPoint | None] = {}
    products = [at for at, b in enumerate(bindings) if multiply_adds(b.value, typical)]
    # One place between a product and the next: the cut with the fewest bytes, or the last place before the product.
    for at, following in zip([-1, *products], [*products, len(bindings) - 1], strict=True):
        between = range(max(at, 0), following)
        cuts = [p for p in between if p in named]
        if cuts:
            best = min(reversed(cuts), key=lambda p: named[p].nbytes)
            ends[best] = named[best]
        elif at >= 0 and following < len(bindings) - 1:
            ends[following - 1] = None
    ends[len(bindings) - 1] = None
    return dict(sorted(ends.items()))


def _described(bindings: list[relax.Binding]) -> str:
    """The operators of a stretch in the order in which they come first, with their numbers."""
    counts = Counter(_operator(b.value) for b in bindings)
    return ", ".join(name if count == 1 else f"{count} {name}" for name, count in counts.items() if name)


def _operator(value: relax.Expr) -> str:
    if not isinstance(value, ir.Call):
        return ""
    if isinstance(value.op, ir.Op):
        if value.op.name == "relax.call_tir":
            return re.sub(r"\d+$", "", str(value.args[0].name_hint))
        return str(value.op.name.rsplit(".", 1)[-1])
    return str(getattr(value.op, "name_hint", ""))
