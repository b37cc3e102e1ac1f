"""The fewest bytes that separate what a device has computed from what a server shall compute: a minimum cut. Pure.

A value crosses if it is computed on the device and read on the server. Values of much work are given to a side; those
of little work go to the side that makes the fewest bytes cross.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property


@dataclass(frozen=True)
class Dag:
    """Values and how they are computed, in topological order.

    `uses[v]` are the values that v is computed from; the inputs of the model use none. `sizes[v]` is the size of v in
    bytes, None if it cannot be sent. `work[v]` is the work of computing it. `results` are the outputs of the model.
    A set of values is an integer, with bit v for value v.
    """

    uses: tuple[tuple[int, ...], ...]
    sizes: tuple[int | None, ...]
    work: tuple[int, ...]
    results: int

    @cached_property
    def inputs(self) -> int:
        return bits(v for v, used in enumerate(self.uses) if not used)

    @cached_property
    def readers(self) -> tuple[int, ...]:
        """The values that are computed from each value."""
        found = [0] * len(self.uses)
        for v, used in enumerate(self.uses):
            for u in used:
                found[u] |= 1 << v
        return tuple(found)

    @cached_property
    def before(self) -> tuple[int, ...]:
        """Each value, with all that it needs."""
        found: list[int] = []
        for v, used in enumerate(self.uses):
            own = 1 << v
            for u in used:
                own |= found[u]
            found.append(own)
        return tuple(found)

    @cached_property
    def after(self) -> tuple[int, ...]:
        """Each value, with all that needs it."""
        found = [1 << v for v in range(len(self.uses))]
        for v in reversed(range(len(self.uses))):
            for u in self.uses[v]:
                found[u] |= found[v]
        return tuple(found)

    def crossing(self, done: int) -> int:
        """The values of `done` that others read."""
        return bits(v for v in members(done) if self.readers[v] & ~done)


def bits(values: Iterator[int]) -> int:
    found = 0
    for v in values:
        found |= 1 << v
    return found


def members(values: int) -> Iterator[int]:
    """The values of a set, in topological order."""
    while values:
        least = values & -values
        yield least.bit_length() - 1
        values ^= least


def latest_cut(dag: Dag, done: int, later: int) -> int | None:
    """All that the device computes if it computes at least `done` and nothing of `later`, and the fewest bytes cross.

    Both sets are closed: `done` has what its values need, `later` what needs its values. Of equal cuts it is the last
    one, and of those of equal bytes one of the fewest tensors. None if a tensor would have to cross that cannot.
    """
    flow = _Flow(dag, done, later)
    if not flow.saturate():
        return None
    return (1 << len(dag.uses)) - 1 & ~later & ~flow.reaching()


_SOURCE, _SINK = -1, -2


class _Flow:
    """A network whose minimum cut is the cut. Node 2v is value v, node 2v+1 that v is available on the server."""

    def __init__(self, dag: Dag, done: int, later: int) -> None:
        many = len(dag.uses)
        unlimited = 1 + sum(self._price(dag, size) for size in dag.sizes if size is not None)
        self._unlimited = unlimited
        self._free = (1 << many) - 1 & ~done & ~later
        self._edges: dict[int, dict[int, int]] = {_SOURCE: {}, _SINK: {}}
        for v in members(((1 << many) - 1) & ~later):
            readers = dag.readers[v] & ~done
            if not readers:
                continue
            size = dag.sizes[v]
            price = unlimited if size is None or dag.results >> v & 1 else self._price(dag, size)
            self._edge(2 * v if self._free >> v & 1 else _SOURCE, 2 * v + 1, price)
            for reader in members(readers):
                self._edge(2 * v + 1, _SINK if later >> reader & 1 else 2 * reader, unlimited)
                if self._free >> reader & 1 and self._free >> v & 1:
                    self._edge(2 * reader, 2 * v, unlimited)

    @staticmethod
    def _price(dag: Dag, size: int) -> int:
        """Of equal bytes, fewer tensors are better."""
        return size * (len(dag.uses) + 1) + 1

    def _edge(self, start: int, end: int, capacity: int) -> None:
        self._edges.setdefault(start, {})
        self._edges[start][end] = self._edges[start].get(end, 0) + capacity
        self._edges.setdefault(end, {}).setdefault(start, 0)

    def saturate(self) -> bool:
        """Send as much as possible from source to sink, on shortest paths. False if it is unlimited."""
        total = 0
        while (path := self._path()) and total < self._unlimited:
            least = min(self._edges[a][b] for a, b in path)
            for a, b in path:
                self._edges[a][b] -= least
                self._edges[b][a] += least
            total += least
        return total < self._unlimited

    def _path(self) -> list[tuple[int, int]]:
        source: dict[int, int] = {_SOURCE: _SOURCE}
        todo = deque([_SOURCE])
        while todo:
            node = todo.popleft()
            for end, capacity in self._edges[node].items():
                if capacity and end not in source:
                    source[end] = node
                    if end == _SINK:
                        return self._back(source)
                    todo.append(end)
        return []

    @staticmethod
    def _back(source: dict[int, int]) -> list[tuple[int, int]]:
        found, node = [], _SINK
        while node != _SOURCE:
            found.append((source[node], node))
            node = source[node]
        return found

    def reaching(self) -> int:
        """The free values from which the sink can still be reached."""
        found, todo = {_SINK}, [_SINK]
        while todo:
            node = todo.pop()
            for start in self._edges[node]:
                if start not in found and self._edges[start][node]:
                    found.add(start)
                    todo.append(start)
        return bits(node // 2 for node in found if node >= 0 and node % 2 == 0)
