"""What an end of a connection offers in its READY, and why two ends do not share memory. Pure."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import NamedTuple

from zmq_offload.net.pieces import PROPERTY as OF_THIS_PROJECT
from zmq_offload.net.sharedmemory.layout import COOKIE_BYTES

PROPERTY = b"X-Zmq-Offload-Host"
"""The property of READY by which peers offer to share."""

HOST_BYTES = 16
_OFFER = struct.Struct(f"<{HOST_BYTES}sII{COOKIE_BYTES}s")

KEYS = "keys"
ANOTHER_HOST = "another host"
ANOTHER_USER = "another user"
ANOTHER_USER_OR_CONTAINER = "another user or container"
ANOTHER_PROGRAM = "another program"
SWITCHED_OFF = "switched off"
NOT_HERE = "not possible here"
UNREADABLE = "cannot be opened"


class Offered(NamedTuple):
    """An arena that its owner lets others read. `host` is the same for processes that can open each other's memory."""

    host: bytes
    pid: int
    fd: int
    cookie: bytes

    @property
    def arena(self) -> tuple[int, int, bytes]:
        """Process id, descriptor and cookie."""
        return self.pid, self.fd, self.cookie

    def packed(self) -> bytes:
        """The value of the property."""
        return _OFFER.pack(*self)


def read_offer(value: bytes) -> Offered | None:
    """The offer that a property has. None if it has none."""
    return Offered(*_OFFER.unpack(value)) if len(value) == _OFFER.size else None


def offered(told: Mapping[bytes, bytes]) -> Offered | None:
    """The offer of a peer that told these properties, by name in lower case."""
    return read_offer(told.get(PROPERTY.lower(), b""))


def why_not(own: Offered | None, told: Mapping[bytes, bytes], *, is_near: bool, same_user: bool | None) -> str:
    """Why a peer that told these properties does not share memory with this process, which offers `own`.

    `is_near`: it has an address of this machine. `same_user`: whether it is of this user; None if that is not known.
    """
    if not is_near:
        return ANOTHER_HOST
    if own is None:
        return NOT_HERE
    if same_user is False:
        return ANOTHER_USER
    theirs = offered(told)
    if theirs is None:
        return SWITCHED_OFF if OF_THIS_PROJECT.lower() in told else ANOTHER_PROGRAM
    return UNREADABLE if theirs.host == own.host else ANOTHER_USER_OR_CONTAINER
