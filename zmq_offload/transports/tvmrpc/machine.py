"""A virtual machine of TVM's on the server, with memory there for the inputs."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from zmq_offload.errors import Internal, OffloadError, ProtocolError, ResourceExhausted
from zmq_offload.protocol.payload import Array
from zmq_offload.protocol.tensors import ANY, TensorSpec
from zmq_offload.runtime.refusal import refusal
from zmq_offload.transports.transport import Attempt
from zmq_offload.transports.tvmrpc import wire
from zmq_offload.transports.tvmrpc.asking import Asking
from zmq_offload.transports.tvmrpc.session import Session
from zmq_offload.transports.tvmrpc.values import Buffer, Device, Handle, Tensor

_BEGIN, _SET, _RUN, _GET, _COUNT = (
    "vm_initialization",
    "set_input",
    "invoke_stateful",
    "get_output",
    "get_output_arity",
)
METHODS = (_BEGIN, _SET, _RUN, _GET, _COUNT)
"""Functions of a virtual machine, which `RemoteMachine` calls."""

_CPU, _POOLED = 1, 2
_ALIGNMENT = 64
_MOST_OUTPUTS = 1000


class _Room(NamedTuple):
    """Memory on the server, for one input. All requests use it: the server runs one after the other."""

    data: int
    nbytes: int


class RemoteMachine:
    """Runs a function of one library on the server, its `entry`. Threads share it.

    `functions` has the numbers of `METHODS`. Room for inputs whose shapes are known is made at once; that of others
    grows.
    """

    def __init__(
        self,
        session: Session,
        functions: Mapping[str, int],
        inputs: Sequence[TensorSpec],
        entry: str,
        ask: Asking,
    ) -> None:
        self._session, self._functions, self._entry = session, functions, entry
        self._names = [spec.name for spec in inputs]
        self._outputs: int | None = None
        self._lock = threading.Lock()
        ask.value(wire.call(functions[_BEGIN], _CPU, 0, _POOLED))
        sizes = [0 if ANY in spec.shape else spec.nbytes for spec in inputs]
        self._rooms = [_room(ask, size) for size in sizes]

    def run(self, arrays: Sequence[Array], what: str, most: int, attempt: Attempt) -> list[Array]:
        """The results, as views of what was received. Raises ResourceExhausted if one has more than `most` bytes."""
        ask = Asking(self._session, attempt, what)
        given = [
            Tensor(self._roomy(number, array.nbytes, ask).data, array.dtype.newbyteorder("<"), array.shape)
            for number, array in enumerate(arrays)
        ]
        buffers: list[Buffer] = []
        for tensor, array in zip(given, arrays, strict=True):
            buffers.append(wire.copy_to(tensor))
            if array.nbytes:
                buffers.append(array.reshape(-1).view(np.uint8).data)
        calls = [self._call(_SET, self._entry, *given), self._call(_RUN, self._entry)]
        if self._outputs is None:
            # A run shows whether the model gives one array or a tuple. It is not used: another thread's run may follow.
            self._checked(self._session.call([*buffers, *calls], attempt, len(given) + len(calls)), what)
            self._outputs = ask.number(self._call(_COUNT, self._entry), -1, _MOST_OUTPUTS)
        indexes: list[tuple[int, ...]] = [()] if self._outputs < 0 else [(n,) for n in range(self._outputs)]
        calls += [self._call(_GET, self._entry, *index) for index in indexes]
        answers = self._session.call([*buffers, *calls], attempt, len(given) + len(calls), late=_freeing)
        return self._fetched(answers, len(indexes), what, most, attempt)

    def _fetched(
        self, answers: Sequence[memoryview], count: int, what: str, most: int, attempt: Attempt
    ) -> list[Array]:
        """Get the outputs that a run left on the server, and free them there."""
        freeing = _freeing(answers)
        try:
            found = _arrays(self._checked(answers, what)[-count:], what, most)
        except OffloadError:
            if freeing:
                self._session.call(
                    freeing, attempt, len(freeing), late=lambda answers: [] if answers else freeing, first=True
                )
            raise
        packets = [wire.copy_from(tensor) for tensor in found] + freeing
        contents = self._session.call(
            packets, attempt, len(packets), late=lambda answers: [] if answers else freeing, first=True
        )
        results = []
        for tensor, content in zip(found, contents[:count], strict=True):
            data = wire.decode_copied(content, tensor.nbytes)
            if isinstance(data, wire.Failed):
                raise Internal(f"{what}: an output cannot be read: {wire.shown(data.text)}")
            results.append(np.frombuffer(data, np.uint8).view(tensor.dtype).reshape(tensor.shape))
        return results

    def _checked(self, answers: Sequence[memoryview], what: str) -> list[list[Any]]:
        """The values of the answers to a run. Raises its first failure."""
        values = []
        for answer in answers:
            value = wire.decode_return(answer)
            if isinstance(value, wire.Failed):
                refused = refusal(Exception(value.text), self._names)
                raise refused or Internal(f"{what} failed: {wire.shown(value.text)}")
            values.append(value)
        return values

    def _roomy(self, number: int, nbytes: int, ask: Asking) -> _Room:
        """Room for an input of this size. What was too small stays, because requests on their way may use it; each is
        twice the size of the one before it."""
        room = self._rooms[number]
        if nbytes > room.nbytes:
            room = _room(ask, max(nbytes, 2 * room.nbytes))
            with self._lock:
                if room.nbytes > self._rooms[number].nbytes:
                    self._rooms[number] = room
        return room

    def _call(self, method: str, *arguments: Any) -> bytes:
        return wire.call(self._functions[method], *arguments)


def _room(ask: Asking, nbytes: int) -> _Room:
    size = max(nbytes, _ALIGNMENT)
    packet = wire.system_call(wire.ALLOCATE, Device(), size, _ALIGNMENT, np.dtype(np.uint8))
    return _Room(ask.handle(packet).number, size)


def _arrays(values: Sequence[list[Any]], what: str, most: int) -> list[Tensor]:
    """The outputs in the server's memory that answers name."""
    found = []
    for value in values:
        if len(value) != 3 or not isinstance(tensor := value[1], Tensor):
            raise ProtocolError(f"{what} gives an output that is no array")
        if tensor.nbytes > most:
            raise ResourceExhausted(
                f"{what}: an output has {tensor.nbytes} bytes; the client's max_frame_bytes allows {most}"
            )
        found.append(tensor)
    return found


def _freeing(answers: Sequence[memoryview]) -> list[bytes]:
    """The packets that free the arrays which answers name."""
    packets = []
    for answer in answers:
        with contextlib.suppress(ProtocolError):
            value = wire.decode_return(answer)
            if len(value) == 3 and isinstance(value[1], Tensor) and isinstance(value[2], Handle):
                packets.append(wire.system_call(wire.FREE, value[2]))
    return packets
