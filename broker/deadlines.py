"""When the time of requests is up. Pure.

Nearly all requests end long before their deadlines. So a request has no timer of its own until its deadline is near: it
costs a comparison when it comes, and nothing when it ends.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from broker.state import PendingRequest
from zmq_offload.net.timers import Timers
from zmq_offload.protocol.messages import Key

NEAR = 1.0
"""Seconds before its deadline from which a request has a timer, and between two looks at all requests, at least."""


class Deadlines:
    """The deadlines of `requests`, those that are near as `timers`."""

    def __init__(self, requests: Mapping[Key, PendingRequest], timers: Timers[Any]) -> None:
        self._requests, self._timers = requests, timers
        self._near = -math.inf  # requests with deadlines up to this have timers
        self.first = math.inf
        """No request without a timer has an earlier deadline."""

    def add(self, request: PendingRequest) -> None:
        """Care for a new request. There is no need to if its deadline is not before `first`."""
        if request.deadline <= self._near:
            self.set(request, request.deadline)
        else:
            self.first = min(self.first, request.deadline)

    def set(self, request: PendingRequest, at: float) -> None:
        """Give a request a timer, in place of the one that it had."""
        request.is_timed = True
        self._timers.set(request.key, at)

    def look(self, now: float) -> None:
        """The time `first` has come: give timers to the requests whose deadlines are near."""
        self._near, self.first = now + NEAR, math.inf
        for request in self._requests.values():
            if request.key not in self._timers:
                self.add(request)
