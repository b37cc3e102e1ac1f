"""What a process tells a peer, so that both find out whether they can share memory."""

from __future__ import annotations

import hashlib
import os
import struct
from pathlib import Path

from zmq_offload.net.sharedmemory.arena import Arena
from zmq_offload.net.sharedmemory.layout import COOKIE_BYTES
from zmq_offload.net.sharedmemory.readers import Readers

_HOST_BYTES = 16
_OFFER = struct.Struct(f"<{_HOST_BYTES}sII{COOKIE_BYTES}s")


def _host() -> bytes:
    """The same for all processes of a user that see each other's descriptors. Raises OSError."""
    if os.readlink("/proc/self") != str(os.getpid()):
        raise OSError("/proc is that of other processes")
    boot = Path("/proc/sys/kernel/random/boot_id").read_text()
    spaces = [os.stat(f"/proc/self/ns/{kind}").st_ino for kind in ("pid", "user")]
    return hashlib.sha256(repr((boot, spaces, os.geteuid())).encode()).digest()[:_HOST_BYTES]


def offer_of(arena: Arena) -> bytes:
    """What a peer needs to find out whether it may read this process's memory. Raises OSError."""
    return _OFFER.pack(_host(), os.getpid(), arena.fd, arena.cookie)


def accepts(readers: Readers, own: bytes, offer: bytes) -> bool:
    """Whether this process, which offers `own`, can read the memory of a peer that makes this offer."""
    if len(offer) != _OFFER.size or offer[:_HOST_BYTES] != own[:_HOST_BYTES]:
        return False
    _, pid, fd, cookie = _OFFER.unpack(offer)
    return readers.can_open(pid, fd, cookie)
