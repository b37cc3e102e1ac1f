"""A fabric that counts what comes of the requests of one protocol, in front of another fabric."""

from __future__ import annotations

import time
from collections.abc import Callable

from zmq_offload.errors import OffloadError, Status
from zmq_offload.gateway.calls import Call, Cancel, Ended, Fabric, Outputs
from zmq_offload.gateway.front import Front
from zmq_offload.gateway.meters import Meters
from zmq_offload.net.grants import Grant


class MeteredFabric(Front):
    """A `zmq_offload.gateway.calls.Fabric`. `clock` is in seconds."""

    def __init__(
        self, fabric: Fabric, meters: Meters, protocol: str, clock: Callable[[], float] = time.monotonic
    ) -> None:
        super().__init__(fabric)
        self.meters = meters
        self.protocol = protocol
        self.clock = clock

    def infer(self, call: Call, grant: Grant, ended: Ended) -> Cancel:
        run = _Run(self, call, ended)
        take_back = self._fabric.infer(call, grant, run.ended)
        if not run.over:
            run.take_back = take_back
        return run.cancel


class _Run:
    """A request under way. It does not refer to the request of the other fabric after the end: that refers to it, and
    such cycles would keep tensors until a garbage collection."""

    __slots__ = ("_call", "_ended", "_owner", "_started", "over", "take_back")

    def __init__(self, owner: MeteredFabric, call: Call, ended: Ended) -> None:
        self._owner = owner
        self._call = call
        self._ended = ended
        self._started = owner.clock()
        self.over = False
        self.take_back: Cancel | None = None

    def ended(self, outcome: Outputs | OffloadError) -> None:
        if not self.over:  # whoever cannot pass an answer on is told of an error after it
            self.over = True
            self.take_back = None
            owner = self._owner
            if isinstance(outcome, OffloadError):
                self._fail(outcome.code)
            else:
                tensors, model, version, (queue, compute, _, _) = outcome
                owner.meters.succeeded(
                    owner.protocol,
                    model,
                    version,
                    (owner.clock() - self._started, queue, compute),
                    self._call.inputs.layout,
                    tensors.layout,
                )
        self._ended(outcome)

    def cancel(self) -> None:
        if not self.over:
            self.over = True
            self._fail(Status.CANCELLED)
            take_back, self.take_back = self.take_back, None
            assert take_back is not None
            take_back()

    def _fail(self, status: Status) -> None:
        call, owner = self._call, self._owner
        owner.meters.failed(owner.protocol, status, call.model, call.version, call.label, call.inputs.layout)
