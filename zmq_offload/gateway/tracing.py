"""A fabric that makes a span of each traced request, and passes it on to another. Pure.

The span is the caller's child. Its own children are the broker's: the request goes on with the span's id.
"""

from __future__ import annotations

from collections.abc import Callable

from zmq_offload.errors import OffloadError
from zmq_offload.gateway.calls import Call, Cancel, Ended, Fabric, Outputs
from zmq_offload.gateway.front import Front
from zmq_offload.net.grants import Grant
from zmq_offload.telemetry.traces import context
from zmq_offload.telemetry.traces.spans import NewId, Span

_OK = "OK"
_CANCELED = "CANCELLED"


class TracingFabric(Front):
    """A `zmq_offload.gateway.calls.Fabric` in front of another.

    A caller's `traceparent` decides whether a request is traced. Of the requests without one, the `share` begins a
    trace; for the others the fabric behind this one must say that nobody is to begin one. `put` takes the spans,
    `new_id` makes random ids of so many bytes, and `draw` a number of so many random bits.
    """

    def __init__(
        self,
        fabric: Fabric,
        share: float,
        put: Callable[[Span], None],
        clock: Callable[[], float],
        new_id: Callable[[int], bytes],
        draw: Callable[[int], int],
    ) -> None:
        super().__init__(fabric)
        self._least = context.least_random(share)
        self._put = put
        self._clock = clock
        self._new_id = new_id
        self._draw = draw

    def infer(self, call: Call, grant: Grant, ended: Ended) -> Cancel:
        trace = call.trace
        if trace:
            if not context.sampled(trace):
                return self._fabric.infer(call, grant, ended)
            trace_id, parent = context.trace_id(trace), context.span_id(trace)
        else:
            # Most requests come this way, so it costs as little as can be: the rest of the id is made when it is used.
            random = self._draw(8 * context.RANDOM_BYTES)
            if random < self._least:
                return self._fabric.infer(call, grant, ended)
            rest = self._new_id(context.TRACE_ID_BYTES - context.RANDOM_BYTES)
            trace_id, parent = rest + random.to_bytes(context.RANDOM_BYTES, "big"), b""
        run = _Run(self._put, self._clock, call, trace_id, parent, self._new_id(context.SPAN_ID_BYTES), ended)
        return run.start(self._fabric, grant)


class _Run:
    """A traced request under way."""

    __slots__ = ("_call", "_cancel", "_clock", "_ended", "_id", "_over", "_parent", "_put", "_started", "_trace_id")

    def __init__(
        self,
        put: Callable[[Span], None],
        clock: Callable[[], float],
        call: Call,
        trace_id: bytes,
        parent: bytes,
        number: bytes,
        ended: Ended,
    ) -> None:
        self._put, self._clock, self._ended = put, clock, ended
        self._call, self._trace_id, self._parent, self._id = call, trace_id, parent, number
        self._started = clock()
        self._over = False

    def start(self, fabric: Fabric, grant: Grant) -> Cancel:
        call = self._call._replace(trace=context.joined(self._trace_id, self._id, context.SAMPLED))
        self._cancel = fabric.infer(call, grant, self._finished)
        return self._canceled

    def _finished(self, outcome: Outputs | OffloadError) -> None:
        if isinstance(outcome, OffloadError):
            self._end(outcome.code.value, self._call.version, outcome.message)
        else:
            self._end(_OK, outcome.version, "")
        self._ended(outcome)

    def _canceled(self) -> None:
        self._end(_CANCELED, self._call.version, "canceled by its client")
        self._cancel()

    def _end(self, code: str, version: int | None, error: str) -> None:
        """Make the span, once: an answer that cannot be passed on is followed by an error, and a cancel may be late."""
        if self._over:
            return
        self._over = True
        call = self._call
        attributes: dict[str, str | int] = {
            "zmq_offload.model": call.model,
            "zmq_offload.rows": call.inputs.layout.rows,
            "rpc.system.name": "zmq_offload",
            "rpc.response.status_code": code,
        }
        if version is not None:
            attributes["zmq_offload.version"] = version
        if error:
            attributes["error.type"] = code
        name, end = f"infer {call.model}", self._clock()
        self._put(Span(name, "server", self._trace_id, self._id, self._parent, self._started, end, attributes, error))


def as_it_is(span: Span, _: NewId) -> tuple[Span]:
    """What a process that sends spans makes of one."""
    return (span,)
