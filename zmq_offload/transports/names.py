"""Addresses of host names, within a time: the system's look-up knows no deadline."""

from __future__ import annotations

import queue
import socket
from typing import Any, TypeAlias

from zmq_offload.common.crew import Crew
from zmq_offload.errors import Unavailable
from zmq_offload.net.addresses import literal

Found: TypeAlias = "list[tuple[socket.AddressFamily, Any]]"

_crew = Crew("zmq-offload-names")


def looked_up(host: str, port: int, seconds: float) -> Found:
    """The addresses of a host, each with its family. Raises Unavailable if there is none or it takes too long."""
    if literal(f"[{host}]" if ":" in host else host) is not None:
        return _addresses(host, port)
    answers: queue.SimpleQueue[Found | OSError] = queue.SimpleQueue()

    def look() -> None:
        try:
            answers.put(_addresses(host, port))
        except OSError as error:
            answers.put(error)

    _crew.run(look)
    try:
        answer = answers.get(timeout=seconds)
    except queue.Empty:
        raise Unavailable(f"looking up the host {host!r} takes more than {seconds:.3f} s") from None
    if isinstance(answer, OSError):
        raise Unavailable(f"the host {host!r} has no address: {answer.strerror}")
    return answer


def _addresses(host: str, port: int) -> Found:
    return [(family, address) for family, _, _, _, address in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]
