"""Steps that need each other's results, in an order in which each can be taken. No TVM in here."""

from __future__ import annotations

import heapq
from collections.abc import Collection, Sequence
from typing import Any


def topological_order(needs: Sequence[Collection[int]], priorities: Sequence[Any]) -> list[int]:
    """The steps' numbers, each behind those that it needs; of those that could be next, the one of lowest priority.

    `needs[i]` are the steps that step i needs, without repetition. Raises ValueError if some need each other in a
    circle.
    """
    missing = [len(needed) for needed in needs]
    followers: list[list[int]] = [[] for _ in needs]
    for i, needed in enumerate(needs):
        for other in needed:
            followers[other].append(i)
    ready = [(priorities[i], i) for i, count in enumerate(missing) if not count]
    heapq.heapify(ready)
    found = []
    while ready:
        _, i = heapq.heappop(ready)
        found.append(i)
        for follower in followers[i]:
            missing[follower] -= 1
            if not missing[follower]:
                heapq.heappush(ready, (priorities[follower], follower))
    if len(found) != len(needs):
        raise ValueError(f"steps need each other: {[i for i, count in enumerate(missing) if count]}")
    return found
