"""Addresses of host names, within a time."""

from __future__ import annotations

from typing import Any

from zmq_offload.errors import Unavailable
from zmq_offload.net.addresses import Lookup


def looked_up(host: str, port: int, seconds: float) -> list[tuple[int, tuple[Any, ...]]]:
    """The addresses of a host, each with its family. Raises Unavailable if there is none or it takes too long."""
    lookup = Lookup(host, port)
    if not lookup.wait(seconds):
        raise Unavailable(f"looking up the host {host!r} takes more than {seconds:.3f} s")
    if not lookup.all_families:
        raise Unavailable(f"the host {host!r} has no address: {lookup.why}")
    return lookup.all_families
