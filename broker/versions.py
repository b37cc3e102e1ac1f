"""The rule for the latest version, and which worker runs which version for a request. Pure.

A request names a version, or asks for the latest. With a signature (names, datatypes and shapes of inputs and outputs)
it asks for the latest version that has this signature; every device does. The rule for "latest":

- It is the highest version that more than half of the model's workers have, with more than half of its slots. Until
  then all workers get requests: those that have the adopted version run it, those that have only a newer one run that.
- It stays while at least a quarter of the workers have it, with at least a quarter of the slots. So a worker that
  restarts during a roll-out does not take all others back. It does not stay if a worker removes it: that is a
  roll-back.
- After it is adopted, workers that have only an older version help out while all others are full, and get nothing
  otherwise.
- Only versions with the signature of the adopted version are mixed.
- A canary is not the latest, and is left out of these counts.

Slots measure how much of the load a worker takes. Workers count as well, because a version that runs in batches makes
its worker announce many more slots. By slots alone, the first worker that has it would get all of the load.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from broker.state import Wanted, Worker
from zmq_offload.protocol.messages import LATEST


@dataclass(slots=True)
class Pool:
    """The workers that may run what requests ask for."""

    version: int
    """The version that is asked for, or adopted as the latest."""
    runs: dict[bytes, int] = field(default_factory=dict)
    """peer -> the version that the worker runs."""
    first: list[Worker] = field(default_factory=list)
    helpers: list[Worker] = field(default_factory=list)
    """Workers that get requests only while all of `first` are full."""
    takes: int = 0
    """The largest frame, in bytes, that any of the workers takes."""
    mixed: bool = False
    """Whether the workers of `first` differ in speed, so that their times are compared (`broker.expected`)."""

    def add(self, worker: Worker, version: int) -> None:
        self.runs[worker.peer] = version
        (self.first if version >= self.version else self.helpers).append(worker)
        self.takes = max(self.takes, worker.max_frame_bytes)


def pools(
    model: str, workers: Iterable[Worker], before: Mapping[Wanted, int], *, reset: bool, canary: int = LATEST
) -> dict[Wanted, Pool]:
    """The pools of one model, of the workers that have it.

    `before`: the versions that were adopted until now. `reset`: they have no preference, because a version was removed.
    `canary`: the version that is tried out, if there is one. It does not become the latest, and does not help out,
    unless there is no other.
    """
    found: dict[Wanted, Pool] = {}
    held: dict[bytes, dict[bytes, list[int]]] = {}  # signature, b"" for any -> peer -> versions
    by_peer = {worker.peer: worker for worker in workers}
    signatures: dict[int, bytes] = {}
    for worker in by_peer.values():
        for version, description in worker.versions[model].items():
            wanted = Wanted(model, version)
            found.setdefault(wanted, Pool(version)).add(worker, version)
            signatures[version] = description.signature
            for signature in (b"", description.signature):
                held.setdefault(signature, {}).setdefault(worker.peer, []).append(version)
    for signature, versions_of in held.items():
        versions_of = _without(canary, versions_of)
        wanted = Wanted(model, LATEST, signature)
        slots: dict[int, int] = {}
        count: dict[int, int] = {}
        for peer, versions in versions_of.items():
            for version in versions:
                slots[version] = slots.get(version, 0) + by_peer[peer].slots
                count[version] = count.get(version, 0) + 1
        all_slots, everybody = sum(by_peer[peer].slots for peer in versions_of), len(versions_of)
        # The smaller of the two shares, as whole numbers of the same total.
        share = {version: min(slots[version] * everybody, count[version] * all_slots) for version in slots}
        adopted = adopt(share, all_slots * everybody, before.get(wanted, LATEST), reset=reset)
        pool = found[wanted] = Pool(adopted)
        for peer, versions in versions_of.items():
            fit = [version for version in versions if signatures[version] == signatures[adopted]]
            if fit:
                pool.add(by_peer[peer], adopted if adopted in fit else max(fit))
    return found


def _without(canary: int, versions_of: dict[bytes, list[int]]) -> dict[bytes, list[int]]:
    """The versions of each worker but the canary; all if there is only the canary."""
    others = {peer: [version for version in versions if version != canary] for peer, versions in versions_of.items()}
    return {peer: versions for peer, versions in others.items() if versions} or versions_of


def adopt(share: Mapping[int, int], total: int, before: int, *, reset: bool) -> int:
    """The version that "latest" means.

    `share`: version -> how much of the fleet has it; `total`: the whole fleet; `before`: the latest version until now,
    or LATEST if there was none.
    """
    most = max((version for version, count in share.items() if 2 * count > total), default=LATEST)
    if before not in share:
        return most or max(share, key=lambda version: (share[version], version))
    if most > before:
        return most
    stays = not most or (not reset and 4 * share[before] >= total)
    return before if stays else most
