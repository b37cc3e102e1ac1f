"""Which worker gets which request: fair queues and the choice of a worker. Pure.

The rules (docs/architecture.md):

- A request goes to the worker of its pool that should be done with it first: with the fewest outstanding requests per
  slot, or, if the workers differ in speed, as `broker.expected` says. A tie goes to the worker with
  fewer bytes outstanding, where a small request waits less, and then to the one that waited longest. A worker never
  gets more requests than it has slots, nor a frame that is larger than it takes. What it holds for other brokers counts
  as outstanding, as far as it told, but takes no slots: else brokers could keep each other from giving it any.
- `broker.versions` decides which version a worker runs for a request for the latest, and whether it only helps out.
- A queue hands out the highest priority first. Within a priority the clients take turns, and each client's requests
  keep their order.
- A worker with a free slot takes, from all queues that it serves, the request of the highest priority and then of the
  client whose turn is longest ago. A backlog for one model does not keep the clients of another waiting.
"""

from __future__ import annotations

from collections.abc import Iterable

from broker import expected, pace
from broker.expected import Arrivals
from broker.lifecycle import WorkerState
from broker.queues import FairQueue, Shares
from broker.state import Model, PendingRequest, Wanted, Worker
from broker.versions import Pool, pools
from zmq_offload.protocol.messages import LATEST

_READY = WorkerState.READY

SELDOM = 8
"""Of so many runs one is measured, where all workers are about as quick and that is known."""


