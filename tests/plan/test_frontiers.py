"""Where graphs can be cut at one or several tensors: the search against all that there is."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zmq_offload.plan.frontiers import places
from zmq_offload.plan.mincut import Dag, bits, latest_cut, members


def dag(*values: tuple[tuple[int, ...], int | None, int], results: int | None = None) -> Dag:
    """A graph of (uses, size, work); its last value is the result if `results` does not say others."""
    uses, sizes, work = zip(*values, strict=True)
    return Dag(uses, sizes, work, 1 << len(values) - 1 if results is None else results)


def prefixes(graph: Dag) -> Iterator[int]:
    """Every set of values that has what they need, and all inputs."""
    for done in range(1 << len(graph.uses)):
        if not graph.inputs & ~done and all(not graph.before[v] & ~done for v in members(done)):
            yield done


def nbytes(graph: Dag, done: int) -> float:
    """The bytes of a cut; infinite if a tensor cannot be sent."""
    crossing = list(members(graph.crossing(done)))
    if any(graph.sizes[v] is None or graph.results >> v & 1 for v in crossing):
        return float("inf")
    return sum(graph.sizes[v] or 0 for v in crossing)


@st.composite
def graphs(draw: st.DrawFn) -> Dag:
    values: list[tuple[tuple[int, ...], int | None, int]] = [((), draw(st.integers(1, 9)), 0)]
    for v in range(1, draw(st.integers(3, 8))):
        used = draw(st.sets(st.integers(0, v - 1), min_size=1, max_size=3))
        size = draw(st.one_of(st.integers(1, 9), st.integers(1, 9), st.none()))
        values.append((tuple(sorted(used)), size, draw(st.sampled_from([0, 0, 5, 7]))))
    return dag(*values)


@given(graphs(), st.data())
@settings(max_examples=60)
def test_the_cut_has_the_fewest_bytes_of_all_and_is_the_last_of_them(graph: Dag, data: st.DataObject) -> None:
    done = data.draw(st.sampled_from(list(prefixes(graph))[:-1]))
    later = data.draw(st.sampled_from([bits(iter([v])) for v in range(len(graph.uses)) if not done >> v & 1]))
    later = bits(v for v in range(len(graph.uses)) if graph.before[v] & later)
    possible = [p for p in prefixes(graph) if not done & ~p and not p & later]
    least = min(nbytes(graph, p) for p in possible)
    found = latest_cut(graph, done, later)
    if found is None:
        assert least == float("inf")
        return
    assert nbytes(graph, found) == least
    fewest = min(graph.crossing(p).bit_count() for p in possible if nbytes(graph, p) == least)
    assert graph.crossing(found).bit_count() == fewest
    same = [p for p in possible if nbytes(graph, p) == least and graph.crossing(p).bit_count() == fewest]
    assert all(not p & ~found for p in same)


@given(graphs())
@settings(max_examples=40)
def test_places_are_cuts_of_few_tensors_in_the_order_of_work(graph: Dag) -> None:
    found = places(graph, 2)
    allowed = set(prefixes(graph))
    for place in found:
        assert place.done in allowed
        assert place.tensors == tuple(members(graph.crossing(place.done)))
        assert 1 <= len(place.tensors) <= 2 and place.nbytes == nbytes(graph, place.done)
    assert [p.share for p in found] == sorted({p.share for p in found}, reverse=True)


# x -> a -> b -> c -> d -> y, where d also reads a, and y also reads x: an encoder-decoder with shortcuts.
SHORTCUTS = dag(((), 90, 0), ((0,), 40, 5), ((1,), 10, 5), ((2,), 10, 5), ((3, 1), 40, 5), ((4, 0), 90, 5))


def test_shortcuts_cross_with_the_innermost_tensor() -> None:
    found = {place.tensors for place in places(SHORTCUTS, most_tensors=3)}
    assert found == {(0, 1), (0, 1, 2), (0, 1, 3), (0, 4)}
    assert [place.tensors for place in places(SHORTCUTS, most_tensors=2)] == [(0, 1), (0, 4)]


def test_of_parallel_branches_one_may_be_ahead_of_the_files_order() -> None:
    """The file computes the first branch first; the second one becomes small."""
    branches = dag(
        *(((), 50, 0), ((0,), 50, 5), ((1,), 50, 5)),  # the input, the first branch
        *(((0,), 50, 5), ((3,), 1, 5)),  # the second
        *(((2, 4), 10, 5), ((5,), 10, 5)),
    )
    assert (0, 4) in {place.tensors for place in places(branches, most_tensors=2)}


def test_operators_of_little_work_go_to_the_side_that_sends_less() -> None:
    chain = dag(((), 9, 0), ((0,), 8, 5), ((1,), 2, 0), ((2,), 2, 0), ((3,), 7, 0), ((4,), 9, 5), ((5,), 9, 0))
    assert [(place.tensors, place.share) for place in places(chain)] == [((3,), 0.5), ((5,), 0.0)]


def test_places_that_send_more_than_their_neighbors_give_way_when_there_are_too_many() -> None:
    sizes = [50, *([10, 20] * 20), 9]
    chain = dag(((), 90, 0), *(((at,), size, 5) for at, size in enumerate(sizes)))
    every = places(chain)
    assert len(every) == len(sizes) - 1
    few = places(chain, most_places=12)
    assert len(few) <= 12 and {place.nbytes for place in few} <= {10, 50}


def test_two_tensors_between_two_smaller_places_are_not_compared() -> None:
    """A chain of residual blocks of two products: inside a block two tensors cross."""
    values: list[tuple[tuple[int, ...], int | None, int]] = [((), 10, 0)]
    for _ in range(30):
        at = len(values) - 1
        values += [((at,), 10, 5), ((at + 1,), 10, 5), ((at + 2, at), 10, 0)]
    found = places(dag(*values, ((len(values) - 1,), 10, 5)))
    assert {len(place.tensors) for place in found} == {1}


@pytest.mark.parametrize("size", [None, 4])
def test_what_cannot_be_sent_is_no_place(size: int | None) -> None:
    chain = dag(((), 9, 0), ((0,), size, 5), ((1,), 9, 5))
    assert [place.tensors for place in places(chain)] == ([] if size is None else [(1,)])
    without_work = dag(((), 9, 0), ((0,), size, 0), ((1,), 9, 0))
    assert [place.tensors for place in places(without_work)] == ([] if size is None else [(1,)])
