"""Who gets which request: fair queues and the choice of a worker. Pure.

The rules (docs/architecture.md):

- a request goes to the worker with the least outstanding per slot among those that hold the model; a tie goes to the
  one with fewer bytes outstanding, behind which a small request waits less, and then to the one that waited longest; a
  worker is never given more than its slots;
- a queue hands out the highest priority first; inside a priority the clients take turns, and each client's requests
  keep their order;
- a worker with a free slot takes the request, over all queues that it can serve, of the highest priority and then of
  the client whose turn is longest ago: a backlog for one model does not keep another model's clients waiting.
"""

from __future__ import annotations

from broker.lifecycle import Duty
from broker.queues import FairQueue, Shares
from broker.state import Request, Worker
from zmq_offload.protocol.messages import LATEST


class Scheduler:
    """The queues, and which workers hold which model."""

    def __init__(self) -> None:
        self.queues: dict[tuple[str, int], FairQueue] = {}
        """(model, version asked for) -> the requests that wait for it; no empty ones."""
        self.holders: dict[tuple[str, int], dict[bytes, Worker]] = {}
        """(model, version) -> the workers that take requests for it, by peer; no empty ones."""
        self.latest: dict[str, int] = {}
        """model -> the highest version in `holders`."""
        self.shares = Shares()
        """What each client has in all queues."""
        self._turns = 0

    @property
    def queued(self) -> int:
        return self.shares.count

    @property
    def queued_bytes(self) -> int:
        return self.shares.nbytes

    # --- workers --------------------------------------------------------------------------------------------

    def add(self, worker: Worker) -> None:
        for model in worker.models:
            self.holders.setdefault(model, {})[worker.peer] = worker
        self._find_latest()

    def remove(self, worker: Worker) -> None:
        """Give it nothing more."""
        for model in worker.models:
            holders = self.holders.get(model)
            if holders and holders.pop(worker.peer, None) and not holders:
                del self.holders[model]
        self._find_latest()

    def _find_latest(self) -> None:
        self.latest = {}
        for name, version in self.holders:
            self.latest[name] = max(version, self.latest.get(name, 0))

    def resolve(self, model: str, version: int) -> int:
        """The version that a request for `version` means now; LATEST if there is none."""
        return self.latest.get(model, LATEST) if version == LATEST else version

    def served(self, model: str, version: int) -> bool:
        return (model, self.resolve(model, version)) in self.holders

    def choose(self, model: str, version: int) -> Worker | None:
        """The worker that should run a request now, or None while all that could are full."""
        best: Worker | None = None
        for worker in self.holders.get((model, self.resolve(model, version)), {}).values():
            if worker.duty is not Duty.READY or len(worker.held) >= worker.slots:
                continue
            if best is None:
                best = worker
                continue
            # held/slots by cross-multiplication, so that equal loads are equal exactly.
            ours, theirs = len(worker.held) * best.slots, len(best.held) * worker.slots
            if ours < theirs or (ours == theirs and (worker.nbytes, worker.chosen) < (best.nbytes, best.chosen)):
                best = worker
        return best

    def given(self, worker: Worker) -> None:
        """Note that a worker gets a request now, for the ties to come."""
        worker.chosen = self._turn()

    # --- requests -------------------------------------------------------------------------------------------

    def push(self, request: Request, *, again: bool = False) -> None:
        """Add a request; `again` puts one that had its turn already before all others of its priority."""
        queue = self.queues.setdefault((request.model, request.version), FairQueue())
        queue.push(request, self._turn(), again=again)
        self.shares.add(request)

    def holds(self, request: Request) -> bool:
        queue = self.queues.get((request.model, request.version))
        return queue is not None and request in queue

    def discard(self, request: Request) -> None:
        """Take a queued request out."""
        self.queues[request.model, request.version].remove(request)
        self._left(request)

    def next_for(self, worker: Worker) -> Request | None:
        """Take the request that a worker with a free slot should run, or None."""
        best: tuple[int, int] | None = None
        chosen: FairQueue | None = None
        for name, version in worker.models:
            for asked in (version, LATEST) if self.latest.get(name) == version else (version,):
                queue = self.queues.get((name, asked))
                if queue:
                    rank = queue.rank()
                    if best is None or rank < best:
                        best, chosen = rank, queue
        if chosen is None:
            return None
        request = chosen.pop(self._turn())
        self._left(request)
        return request

    def last_of(self, owner: bytes) -> Request:
        """Of a client that waits somewhere, the request to give up first: of its least priority the newest."""
        lasts = [queue.last(owner) for queue in self.queues.values() if owner in queue.shares]
        return max(lasts, key=lambda request: (-request.priority, request.accepted_at))

    def _turn(self) -> int:
        self._turns += 1
        return self._turns

    def _left(self, request: Request) -> None:
        self.shares.take(request)
        if not self.queues[request.model, request.version]:
            del self.queues[request.model, request.version]