class Scheduler:
    """The queues, and the workers by model."""

    def __init__(self) -> None:
        self.queues: dict[Wanted, FairQueue] = {}
        """The queued requests, by what they ask for; there are no empty queues."""
        self.holders: dict[str, dict[bytes, Worker]] = {}
        """model -> the workers that take requests for it, by peer; there are no empty entries."""
        self.pools: dict[Wanted, Pool] = {}
        """What requests may ask for -> the workers that may run them; there are no empty pools."""
        self.shares = Shares()
        """The share of each client in all queues."""
        self.canaries: dict[str, int] = {}
        """model -> the version that is tried out."""
        self.mixed: set[Wanted] = set()
        """What is asked for of pools whose workers differ in speed."""
        self.arrivals: dict[str, Arrivals] = {}
        """By model, of those whose workers differ in speed."""
        self._pools_of: dict[str, dict[Wanted, Pool]] = {}
        """`pools` by model."""
        self._turns = 0

    @property
    def queued(self) -> int:
        return self.shares.count

    @property
    def queued_bytes(self) -> int:
        return self.shares.nbytes

    # --- workers --------------------------------------------------------------------------------------------

    def update(
        self, worker: Worker, models: dict[tuple[str, int], Model], *, reset: bool = False
    ) -> list[tuple[str, int]]:
        """Let a worker have requests for `models`; return each model whose latest version changed, with that version.

        `reset`: choose the latest versions without regard to the previous ones. A model of which the worker no longer
        serves a version is always reset.
        """
        before = worker.models
        worker.serve(models)
        withdrawn = {name for name, _ in before.keys() - models.keys()}
        self._leave(worker, before)
        for name, _ in models:
            self.holders.setdefault(name, {})[worker.peer] = worker
        names = {name for name, _ in (*before, *models)}
        return [change for name in sorted(names) for change in self._find_pools(name, reset or name in withdrawn)]

    def remove(self, worker: Worker) -> list[tuple[str, int]]:
        """Give a worker no more requests; return what `update` returns."""
        names = self._leave(worker, worker.models)
        return [change for name in sorted(names) for change in self._find_pools(name, False)]

    def _leave(self, worker: Worker, models: Iterable[tuple[str, int]]) -> set[str]:
        names = {name for name, _ in models}
        for name in names:
            holders = self.holders.get(name)
            if holders and holders.pop(worker.peer, None) and not holders:
                del self.holders[name]
        return names

    def _find_pools(self, name: str, reset: bool) -> list[tuple[str, int]]:
        before = self._pools_of.pop(name, {})
        adopted = {wanted: pool.version for wanted, pool in before.items() if wanted.version == LATEST}
        after = pools(
            name, self.holders.get(name, {}).values(), adopted, reset=reset, canary=self.canaries.get(name, LATEST)
        )
        for wanted in before:
            del self.pools[wanted]
            self.mixed.discard(wanted)
        self.pools.update(after)
        for wanted, pool in after.items():
            self._compare(wanted, pool, wanted in before and before[wanted].mixed)
        if after:
            self._pools_of[name] = after
        latest = Wanted(name)
        version = after[latest].version if after else LATEST
        return [(name, version)] if version != adopted.get(latest, LATEST) else []

    def newer(self, name: str) -> tuple[int, list[Worker], list[Worker]] | None:
        """The newest version of a model but its canary, the workers that have it, and those that do not; None if it is
        the latest."""
        holders = self.holders.get(name, {}).values()
        canary = self.canaries.get(name)
        newest = max((v for worker in holders for v in worker.versions[name] if v != canary), default=LATEST)
        if not holders or newest <= self.pools[Wanted(name)].version:
            return None
        with_it = [worker for worker in holders if newest in worker.versions[name]]
        return newest, with_it, [worker for worker in holders if newest not in worker.versions[name]]

    def served(self, wanted: Wanted) -> bool:
        return wanted in self.pools

    def choose(self, wanted: Wanted, longest: int, now: float) -> Worker | None:
        """Choose the worker that should run a new request with a frame of `longest` bytes now; None if it should wait:
        all that could are full, or a quicker one is done with it sooner than one that is free."""
        pool = self.pools.get(wanted)
        if pool is None:
            return None
        if pool.mixed:
            self._arrivals(wanted.model, now).came(now)
            return None if wanted in self.queues else self._expected(wanted, pool, longest, 1, 0.0, now)[0]
        return _least_loaded(pool.first, longest) or _least_loaded(pool.helpers, longest)

    def _expected(
        self, wanted: Wanted, pool: Pool, longest: int, queued: int, waited: float, now: float
    ) -> tuple[Worker | None, float]:
        interval = self._arrivals(wanted.model, now).interval
        worker, again = expected.pick(pool.first, wanted.model, pool.runs, longest, queued, waited, interval, now)
        if worker is None and not again:
            worker = _least_loaded(pool.helpers, longest)
        return worker, again

    def measured(self, worker: Worker, request: PendingRequest, compute: float, batch: int, now: float) -> bool:
        """Note how long a worker took for a run of `batch` requests, of which this is the first that it answered.

        Returns whether the workers of a queue are about as quick now, so that its requests wait for none of them.
        """
        changed = expected.measured(worker, request.runs_as, request.dispatched_at, compute, batch, now)
        worker.unmeasured = 1 if self.mixed or worker.paces[request.runs_as].samples < pace.KNOWN else SELDOM
        if not changed:
            return False
        before = len(self.mixed)
        for wanted, pool in self._pools_of.get(request.wanted.model, {}).items():
            self._compare(wanted, pool, pool.mixed)
        return len(self.mixed) < before

    def _arrivals(self, model: str, now: float) -> Arrivals:
        """How often requests come for a model, if its workers differ in speed."""
        found = self.arrivals.get(model)
        if found is None:
            found = self.arrivals[model] = Arrivals(now)
        return found

    def _compare(self, wanted: Wanted, pool: Pool, before: bool) -> None:
        pool.mixed = expected.is_mixed(pool.first, wanted.model, pool.runs, before)
        (self.mixed.add if pool.mixed else self.mixed.discard)(wanted)

    def waiting(self) -> list[Wanted]:
        """What is asked for in the queues whose workers differ in speed, in the order in which to look at them."""
        found = [wanted for wanted in self.queues if wanted in self.mixed]
        return found if len(found) < 2 else sorted(found, key=self._rank)

    def _rank(self, wanted: Wanted) -> tuple[int, int]:
        queue = self.queues[wanted]
        request = queue.first(self.pools[wanted].takes)
        assert request is not None, "what no worker takes is refused"
        return queue.rank(request)

    def any_free(self, wanted: Wanted, longest: int) -> Worker | None:
        """A worker that may take a request now, however slow it is."""
        pool = self.pools[wanted]
        return _least_loaded(pool.first, longest) or _least_loaded(pool.helpers, longest)

    def next_of(
        self, wanted: Wanted, now: float, *, pressed: bool = False
    ) -> tuple[PendingRequest, Worker | None, float]:
        """Of a queue whose workers differ in speed: its first request; the worker that should have it now, which takes
        it out of the queue; and, if none should but one is free, how many seconds from now to look again. `pressed`: it
        waits for no quicker worker."""
        queue, pool = self.queues[wanted], self.pools[wanted]
        request = queue.first(pool.takes)
        assert request is not None, "what no worker takes is refused"
        worker, again = self._expected(wanted, pool, request.longest, len(queue), now - request.accepted_at, now)
        if pressed and worker is None:
            worker = self.any_free(wanted, request.longest)
        if worker is not None:
            queue.pop(request, self._turn())
            self._left(request, queue)
        return request, worker, again

    def given(self, wanted: Wanted, worker: Worker) -> int:
        """Note that a worker gets a request now, for the ties to come; return the version that it runs for it."""
        self._turns = worker.chosen = self._turns + 1
        return self.pools[wanted].runs[worker.peer]

    # --- requests -------------------------------------------------------------------------------------------

    def push(self, request: PendingRequest, *, again: bool = False) -> None:
        """Add a request; `again` puts one that had its turn already before all others of its priority."""
        queue = self.queues.get(request.wanted)
        if queue is None:
            queue = self.queues[request.wanted] = FairQueue()
        queue.push(request, self._turn(), again=again)
        self.shares.add(request)

    def holds(self, request: PendingRequest) -> bool:
        queue = self.queues.get(request.wanted)
        return queue is not None and request in queue

    def discard(self, request: PendingRequest) -> None:
        """Remove a queued request."""
        queue = self.queues[request.wanted]
        queue.remove(request)
        self._left(request, queue)

    def next_for(self, worker: Worker, now: float) -> PendingRequest | None:
        """Remove and return the request that a worker with a free slot should run; None if there is none."""
        best: FairQueue | None = None
        chosen: PendingRequest | None = None
        for wanted, queue in self._queues_of(worker):
            pool = self.pools.get(wanted)
            if pool is None or worker.peer not in pool.runs:
                continue
            request = queue.first(worker.max_frame_bytes)
            if request is None:
                continue
            if pool.mixed:
                waited = now - request.accepted_at
                if self._expected(wanted, pool, request.longest, len(queue), waited, now)[0] is not worker:
                    continue
            if best is None or chosen is None or queue.rank(request) < best.rank(chosen):
                best, chosen = queue, request
        if best is not None and chosen is not None:
            best.pop(chosen, self._turn())
            self._left(chosen, best)
        return chosen

    def _queues_of(self, worker: Worker) -> Iterable[tuple[Wanted, FairQueue]]:
        """The queues that a worker may serve, and others if that is quicker than to find out."""
        if len(self.queues) <= len(worker.models):
            return self.queues.items()
        asked = (wanted for model in worker.models.values() for wanted in model.satisfies)
        return ((wanted, queue) for wanted in asked if (queue := self.queues.get(wanted)) is not None)

    def last_of(self, owner: bytes) -> PendingRequest:
        """The request of a waiting client to evict first: the newest of its lowest priority."""
        lasts = [queue.last(owner) for queue in self.queues.values() if owner in queue.shares]
        return max(lasts, key=lambda request: (-request.priority, request.accepted_at))

    def _turn(self) -> int:
        self._turns += 1
        return self._turns

    def _left(self, request: PendingRequest, queue: FairQueue) -> None:
        self.shares.take(request)
        if not queue.shares.count:
            del self.queues[request.wanted]


def _least_loaded(workers: Iterable[Worker], longest: int) -> Worker | None:
    """Of the workers that may take a request with a frame of `longest` bytes, the one that should; None without any."""
    best: Worker | None = None
    least = 0
    for worker in workers:
        held = len(worker.held)
        if held >= worker.slots or worker.state is not _READY or longest > worker.max_frame_bytes:
            continue
        held += worker.elsewhere
        if best is not None:
            # held/slots by cross-multiplication, so that equal loads are equal exactly.
            ours, theirs = held * best.slots, least * worker.slots
            if ours > theirs or (ours == theirs and (worker.nbytes, worker.chosen) >= (best.nbytes, best.chosen)):
                continue
        best, least = worker, held
    return best
