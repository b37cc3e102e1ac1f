"""Which cores of the machine each worker process gets. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Peer:
    """Another supervisor on this machine: the cores that it may use, how many processes it has or will have, and the
    cores that each of its running processes is kept on."""

    cores: tuple[int, ...]
    processes: int
    held: tuple[tuple[int, ...], ...] = ()


@dataclass(frozen=True, slots=True)
class Placement:
    """Where one worker process runs. `cores` is None where the system decides."""

    threads: int
    cores: tuple[int, ...] | None


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


def place(
    seat: int,
    processes: int,
    cores: Sequence[int],
    *,
    usable: int,
    threads: int | None = None,
    earlier: Sequence[Peer] = (),
    later: Sequence[Peer] = (),
    held: Iterable[tuple[int, ...]] = (),
) -> Placement:
    """The place of process `seat` of a supervisor's `processes`, which shares `cores` with the supervisors that were
    started `earlier` and `later`.

    All processes of the machine have equal parts. A process that runs keeps its cores, so one that starts gets those
    that the fewest others are kept on (`held`: the supervisor's own), its own block before others. `usable` is how many
    threads may compute at a time (a CPU quota may be less than the cores); each process gets its part of that, unless
    `threads` says otherwise.
    """
    own = set(cores)
    earlier = [peer for peer in earlier if own & set(peer.cores)]
    later = [peer for peer in later if own & set(peer.cores)]
    before = sum(peer.processes for peer in earlier)
    total = before + processes + sum(peer.processes for peer in later)
    threads = threads or max(1, usable // total)
    block = share_of(before + seat, total, threads, cores)
    if block is None:
        return Placement(threads, None)
    claims = Counter(core for peer in (*earlier, *later) for kept in peer.held for core in kept)
    claims.update(core for kept in held for core in kept)
    least = sorted(cores, key=lambda core: (claims[core], core not in block, core))[: len(block)]
    return Placement(threads, tuple(sorted(least)))
