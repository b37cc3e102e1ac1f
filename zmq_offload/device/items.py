"""The requests of items that an adaptive bundle computes: how long they may take, and what the time went to."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Mapping, Sequence

from zmq_offload.artifacts.manifest import OffloadedRegion
from zmq_offload.client.prepared import Prepared
from zmq_offload.client.results import Outputs
from zmq_offload.device.controller import Sample
from zmq_offload.device.offload import Offload
from zmq_offload.device.regioncall import RegionCall, RegionRequest
from zmq_offload.device.remote import InferenceClient, Reply
from zmq_offload.device.turns import Turns
from zmq_offload.protocol.payload import Array

_clock = time.monotonic


class Item:
    """One attempt to compute an item by a split. The `Judge` of its request."""

    __slots__ = ("_began", "_compute", "_queue", "_sent", "_total", "patience")

    falls_back = False

    def __init__(self, patience: float | None) -> None:
        self.patience = patience
        self._began = self._sent = _clock()
        self._total = math.nan
        self._queue = self._compute = 0.0

    def sends(self) -> None:
        """The request is sent now."""
        self._sent = _clock()

    def replied(self, reply: Reply, seconds: float) -> None:
        """The reply was there after so many seconds, or as many as it says itself: the item may have had other work."""
        self._total = seconds
        timings = getattr(reply, "timings", None)
        if timings is not None:
            self._total = min(seconds, timings.total)
            if timings.compute == timings.compute:  # other servers than brokers tell NaN
                self._queue, self._compute = timings.queue, timings.compute

    def ended(self, error: BaseException | None, seconds: float, reply: Reply | None) -> None:
        if error is None and reply is not None:
            self.replied(reply, seconds)

    def abandoned(self) -> None:
        """Nothing: who runs the item sees its error."""

    def computed(self, as_decided: bool, seconds: float) -> None:
        """Nothing: its region has no fallback."""

    def waited(self) -> float:
        """Seconds since the request was sent."""
        return _clock() - self._sent

    def sample(self, now: float) -> Sample:
        """What the time went to of a run that a worker served and that ends now."""
        device, rest = self._sent - self._began, now - self._sent - self._total
        return Sample(device, self._total, self._queue, self._compute, max(0.0, rest))


class _Current(threading.local):
    item: Item


class Requests(Offload):
    """The client of an adaptive bundle's regions. Each request is that of the calling thread's `item`."""

    def __init__(self, client: InferenceClient, regions: Sequence[OffloadedRegion], turns: Turns) -> None:
        super().__init__(client, regions, {}, turns)
        self.current = _Current()

    def ask(self, call: Prepared, inputs: Mapping[str, Array]) -> Outputs:
        item = self.current.item
        item.sends()
        reply = call.infer(inputs, item.patience)
        item.replied(reply, item.waited())
        return reply

    def count(self, how: str) -> None:
        """Nothing: items are counted, not requests."""

    def _call(self, request: RegionRequest) -> RegionCall:
        item = self.current.item
        item.sends()
        return RegionCall(self, request, True, item)
