"""Queues in which clients take turns, and the share of each client. Pure."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator

from broker.state import PendingRequest
from zmq_offload.protocol.messages import Key


class Shares:
    """The number of requests, and their bytes, of each client."""

    def __init__(self) -> None:
        self.count = 0
        self.nbytes = 0
        self.by_owner: dict[bytes, tuple[int, int]] = {}
        """owner -> (requests, bytes), for owners with at least one request."""

    def __contains__(self, owner: bytes) -> bool:
        return owner in self.by_owner

    def of(self, owner: bytes) -> tuple[int, int]:
        return self.by_owner.get(owner, (0, 0))

    def clients_with(self, owner: bytes) -> int:
        """The number of clients, `owner` included."""
        return len(self.by_owner) + (owner not in self.by_owner)

    def largest(self, *, by_bytes: bool) -> bytes:
        """The client with the most requests or bytes."""
        by_owner = self.by_owner
        return max(by_owner, key=lambda owner: by_owner[owner][by_bytes])

    def add(self, request: PendingRequest) -> None:
        count, nbytes = self.of(request.owner)
        self.by_owner[request.owner] = count + 1, nbytes + request.nbytes
        self.count += 1
        self.nbytes += request.nbytes

    def take(self, request: PendingRequest) -> None:
        count, nbytes = self.by_owner[request.owner]
        if count == 1:
            del self.by_owner[request.owner]
        else:
            self.by_owner[request.owner] = count - 1, nbytes - request.nbytes
        self.count -= 1
        self.nbytes -= request.nbytes


class ClientQueue(OrderedDict[Key, PendingRequest]):
    """One client's requests of one priority. `turn` is a count of when the client last had its turn, or came."""

    __slots__ = ("turn",)
    turn: int


class FairQueue:
    """Requests for one model, in the order in which workers should take them."""

    def __init__(self) -> None:
        # priority -> owner -> its requests; first is the owner whose last turn is longest ago
        self.levels: dict[int, OrderedDict[bytes, ClientQueue]] = {}
        self.priorities: list[int] = []  # ascending: the last is the most urgent
        self.shares = Shares()
        self.unserved = False
        """Whether no worker serves it, so that its requests wait for one."""
        self.longest = 0
        """Bytes of the longest frame of all requests since the queue was empty."""

    def __len__(self) -> int:
        return self.shares.count

    @property
    def nbytes(self) -> int:
        return self.shares.nbytes

    def __iter__(self) -> Iterator[PendingRequest]:
        for level in self.levels.values():
            for line in level.values():
                yield from line.values()

    def __contains__(self, request: PendingRequest) -> bool:
        level = self.levels.get(request.priority)
        line = level.get(request.owner) if level else None
        return line is not None and line.get(request.key) is request

    def push(self, request: PendingRequest, turn: int, *, again: bool = False) -> None:
        """Add a request. `again`: it had its turn already, and goes before all others of its priority."""
        self.longest = max(self.longest, request.longest)
        level = self.levels.get(request.priority)
        if level is None:
            level = self.levels[request.priority] = OrderedDict()
            self.priorities = sorted(self.levels)
        line = level.get(request.owner)
        if line is None:
            line = level[request.owner] = ClientQueue()
            line.turn = turn
        line[request.key] = request
        if again:
            line.move_to_end(request.key, last=False)
            level.move_to_end(request.owner, last=False)
            line.turn = 0
        self.shares.add(request)

    def first(self, most: int) -> PendingRequest | None:
        """The request whose turn it is, of those whose frames have at most `most` bytes."""
        for priority in reversed(self.priorities):
            for line in self.levels[priority].values():
                for request in line.values():
                    if request.longest <= most:
                        return request
        return None

    def rank(self, request: PendingRequest) -> tuple[int, int]:
        """The order of a queued request over all queues: the smallest is served first."""
        return -request.priority, self.levels[request.priority][request.owner].turn

    def pop(self, request: PendingRequest, turn: int) -> None:
        """Remove the request whose turn it is; its client's next one waits until the others had their turns."""
        level, owner = self.levels[request.priority], request.owner
        level.move_to_end(owner)
        level[owner].turn = turn
        self.remove(request)

    def last(self, owner: bytes) -> PendingRequest:
        """The newest of a client's requests of its lowest priority; the client must have one."""
        line = next(self.levels[priority][owner] for priority in self.priorities if owner in self.levels[priority])
        return line[next(reversed(line))]

    def remove(self, request: PendingRequest) -> None:
        """Remove a queued request."""
        level = self.levels[request.priority]
        line = level[request.owner]
        del line[request.key]
        self.shares.take(request)
        if not line:
            del level[request.owner]
            if not level:
                del self.levels[request.priority]
                self.priorities = sorted(self.levels)
