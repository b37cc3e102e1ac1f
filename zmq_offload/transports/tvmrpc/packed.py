"""Requests by our function on the server: one round trip each."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, cast

from zmq_offload.errors import Internal, InvalidArgument, NotFound, ProtocolError, from_status
from zmq_offload.protocol import messages, tensors
from zmq_offload.protocol.payload import decode_body, decode_tensors, encode_tensors
from zmq_offload.transports.transport import Attempt, Reply, Request, Served
from zmq_offload.transports.tvmrpc import parcel, wire
from zmq_offload.transports.tvmrpc.session import Session
from zmq_offload.transports.tvmrpc.ways import owned

_REPLIES: frozenset[type[Any]] = frozenset((messages.Result, messages.Error, messages.Answer))


class Packed:
    """The server's own repository, by the function with this number."""

    def __init__(self, session: Session, function: int, most: int) -> None:
        self._session, self._function, self._most = session, function, most

    def infer(self, request: Request, attempt: Attempt) -> Reply:
        """Run a model on the server."""
        envelope = messages.Request(
            parcel.SESSION, 0, request.model, request.version or messages.LATEST, 0, 0, b"", self._most
        )
        message, frames = self._asked([messages.encode(envelope), *encode_tensors(request.inputs)], attempt)
        if not isinstance(message, messages.Result):
            raise ProtocolError(f"the server answers a request with {type(message).__name__}")
        outputs = {name: owned(view, request.outputs, name) for name, view in decode_tensors(frames).items()}
        return Reply(outputs, message.version)

    def served(self, model: str, attempt: Attempt) -> Iterable[Served]:
        """The versions in the server's repository, the latest first."""
        query = messages.encode(messages.Query(parcel.SESSION, 0, "models"))
        message, frames = self._asked([query], attempt)
        if not isinstance(message, messages.Answer):
            raise ProtocolError(f"the server answers a query with {type(message).__name__}")
        try:
            found = [
                Served(int(one["version"]), _specs(one["inputs"]), _specs(one["outputs"]))
                for one in cast("Sequence[Any]", decode_body(frames, "an Answer"))
                if one["name"] == model
            ]
        except (TypeError, KeyError, ValueError, InvalidArgument):
            raise ProtocolError("the TVM RPC server's answer is no list of models") from None
        if not found:
            raise NotFound(f"model {model!r} is not in the repository of the TVM RPC server")
        return sorted(found, key=lambda one: one.version or 0, reverse=True)

    def _asked(self, frames: Sequence[parcel.Frame], attempt: Attempt) -> tuple[Any, list[memoryview]]:
        """Send a message, and return what answers it, with the frames that follow. Raises the server's error."""
        buffers = parcel.pack(frames)
        start = wire.call_with_bytes(self._function, sum(map(len, buffers)))
        [packet] = self._session.call([start, *buffers], attempt)
        answer = wire.decode_bytes(packet)
        if isinstance(answer, wire.Failed):
            raise Internal(f"the function of the TVM RPC server failed: {wire.shown(answer.text)}")
        envelope, *rest = parcel.unpack(answer)
        message = messages.decode(bytes(envelope), _REPLIES)
        if isinstance(message, messages.Error):
            raise from_status(message.code, message.text)
        return message, [memoryview(bytes(rest[0])), *rest[1:]] if rest else []


def _specs(described: Iterable[object]) -> list[tensors.TensorSpec]:
    return [tensors.TensorSpec.from_json(one) for one in described]
