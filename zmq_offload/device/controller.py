"""Which split an item runs by, from what the items before it took. Pure: times are passed in.

The time of a split is that of the device, the link, the queue, the server and the rest. Link and queue are common to
all splits, and so is how much slower device and server are than predicted. So the items of one split tell of the
others. A few items explore: those of which nothing is known, and now and then one of a place that is not in use.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple, TypeAlias

from zmq_offload.device.choice import EVERY, KNOWN, LEAST, MISSES, RARELY, SHARE, UNKNOWN, Estimate
from zmq_offload.device.linkestimate import LinkEstimate

Objective: TypeAlias = Literal["latency", "throughput", "device-time"]

HERE = -1
"""The number of the whole model on this device."""

BETTER = 0.85
"""Another split is clearly better if it takes at most this share of the time."""

AGREE = 5
"""Items in a row for which another split must be clearly better before it is used."""

OFTEN = 2.0
"""The least seconds between two items that explore, once something is known of all places."""


class SplitFacts(NamedTuple):
    """What is known of a split: the bytes that it sends and receives, and predicted seconds, None where unknown."""

    name: str
    sent: int
    received: int
    device: float | None
    server: float | None


class Sample(NamedTuple):
    """Seconds of an item that a worker served. `device`: until its request is sent. `total`: from there to the reply.
    `rest`: after the reply. `queue` and `compute` are parts of the total."""

    device: float
    total: float
    queue: float
    compute: float
    rest: float


class Chosen(NamedTuple):
    """How to run an item. `split` may be `HERE`. `patience`: seconds to wait for a worker. `explores`: the item is to
    find out what the split takes. `predicted`: seconds of the whole item."""

    split: int
    patience: float
    explores: bool
    predicted: float


class Explanation(NamedTuple):
    """What is used, and why.

    Attributes
    ----------
    split : str
        The name of the split in use; "" is the whole model on this device.
    since : float
        Seconds for which it has been in use.
    why : str
        The same in words.
    predicted, measured : float
        Seconds of an item by this split, as expected and as they were lately.
    error : float
        By how much predictions were wrong lately, in shares of what was measured.
    round_trip, bandwidth, queue : float
        Of the link and the server: seconds, bytes a second, seconds.
    """

    split: str
    since: float
    why: str
    predicted: float
    measured: float
    error: float
    round_trip: float
    bandwidth: float
    queue: float


GAIN = 0.25
"""How much a measurement counts in comparison with what was known before."""


def _mixed(before: float | None, seconds: float) -> float:
    """What is known of a time after another measurement."""
    return seconds if before is None else before + GAIN * (seconds - before)


class _Stage:
    """A time that each split has of its own, on one machine. One that was predicted shows how slow the machine is."""

    __slots__ = ("_measured", "_predicted", "_slower")

    def __init__(self, predicted: Sequence[float | None]) -> None:
        self._predicted = predicted
        self._measured: list[float | None] = [None] * len(predicted)
        self._slower: float | None = None

    def add(self, split: int, seconds: float) -> None:
        self._measured[split] = _mixed(self._measured[split], seconds)
        expected = self._predicted[split]
        if expected:
            self._slower = _mixed(self._slower, seconds / expected)

    def of(self, split: int) -> float | None:
        """Seconds. None if nothing is known."""
        measured, expected = self._measured[split], self._predicted[split]
        if measured is not None or expected is None:
            return measured
        return expected if self._slower is None else expected * self._slower


class Controller:
    """For one model: call `choose` before each item, and after it one of `took`, `ran_here`, `missed`, `abandoned`.

    `local`: seconds of the whole model on this device, None if they are unknown, False if it may not run here. For the
    objective "throughput", a split takes as long as its slowest stage; for "device-time", as long as the device's part.
    """

    def __init__(
        self,
        splits: Sequence[SplitFacts],
        objective: Objective = "latency",
        *,
        local: float | Literal[False] | None = False,
        seed: int = 0,
    ) -> None:
        self._splits, self._objective, self._may_run_here = splits, objective, local is not False
        self._device = _Stage([split.device for split in splits])
        self._server = _Stage([split.server for split in splits])
        self._rest = [0.0] * len(splits)
        self._link, self._queue = LinkEstimate(), 0.0
        self._here: float | None = local or None
        self._late = Estimate()  # by how much items were later than predicted
        self._error: float | None = None
        self._measured: float | None = None
        self._used: int | None = None
        self._since = 0.0
        self._for, self._agree = HERE, 0  # a split that is better than that in use, and for how many items it was
        self._exploring = False
        self._explore_at = 0.0
        self._seen = dict.fromkeys(self._places(), (0, -math.inf))  # items there, and when the last was
        self._misses, self._missed_at, self._lost = 0, -math.inf, False

    def choose(self, now: float) -> Chosen:
        """How to run the next item."""
        if not self._exploring and now >= self._explore_at and (place := self._unclear()) is not None:
            self._exploring = True
            return self._chosen(place, True)
        return self._chosen(self._decided(now), False)

    def took(self, chosen: Chosen, sample: Sample, now: float) -> None:
        """A worker served an item, which is done."""
        split = chosen.split
        device, total, queue, compute, rest = sample
        seconds = device + total + rest
        self._judge(chosen, seconds)
        if chosen.predicted:
            self._late.add(max(0.0, seconds - chosen.predicted))
        self._device.add(split, device)
        self._server.add(split, compute)
        self._queue += GAIN * (queue - self._queue)
        self._rest[split] += GAIN * (rest - self._rest[split])
        facts = self._splits[split]
        self._link.add(facts.sent + facts.received, max(0.0, total - queue - compute))
        self._misses, self._lost = 0, False
        self._saw(chosen, seconds, now)

    def ran_here(self, chosen: Chosen, seconds: float, now: float) -> None:
        """An item was computed on this device, by choice or after a miss."""
        self._here = _mixed(self._here, seconds)
        if chosen.split == HERE:
            self._judge(chosen, seconds)
            self._saw(chosen, seconds, now)

    def missed(self, chosen: Chosen, waited: float, now: float) -> None:
        """A worker failed an item, or did not reply within its patience."""
        if now - waited >= self._missed_at:  # otherwise the same event failed several items
            self._misses += 1
            self._missed_at = now
        if self._misses >= MISSES:
            self._lost = True
        self._explored(chosen, waited, EVERY, now)

    def abandoned(self, chosen: Chosen) -> None:
        """An item was canceled, or failed on this device. That measures nothing."""
        if chosen.explores:
            self._exploring = False

    def explain(self, now: float) -> Explanation:
        """What is in use, and why."""
        split = HERE if self._used is None else self._used
        expected, link = self._expected(split) or 0.0, self._link
        name = "" if split == HERE else self._splits[split].name
        others = [
            f"{self._splits[other].name if other != HERE else 'this device'} {1e3 * seconds:.1f} ms"
            for other in self._places()
            if other != split and (seconds := self._expected(other)) is not None
        ]
        rate = 1 / link.per_byte if link.per_byte else math.inf
        why = f"{1e3 * expected:.1f} ms expected" + (f" ({', '.join(others)})" if others else "")
        if link.samples:
            why += f"; round trip {1e3 * link.round_trip:.1f} ms, {8e-6 * rate:.3g} Mbit/s"
            why += f", queue {1e3 * self._queue:.1f} ms"
        if self._lost:
            why = f"workers are lost; {why}"
        return Explanation(
            name,
            now - self._since,
            why,
            expected,
            self._measured or 0.0,
            self._error or 0.0,
            link.round_trip,
            rate,
            self._queue,
        )

    def _places(self) -> Sequence[int]:
        return [*range(len(self._splits)), HERE] if self._may_run_here else range(len(self._splits))

    def _unclear(self) -> int | None:
        """A place to explore: one of which little is known, or the one that was used longest ago. None: there is no
        other than that in use. With workers lost it is the best split."""
        if self._lost and self._may_run_here:
            known = [(cost, split) for split in range(len(self._splits)) if (cost := self._cost(split)) is not None]
            return min(known)[1] if known else 0
        others = [place for place in self._places() if place != self._used]
        little = [place for place in others if self._seen[place][0] < KNOWN]
        return min(little or others, key=lambda place: self._seen[place][1], default=None)

    def _decided(self, now: float) -> int:
        if self._lost and self._may_run_here:
            return self._use(HERE, now)
        costs = {place: cost for place in self._places() if (cost := self._cost(place)) is not None}
        used = self._used
        if not costs:
            return self._use(0 if used is None else used, now)
        best = min(costs, key=costs.__getitem__)
        if used is None or used not in costs:
            return self._use(best, now)
        if costs[best] > BETTER * costs[used]:
            self._agree = 0
            return used
        self._agree = self._agree + 1 if best == self._for else 1
        self._for = best
        return self._use(best, now) if self._agree >= AGREE else used

    def _use(self, split: int, now: float) -> int:
        if split != self._used:
            self._used, self._since, self._agree = split, now, 0
            self._measured = None
        return split

    def _cost(self, place: int) -> float | None:
        """What the objective wants little of. None if a part of it is not known."""
        device = None if place == HERE else self._device.of(place)
        if self._objective == "latency" or device is None:
            return self._expected(place)
        busy = device + self._rest[place]
        if self._objective == "device-time":
            return busy
        server, facts = self._server.of(place), self._splits[place]
        sending = self._link.per_byte * (facts.sent + facts.received)
        return None if server is None else max(busy, sending, server + self._queue)

    def _expected(self, place: int) -> float | None:
        """Seconds of a whole item."""
        if place == HERE:
            return self._here
        device, away = self._device.of(place), self._away(place)
        return None if device is None or away is None else device + away + self._rest[place]

    def _away(self, split: int) -> float | None:
        """Seconds from sending to the reply."""
        server = self._server.of(split)
        if server is None or not self._link.samples:
            return None
        facts = self._splits[split]
        return self._link.predicted(facts.sent + facts.received) + self._queue + server

    def _chosen(self, place: int, explores: bool) -> Chosen:
        """A request is waited for as long as late replies take, and as long as this device would."""
        here = self._here or 0.0
        if place == HERE:
            return Chosen(place, UNKNOWN, explores, here)
        away, device = self._away(place), self._device.of(place)
        if away is None:
            return Chosen(place, max(UNKNOWN, here), explores, 0.0)
        if explores and self._lost and here:
            patience = max(here, LEAST)
        else:
            late = self._late
            patience = max(away + 4 * (late.mean + late.deviation), 2 * away, here, LEAST)
        return Chosen(place, patience, explores, 0.0 if device is None else device + away + self._rest[place])

    def _judge(self, chosen: Chosen, seconds: float) -> None:
        self._measured = _mixed(self._measured, seconds)
        if chosen.predicted:
            self._error = _mixed(self._error, abs(chosen.predicted - seconds) / max(seconds, 1e-9))

    def _saw(self, chosen: Chosen, seconds: float, now: float) -> None:
        place = chosen.split
        self._seen[place] = self._seen[place][0] + 1, now
        if chosen.explores:
            known = all(count >= KNOWN for count, _ in self._seen.values())
            self._explored(chosen, seconds, OFTEN if known else 0.0, now)

    def _explored(self, chosen: Chosen, seconds: float, least: float, now: float) -> None:
        """An item that explored took so long: the next one waits until all of that costs a small share of the time."""
        if chosen.explores:
            self._exploring = False
            used = HERE if self._used is None else self._used
            lost = seconds - (self._expected(used) or 0.0) if least else 0.0
            self._explore_at = now + min(max(least, lost / SHARE), RARELY)
