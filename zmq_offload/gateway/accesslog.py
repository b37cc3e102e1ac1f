"""A fabric that tells the access log of each request, and passes it on to another. Pure."""

from __future__ import annotations

from collections.abc import Callable

from zmq_offload.common.accesslog import OK, Access, AccessLog
from zmq_offload.errors import OffloadError
from zmq_offload.gateway.calls import Call, Cancel, Ended, Fabric, Outputs
from zmq_offload.gateway.front import Front
from zmq_offload.net.grants import Grant
from zmq_offload.telemetry.traces import context

_CANCELED = "CANCELLED"


class LoggingFabric(Front):
    """A `zmq_offload.gateway.calls.Fabric` in front of another. `write` is called after requests for `access`."""

    def __init__(
        self, fabric: Fabric, access: AccessLog, write: Callable[[AccessLog], None], clock: Callable[[], float]
    ) -> None:
        super().__init__(fabric)
        self._access = access
        self._write = write
        self._clock = clock

    def infer(self, call: Call, grant: Grant, ended: Ended) -> Cancel:
        started, over = self._clock(), False

        def log(status: str, outputs: Outputs | None) -> None:
            """Once: an answer that cannot be passed on is followed by an error, and a cancel may be late."""
            nonlocal over
            if over:
                return
            over = True
            now = self._clock()
            self._access.add(_access(call, grant, status, outputs, now - started), now)
            if self._access:
                self._write(self._access)

        def finished(outcome: Outputs | OffloadError) -> None:
            if isinstance(outcome, OffloadError):
                log(outcome.code.value, None)
            else:
                log(OK, outcome)
            ended(outcome)

        cancel = self._fabric.infer(call, grant, finished)

        def canceled() -> None:
            log(_CANCELED, None)
            cancel()

        return canceled


def _access(call: Call, grant: Grant, status: str, outputs: Outputs | None, total: float) -> Access:
    return Access(
        request=call.id or None,
        model=call.model,
        version=call.version if outputs is None else outputs.version,
        status=status,
        total=total,
        queue=None if outputs is None else outputs.timings.queue,
        compute=None if outputs is None else outputs.timings.compute,
        client=call.caller or grant.name or None,
        bytes_in=sum(call.inputs.layout.sizes),
        bytes_out=None if outputs is None else sum(outputs.tensors.layout.sizes),
        trace=context.trace_id(call.trace).hex() if call.trace else None,
    )
