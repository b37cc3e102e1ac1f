"""Finds the places where a model can be cut at one or several tensors. Pure.

A place is a set of operators that the device runs, with all that they need. A model of parallel branches has very many.
So the search goes by the number of *products* (operators of work, such as convolutions) that are done, and goes on from
the few places of each number that send the fewest bytes. The order of the file's operators is always among them.
Between the products, `mincut` finds the fewest bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from zmq_offload.plan.mincut import Dag, bits, latest_cut, members

MOST_TENSORS = 4
"""The most tensors that cross at a place."""

MOST_PLACES = 96
"""The most places that are compared. Each costs a compilation of two parts and some runs of them."""

_AROUND = 0.05
"""A place between two that send less is not worth comparing if they are this near, by the share of work."""

_WIDTH = 6
"""From how many places of each number of products the search goes on."""


class Place(NamedTuple):
    """A place to cut: the values that are computed, those that cross, their bytes, and the share of work behind it."""

    done: int
    tensors: tuple[int, ...]
    nbytes: int
    share: float


def places(dag: Dag, most_tensors: int = MOST_TENSORS, most_places: int = MOST_PLACES) -> list[Place]:
    """The places that are worth comparing, in the order of the work before them. Inputs and outputs are not among
    them."""
    found = _search(dag, most_tensors)
    inputs = tuple(members(dag.crossing(dag.inputs)))
    found.append(Place(dag.inputs, inputs, sum(dag.sizes[v] or 0 for v in inputs), 1.0))
    near = 0.0
    while len(kept := _kept(found, near)) > most_places:
        near = 2 * near or 1e-3
    return [place for place in kept if place.tensors != inputs]


def _search(dag: Dag, most_tensors: int) -> list[Place]:
    products = [v for v, work in enumerate(dag.work) if work]
    every = bits(iter(products))
    needs = {p: dag.before[p] & every & ~(1 << p) for p in products}
    found: list[Place] = []
    level, prefix = {0}, 0
    for number in range(len(products) + 1):
        ranked = []
        for state in sorted(level):
            place = _place(dag, state, every)
            if place is None:
                ranked.append((float("inf"), 0, state))
                continue
            ranked.append((place.nbytes, len(place.tensors), state))
            if 0 < len(place.tensors) <= most_tensors:
                found.append(place)
        if number < len(products):
            going = {state for *_, state in sorted(ranked)[:_WIDTH]} | {prefix}
            level = {s | 1 << p for s in going for p in products if not s >> p & 1 and not needs[p] & ~s}
            prefix |= 1 << products[number]
    return found


def _place(dag: Dag, state: int, products: int) -> Place | None:
    """The place of the fewest bytes at which these products are done. None if nothing separates them."""
    done, later = dag.inputs, 0
    for p in members(state):
        done |= dag.before[p]
    for p in members(products & ~state):
        later |= dag.after[p]
    if state == products:
        # Something is left to compute: what follows the last product.
        follow = dag.after[state.bit_length() - 1] if state else ~0
        later |= dag.results & follow & ~done
    whole = None if done & later else latest_cut(dag, done, later)
    if whole is None:
        return None
    tensors = tuple(members(dag.crossing(whole)))
    total = sum(dag.work)
    left = sum(dag.work[p] for p in members(products & ~state))
    return Place(whole, tensors, sum(dag.sizes[v] or 0 for v in tensors), left / total if total else 0.0)


def _least(found: Sequence[Place]) -> list[Place]:
    """Of places of equal work the one of the fewest bytes, most work behind it first."""
    best: dict[float, Place] = {}
    for place in found:
        known = best.get(place.share)
        if known is None or (place.nbytes, len(place.tensors)) < (known.nbytes, len(known.tensors)):
            best[place.share] = place
    return sorted(best.values(), key=lambda place: (-place.share, place.done))


def _kept(found: Sequence[Place], near: float) -> list[Place]:
    """The places that send less than those `near` them, by the share of work; of several tensors only those that send
    less than the places around them. A cut at one tensor is better than one at several of the same bytes."""
    kept: list[Place] = []
    for place in sorted(_least(found), key=lambda p: (p.nbytes, len(p.tensors), p.share)):
        if not any(abs(place.share - other.share) <= near for other in kept) and not _between(place, kept):
            kept.append(place)
    return sorted(kept, key=lambda place: (-place.share, place.done))


def _between(place: Place, smaller: Sequence[Place]) -> bool:
    """Whether there are smaller places closely before and behind one at several tensors."""
    if len(place.tensors) == 1:
        return False
    around = [other.share - place.share for other in smaller if abs(other.share - place.share) <= _AROUND]
    return bool(around) and min(around) < 0 < max(around)
