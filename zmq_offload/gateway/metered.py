"""A fabric that counts what comes of the requests of one protocol, in front of another fabric."""

from __future__ import annotations

from zmq_offload.errors import OffloadError, Status
from zmq_offload.gateway.calls import Call, Cancel, Ended, Fabric, Outputs
from zmq_offload.gateway.front import Front
from zmq_offload.gateway.meters import Answers, Meters
from zmq_offload.net.grants import Grant


class MeteredFabric(Front):
    """A `zmq_offload.gateway.calls.Fabric`."""

    def __init__(self, fabric: Fabric, meters: Meters, protocol: str) -> None:
        super().__init__(fabric)
        self.meters = meters
        self.protocol = protocol
        self._answers: dict[tuple[str, int], Answers] = {}
        """By model and version that answered."""

    def infer(self, call: Call, grant: Grant, ended: Ended) -> Cancel:
        run = _Run(self, call, ended)
        take_back = self._fabric.infer(call, grant, run.ended)
        if not run.over:
            run.take_back = take_back
        return run.cancel

    def answered(self, call: Call, outputs: Outputs) -> None:
        """Count a request."""
        tensors, model, version, timings = outputs
        its = self._answers.get((model, version))
        if its is None:
            its = self._answers[model, version] = self.meters.answers(self.protocol, model, version)
        its.add(timings, call.inputs.layout, tensors.layout)

    def failed(self, call: Call, status: Status) -> None:
        """Count a request without outputs."""
        self.meters.failed(self.protocol, status, call.model, call.version, call.label, call.inputs.layout)


class _Run:
    """A request under way. It does not refer to the request of the other fabric after the end: that refers to it, and
    such cycles would keep tensors until a garbage collection."""

    __slots__ = ("_call", "_ended", "_owner", "over", "take_back")

    take_back: Cancel | None

    def __init__(self, owner: MeteredFabric, call: Call, ended: Ended) -> None:
        self._owner = owner
        self._call = call
        self._ended = ended
        self.over = False

    def ended(self, outcome: Outputs | OffloadError) -> None:
        if not self.over:  # whoever cannot pass an answer on is told of an error after it
            self.over = True
            self.take_back = None
            if isinstance(outcome, Outputs):
                self._owner.answered(self._call, outcome)
            else:
                self._owner.failed(self._call, outcome.code)
        self._ended(outcome)

    def cancel(self) -> None:
        if not self.over:
            self.over = True
            self._owner.failed(self._call, Status.CANCELLED)
            take_back, self.take_back = self.take_back, None
            assert take_back is not None
            take_back()
