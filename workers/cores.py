"""Which cores of the machine each worker process gets. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Peer:
    """Another supervisor on this machine: the cores that it may use, the number of its processes, running or not, and
    the cores that each running process is bound to."""

    cores: tuple[int, ...]
    processes: int
    held: tuple[tuple[int, ...], ...] = ()


@dataclass(frozen=True, slots=True)
class Placement:
    """Where one worker process runs, and on which device. If `cores` is None, the system decides."""

    threads: int
    cores: tuple[int, ...] | None
    device: str = "cpu"


NOWHERE = Placement(1, None)
"""For a process that nobody places."""


def share_of(seat: int, processes: int, threads: int, cores: Sequence[int]) -> tuple[int, ...] | None:
    """The cores of process `seat` of `processes`, each of which runs `threads` threads.

    Each process has a block of its own; blocks differ by at most one core. With more processes than cores, each process
    has one core and the cores are shared in turn. None (the system decides) if a process has more threads than its
    block has cores: the threads would wait for each other.
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
    near: Collection[int] = (),
) -> Placement:
    """The placement of process `seat` of a supervisor's `processes`.

    The supervisor shares `cores` with those that started `earlier` and `later`. All processes of the machine have equal
    shares. A process that runs keeps its cores. So a process that starts gets the cores to which the fewest others are
    bound (`held`: those of this supervisor's own processes), of these first the cores `near` its GPU, and then those of
    its own block. `usable` is the number of threads that may compute at a time; a CPU quota may make it less than the
    cores. Each process gets its share of it, unless `threads` is given.
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
    least = sorted(cores, key=lambda core: (claims[core], core not in near, core not in block, core))[: len(block)]
    return Placement(threads, tuple(sorted(least)))
