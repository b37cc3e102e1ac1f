"""Order steps that need each other's results. (This module does not import TVM.)"""

from __future__ import annotations

import heapq
from collections.abc import Collection, Sequence


def topological_order(needs: Sequence[Collection[int]], priorities: Sequence[int]) -> list[int]:
    """Return the numbers of the steps in topological order; of the steps that are ready, the lowest priority is next.

    `needs[i]` are the steps that step i needs, without repetition. Steps of equal priority keep their order. This is
    Kahn's algorithm with a heap. Raises ValueError if steps need each other in a cycle.
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
        raise ValueError(f"steps need each other in a cycle: {[i for i, count in enumerate(missing) if count]}")
    return found
