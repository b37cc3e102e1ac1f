"""Messages in a stream of data: each has a prefix with its length. Pure.

A message that arrives at once is copied once. Of a longer one the memory is reserved when its prefix is here, and data
is copied into it or, by who receives it, put there directly.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import NamedTuple

from zmq_offload.errors import InvalidArgument, ResourceExhausted
from zmq_offload.gateway.calls import Buffer, Memory, own_memory

_PREFIX = struct.Struct(">BI")
PREFIX_BYTES = _PREFIX.size


class Message(NamedTuple):
    """A message as it traveled."""

    compressed: int
    data: Buffer


class Assembler:
    """Makes messages of the data of one stream."""

    __slots__ = ("_compressed", "_compressible", "_filled", "_largest", "_memory", "_new", "_prefix")

    def __init__(self, largest: int, compressible: bool = True, memory: Memory = own_memory) -> None:
        self._new = memory
        self._largest = largest
        self._compressible = compressible
        self._prefix = b""
        self._memory: memoryview | None = None
        self._filled = self._compressed = 0

    @property
    def partial(self) -> bool:
        """Whether a message has begun and is not whole."""
        return bool(self._prefix) or self._memory is not None

    @property
    def missing(self) -> int:
        """How many bytes the message lacks that has begun."""
        return 0 if self._memory is None else len(self._memory) - self._filled

    def memory(self) -> memoryview | None:
        """Where the bytes belong that the message lacks, if its length is known."""
        return None if self._memory is None else self._memory[self._filled :]

    def filled(self, size: int) -> Message | None:
        """Bytes were put into `memory`. Returns the message if it is whole."""
        assert self._memory is not None
        self._filled += size
        if self._filled < len(self._memory):
            return None
        message = Message(self._compressed, self._memory)
        self._memory = None
        return message

    def feed(self, data: Buffer) -> list[Message]:
        """Take data. Raises ResourceExhausted for a message that is too long, before its memory is reserved."""
        messages = []
        position, end = 0, len(data)
        while position < end:
            if self._memory is None:
                stop = position + _PREFIX.size - len(self._prefix)
                if stop > end:
                    self._prefix += data[position:]
                    break
                self._compressed, size = _PREFIX.unpack(self._prefix + data[position:stop])
                self._prefix = b""
                self._check(size)
                position = stop + size
                if position <= end:
                    messages.append(Message(self._compressed, bytes(data[stop:position])))
                    continue
                self._memory, self._filled = self._new(size), 0
                position = stop
            rest = data[position : position + self.missing]
            position += len(rest)
            self._memory[self._filled : self._filled + len(rest)] = rest
            if message := self.filled(len(rest)):
                messages.append(message)
        return messages

    def _check(self, size: int) -> None:
        if self._compressed > 1:
            raise InvalidArgument(f"a message begins with {self._compressed}; 0 or 1 says whether it is compressed")
        if self._compressed and not self._compressible:
            raise InvalidArgument("a message is compressed; without a credential, send it as it is")
        if size > self._largest:
            raise ResourceExhausted(f"a message has {size} bytes; at most {self._largest} are taken")


def prefixed(parts: Sequence[Buffer], compressed: bool = False) -> list[Buffer]:
    """A message with its prefix."""
    return [_PREFIX.pack(compressed, size_of(parts)), *parts]


def size_of(parts: Sequence[Buffer]) -> int:
    """The bytes of a message. The items of a view may be larger than a byte."""
    return sum([part.nbytes if isinstance(part, memoryview) else len(part) for part in parts])
