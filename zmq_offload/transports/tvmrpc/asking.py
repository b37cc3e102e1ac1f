"""Questions to a server that set a model up there, one after the other or several in one round trip."""

from __future__ import annotations

from typing import Any

from zmq_offload.errors import Internal, OffloadError, ProtocolError
from zmq_offload.transports.transport import Attempt
from zmq_offload.transports.tvmrpc import wire
from zmq_offload.transports.tvmrpc.session import Session
from zmq_offload.transports.tvmrpc.values import Handle


class Asking:
    """Asks in one session, in the time of one attempt. `what` is the server, for messages."""

    def __init__(self, session: Session, attempt: Attempt, what: str) -> None:
        self._session, self._attempt, self._what = session, attempt, what

    def values(self, *packets: bytes, failing: type[OffloadError] = Internal) -> list[Any]:
        """What each packet is answered by. An exception on the server is raised as `failing`."""
        if not packets:
            return []
        answers = self._session.call(packets, self._attempt, len(packets))
        values = [wire.decode_reply(answer) for answer in answers]
        for value in values:
            if isinstance(value, wire.Failed):
                raise failing(f"{self._what} refuses: {wire.shown(value.text)}")
        return values

    def value(self, packet: bytes) -> Any:
        """What a packet is answered by."""
        return self.values(packet)[0]

    def number(self, packet: bytes, least: int, most: int) -> int:
        """The number that a packet is answered by."""
        value = self.value(packet)
        if not isinstance(value, int) or not least <= value <= most:
            raise ProtocolError(f"{self._what} answers {value!r:.80} where a number from {least} to {most} is due")
        return value

    def handle(self, packet: bytes) -> Handle:
        """The object that a packet is answered by."""
        found = self.a_handle(self.value(packet))
        if not found.number:
            raise ProtocolError(f"{self._what} has not what a virtual machine of TVM 0.27 has")
        return found

    def a_handle(self, value: object) -> Handle:
        """The value, if it is an object on the server; one with the number 0 is none. Raises ProtocolError."""
        if value is None:
            return Handle(0)
        if not isinstance(value, Handle):
            raise ProtocolError(f"{self._what} answers {value!r:.80} where an object is due")
        return value
