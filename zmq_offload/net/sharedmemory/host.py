"""What a process tells a peer, so that both find out whether they can share memory, and prove it.

Each end offers its arena in its READY. An end that can open the other's arena reads the secret there, and sends a proof
that is made of it. Nobody believes the offer alone: a peer may have it from somebody else. Nor can a proof be had from
somebody else: an end proves in the name of its own kind of socket, and believes the other kind only. Those who accept
connections prove nothing that another of them believes.
"""

from __future__ import annotations

import hashlib
import hmac
import os
from pathlib import Path

from zmq_offload.net.sharedmemory.arena import Arena
from zmq_offload.net.sharedmemory.offers import HOST_BYTES, Offered, read_offer
from zmq_offload.net.sharedmemory.readers import Readers


def _host() -> bytes:
    """The same for all processes of a user that see each other's descriptors. Raises OSError."""
    if os.readlink("/proc/self") != str(os.getpid()):
        raise OSError("/proc is that of other processes")
    boot = Path("/proc/sys/kernel/random/boot_id").read_text()
    spaces = [os.stat(f"/proc/self/ns/{kind}").st_ino for kind in ("pid", "user")]
    return hashlib.sha256(repr((boot, spaces, os.geteuid())).encode()).digest()[:HOST_BYTES]


def offer_of(arena: Arena) -> Offered:
    """What a peer needs to find out whether it may read this process's memory. Raises OSError."""
    return Offered(_host(), os.getpid(), arena.fd, arena.cookie)


def proof(readers: Readers, own: Offered, offer: bytes, kind: bytes) -> bytes | None:
    """What proves to a peer that this process, which offers `own`, reads the peer's arena. `kind`: of the socket here.

    None if it cannot.
    """
    theirs = read_offer(offer)
    if theirs is None or theirs.host != own.host:
        return None
    secret = readers.secret_of(*theirs.arena)
    return None if secret is None else _proof(secret, kind)


def is_proof(arena: Arena, given: bytes, kind: bytes) -> bool:
    """Whether a peer of the other kind than `kind`, that of the socket here, proves that it reads the arena."""
    return hmac.compare_digest(given, _proof(arena.secret, b"DEALER" if kind == b"ROUTER" else b"ROUTER"))


def _proof(secret: bytes, kind: bytes) -> bytes:
    return hmac.digest(secret, kind, "sha256")
