"""Who gets which request: fair queues and the choice of a worker. Pure.

The rules (docs/architecture.md):

- a request goes to the worker with the least outstanding per slot among those that hold the model; a tie goes to the
  one that waited longest; a worker is never given more than its slots;
- a queue hands out the highest priority first; inside a priority the clients take turns, and each client's requests
  keep their order;
- a worker with a free slot takes the request, over all queues that it can serve, of the highest priority and then of
  the longest wait.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator

from broker.state import Request, Worker
from zmq_offload.protocol.messages import LATEST, Key


class FairQueue:
    """Requests for one model, in the order in which workers should take them."""

    def __init__(self) -> None:
        self._levels: dict[int, OrderedDict[bytes, OrderedDict[Key, Request]]] = {}
        self._top: list[int] = []  # priorities present, ascending: the last is the most urgent
        self._count = 0
        self.nbytes = 0

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Request]:
        for level in self._levels.values():
            for requests in level.values():
                yield from requests.values()

    def __contains__(self, request: Request) -> bool:
        level = self._levels.get(request.priority)
        return level is not None and request.key in level.get(request.key.session, ())

    def count(self, session: bytes) -> int:
        """Requests of one client here."""
        return sum(len(level.get(session, ())) for level in self._levels.values())

    def push(self, request: Request, *, again: bool = False) -> None:
        """Add a request; `again` puts one that had its turn already before all others of its priority."""
        level = self._levels.get(request.priority)
        if level is None:
            level = self._levels[request.priority] = OrderedDict()
            self._top = sorted(self._levels)
        own = level.setdefault(request.key.session, OrderedDict())
        own[request.key] = request
        if again:
            own.move_to_end(request.key, last=False)
            level.move_to_end(request.key.session, last=False)
        self._count += 1
        self.nbytes += request.nbytes

    def peek(self) -> Request:
        """The request whose turn it is; the queue must not be empty."""
        own = next(iter(self._levels[self._top[-1]].values()))
        return next(iter(own.values()))

    def pop(self) -> Request:
        """Take the request whose turn it is; its client's next one waits until the others had theirs."""
        request = self.peek()
        self._levels[request.priority].move_to_end(request.key.session)
        self.remove(request)
        return request

    def remove(self, request: Request) -> None:
        """Take out a request that is here."""
        level = self._levels[request.priority]
        own = level[request.key.session]
        del own[request.key]
        self._count -= 1
        self.nbytes -= request.nbytes
        if not own:
            del level[request.key.session]
            if not level:
                del self._levels[request.priority]
                self._top = sorted(self._levels)


class Scheduler:
    """The queues, and which workers hold which model."""

    def __init__(self) -> None:
        self.queues: dict[tuple[str, int], FairQueue] = {}
        """(model, version asked for) -> the requests that wait for it; no empty ones."""
        self.holders: dict[tuple[str, int], dict[bytes, Worker]] = {}
        """(model, version) -> the workers that take requests for it, by peer; no empty ones."""
        self.latest: dict[str, int] = {}
        """model -> the highest version in `holders`."""
        self.queued = 0
        self.queued_bytes = 0
        self._turns = 0

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
            if worker.free <= 0:
                continue
            # held/slots by cross-multiplication, so that equal loads are equal exactly.
            ours, theirs = (0, 1) if best is None else (len(worker.held) * best.slots, len(best.held) * worker.slots)
            if best is None or ours < theirs or (ours == theirs and worker.chosen < best.chosen):
                best = worker
        return best

    def given(self, worker: Worker) -> None:
        """Note that a worker gets a request now, for the ties to come."""
        self._turns += 1
        worker.chosen = self._turns

    # --- requests -------------------------------------------------------------------------------------------

    def push(self, request: Request, *, again: bool = False) -> None:
        self.queues.setdefault((request.model, request.version), FairQueue()).push(request, again=again)
        self.queued += 1
        self.queued_bytes += request.nbytes

    def holds(self, request: Request) -> bool:
        queue = self.queues.get((request.model, request.version))
        return queue is not None and request in queue

    def discard(self, request: Request) -> None:
        """Take a queued request out."""
        self.queues[request.model, request.version].remove(request)
        self._left(request)

    def next_for(self, worker: Worker) -> Request | None:
        """Take the request that a worker with a free slot should run, or None."""
        best: tuple[int, float] | None = None
        chosen: FairQueue | None = None
        for name, version in worker.models:
            for asked in (version, LATEST) if self.latest.get(name) == version else (version,):
                queue = self.queues.get((name, asked))
                if queue:
                    head = queue.peek()
                    rank = (-head.priority, head.accepted_at)
                    if best is None or rank < best:
                        best, chosen = rank, queue
        if chosen is None:
            return None
        request = chosen.pop()
        self._left(request)
        return request

    def _left(self, request: Request) -> None:
        self.queued -= 1
        self.queued_bytes -= request.nbytes
        if not self.queues[request.model, request.version]:
            del self.queues[request.model, request.version]
