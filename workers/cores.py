"""Which cores of the host each worker process gets. Pure."""

from __future__ import annotations

from collections.abc import Sequence


def share_of(seat: int, processes: int, threads: int, cores: Sequence[int]) -> tuple[int, ...] | None:
    """The cores of process `seat` of `processes`, of which each runs `threads` threads.

    A block of its own for each, as equal as it goes; where there are more processes than cores, one core for each,
    which they share in turn. None (the system decides) where a process was given more threads than its block has
    cores: they would wait for each other.
    """
    if processes > len(cores):
        share: Sequence[int] = (cores[seat % len(cores)],)
    else:
        share = cores[seat * len(cores) // processes : (seat + 1) * len(cores) // processes]
    return tuple(share) if threads <= len(share) else None
