"""Where each of several broker processes of one host listens. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from zmq_offload.errors import InvalidArgument

_STEP = 2
"""Each process takes two ports, so that the default ports, which are neighbors, go up side by side."""

_LAST_PORT = 65535
_ANY_PATH = "ipc://*"
NONE = "none"
"""The address of a port that is turned off."""


class Place(NamedTuple):
    """Where one process listens: endpoints, and HOST:PORT of its metrics (or "none")."""

    frontend: str
    backend: str
    metrics: str


def places_of(frontends: Sequence[str], backends: Sequence[str], metrics: str, processes: int | None) -> list[Place]:
    """The places of the processes, as many as `processes` says, or else as many as there are endpoints.

    An endpoint stands for its process alone if there is one for each. One for all is that of the first: the others go
    up from there, by two ports or with a number after the path. Port 0 stays: each process gets another one. The port
    for metrics goes up by one. Raises InvalidArgument if that is not possible.
    """
    count = processes or max(len(frontends), len(backends))
    found = [
        Place(*each)
        for each in zip(
            _for_each("--frontend", frontends, count),
            _for_each("--backend", backends, count),
            [_higher(metrics, number) for number in range(count)],
            strict=True,
        )
    ]
    taken: dict[str, str] = {}
    for number, place in enumerate(found):
        for flag, endpoint in zip(("--frontend", "--backend", "--metrics"), place, strict=True):
            who, key = f"{flag} of process {number}", endpoint.removeprefix("tcp://")
            if key in (NONE, _ANY_PATH) or _port(endpoint) == 0:
                continue
            if count > 1 and key in taken:
                raise InvalidArgument(f"{taken[key]} and {who} are both {endpoint}; give one for each process")
            taken[key] = who
    return found


def _for_each(flag: str, endpoints: Sequence[str], count: int) -> list[str]:
    if len(endpoints) == count:
        return list(endpoints)
    if len(endpoints) > 1:
        raise InvalidArgument(
            f"{flag} has {len(endpoints)} endpoints for {count} process{'es' * (count > 1)}; give one for each, or the "
            "first one alone"
        )
    return [_higher(endpoints[0], number, _STEP) for number in range(count)]


def _higher(endpoint: str, number: int, step: int = 1) -> str:
    """The endpoint, or HOST:PORT, of process `number`, from that of the first."""
    port = _port(endpoint)
    if port is None:
        return endpoint if number == 0 or endpoint in (NONE, _ANY_PATH) else f"{endpoint}-{number}"
    if port == 0:
        return endpoint
    port += step * number
    if port > _LAST_PORT:
        raise InvalidArgument(f"process {number} would listen at port {port}, from {endpoint} up; use a lower port")
    return f"{endpoint.rpartition(':')[0]}:{port}"


def _port(endpoint: str) -> int | None:
    """The port of an endpoint or of HOST:PORT, 0 for any; None if it has none."""
    if endpoint == NONE or ("://" in endpoint and not endpoint.startswith("tcp://")):
        return None
    port = endpoint.rpartition(":")[2]
    return 0 if port == "*" else int(port)
