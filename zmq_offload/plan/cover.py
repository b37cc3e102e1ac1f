"""Chooses several cuts that together serve a range of links. Pure."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from zmq_offload.plan.costs import OBJECTIVES, Costs, Network, Objective, Pair, Split

_MOST_SETS = 20_000
"""Up to this many sets of cuts, all are compared. Of more, cuts are chosen one by one: at each step the one that
improves most."""


def cover(
    costs: Costs, splits: Sequence[Split], objective: Objective, links: Sequence[Network], most: int
) -> dict[Pair, list[Split]]:
    """At most so many cuts, in the order of the work on the device, each with the splits (encodings) that are best on
    some link.

    Each link shall be served about as well as by the best of all splits: what counts is the mean, over the links, of
    how many times as long the best of the chosen takes. The device alone, where it is allowed, needs no cut.
    """
    figures = _figures(costs, splits, objective, links)
    least = [min(own[at] for own in figures.values()) for at in range(len(links))]
    alone = figures.pop(costs.local, [math.inf] * len(links))
    best = _worth_comparing(_by_pair(figures, alone))

    def regret(chosen: Iterable[Pair]) -> float:
        taken = [min(times) for times in zip(alone, *(best[pair] for pair in chosen), strict=True)]
        return math.fsum(time / max(bound, 1e-12) for time, bound in zip(taken, least, strict=True))

    many = min(most, len(best))
    if math.comb(len(best), many) <= _MOST_SETS:
        chosen = min(itertools.combinations(best, many), key=regret)
    else:
        chosen = ()
        for _ in range(many):
            chosen = min(((*chosen, pair) for pair in best if pair not in chosen), key=regret)
    return _used(figures, alone, sorted(chosen), range(len(links)))


def _figures(
    costs: Costs, splits: Sequence[Split], objective: Objective, links: Sequence[Network]
) -> dict[Split, list[float]]:
    """The figure of each split on each link."""
    of = OBJECTIVES[objective]
    over = [costs.over(link) for link in links]
    return {split: [of(one.predict(split)) for one in over] for split in splits}


def _by_pair(figures: Mapping[Split, Sequence[float]], alone: Sequence[float]) -> dict[Pair, list[float]]:
    """The figures of each cut with the best of its encodings, or without it where the device alone is better."""
    found: dict[Pair, list[float]] = {}
    for split, times in figures.items():
        pair = split.start, split.end
        found[pair] = [min(own) for own in zip(times, found.get(pair, alone), strict=True)]
    return found


def _worth_comparing(best: Mapping[Pair, list[float]]) -> dict[Pair, list[float]]:
    """The cuts without those that another is as good as on each link."""
    kept: dict[Pair, list[float]] = {}
    table = np.empty((0, 0))
    for pair, times in sorted(best.items(), key=lambda item: (math.fsum(item[1]), item[0])):
        if not kept or not (table <= times).all(axis=1).any():
            kept[pair] = times
            table = np.array(list(kept.values()))
    return kept


def _used(
    figures: Mapping[Split, Sequence[float]], alone: Sequence[float], pairs: Sequence[Pair], links: Iterable[int]
) -> dict[Pair, list[Split]]:
    """The encodings of the chosen cuts that are the best of the chosen on some link."""
    own = [split for split in figures if (split.start, split.end) in pairs]
    used: dict[Pair, list[Split]] = {}
    for at in links if own else ():
        figure, best = min((figures[split][at], split) for split in own)
        if figure < alone[at] and best not in used.setdefault((best.start, best.end), []):
            used[best.start, best.end].append(best)
    return {pair: used[pair] for pair in sorted(used)}
