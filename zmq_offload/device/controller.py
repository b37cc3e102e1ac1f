"""Which split an item runs by, from what the items before it took. Pure: times are passed in.

The time of a split is that of the device, the link, the queue, the server and the rest. Link and queue are common to
all splits, and so is how much slower device and server are than predicted. So the items of one split tell of the
others. A few items explore: those of which nothing is known, and now and then one of a place that is not in use, if it
may be much better by now, and as long as all that loses little.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple, TypeAlias

from zmq_offload.device.choice import KNOWN, LEAST, MISSES, UNKNOWN, Estimate
from zmq_offload.device.linkestimate import LinkEstimate

Objective: TypeAlias = Literal["latency", "throughput", "device-time"]

HERE = -1
"""The number of the whole model on this device."""

BETTER = 0.9
"""Another split is clearly better if it takes at most this share of the time."""

AGREE = 3
"""Items in a row for which another split must be clearly better before it is used."""

OFTEN = 0.5
"""The least seconds between two items that explore, once something is known of all places."""

PROMISING = 0.9
"""A place is explored if it would take at most this share of the time, should it be as quick as it may be by now."""

AGES = 30.0
"""Seconds after which a link that was not measured with so many bytes, or a device, may be twice as quick."""

FIRST, LAST = 1.0, 8.0
"""Seconds until lost workers are tried again: after the first miss, and after many. The pause doubles."""

SHARE = 0.025
"""The share of all seconds of items that those which explore may lose."""

SAVED = 2.0
"""Items: exploring may save up so many times what one takes."""


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
        self._budget = 0.0  # seconds that items which explore may lose
        self._seen = dict.fromkeys(self._places(), (0, -math.inf))  # items there, and when the last was
        self._misses, self._missed_at, self._lost = 0, -math.inf, False
        self._pause = FIRST

    def choose(self, now: float) -> Chosen:
        """How to run the next item."""
        if not self._exploring and now >= self._explore_at:
            if (place := self._unclear(now)) is not None:
                self._exploring = True
                return self._chosen(place, True)
            self._explore_at = now + OFTEN / 2
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
        self._misses, self._lost, self._pause = 0, False, FIRST
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
        if self._misses >= MISSES and not self._lost:
            self._lost, self._explore_at = True, now + self._pause
        if chosen.explores:
            self._exploring = False
            self._explore_at = now + self._pause
            self._pause = min(2 * self._pause, LAST)
            self._budget -= waited
        if chosen.explores and not self._lost:  # the reply would have come later: the link takes so long at least
            server = self._server.of(chosen.split) or 0.0
            nbytes, least = self._bytes(chosen.split), waited - self._queue - server
            if least > self._link.predicted(nbytes):
                self._link.add(nbytes, least)

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

    def _unclear(self, now: float) -> int | None:
        """A place to explore: one of which nothing is known, or the one that may be much better than that in use by
        now. None: there is none, or it would cost more than items may for that. With workers lost it is the best
        split."""
        if self._lost and self._may_run_here:
            known = [(cost, split) for split in range(len(self._splits)) if (cost := self._cost(split)) is not None]
            return min(known)[1] if known else 0
        others = [place for place in self._places() if place != self._used]
        unknown = [place for place in others if self._little(place)]
        if unknown:
            return min(unknown, key=lambda place: self._seen[place][1])
        if self._used is None or (used := self._cost(self._used)) is None:
            return None
        found, least = None, PROMISING * used
        for place in others:
            at_best = self._at_best(place, now)
            if at_best < least and (self._expected(place) or 0.0) - (self._expected(self._used) or 0.0) <= self._budget:
                found, least = place, at_best
        return found

    def _little(self, place: int) -> bool:
        """Whether too little is known of a place to say what it takes. Of a split that was predicted, an item of
        another one is enough."""
        seen = self._seen[place][0]
        if place == HERE:
            return not seen and not self._here
        facts = self._splits[place]
        return seen < KNOWN if facts.device is None or facts.server is None else self._cost(place) is None

    def _at_best(self, place: int, now: float) -> float:
        """What a place would take if link, or device, had become quicker since it was measured."""
        if place == HERE:
            return (self._here or 0.0) * math.pow(0.5, (now - self._seen[HERE][1]) / (4 * AGES))
        facts, device, server = self._splits[place], self._device.of(place), self._server.of(place)
        nbytes = facts.sent + facts.received
        similar = max(at for split, (_, at) in self._seen.items() if split != HERE and 2 * self._bytes(split) >= nbytes)
        link = self._link.predicted(nbytes) * math.pow(0.5, min(now - similar, 10 * AGES) / AGES)
        return (device or 0.0) + (server or 0.0) + link + self._rest[place]

    def _bytes(self, split: int) -> int:
        facts = self._splits[split]
        return facts.sent + facts.received

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
        # An item that explores is of use only if it is quicker than this device.
        if explores and here and (self._lost or self._used == HERE):
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
            self._explored(seconds, now)
        else:
            self._budget = min(self._budget + SHARE * seconds, SAVED * seconds)

    def _explored(self, seconds: float, now: float) -> None:
        """An item that explored took so long. What it lost is taken from what items may lose."""
        self._exploring = False
        if any(map(self._little, self._places())):
            self._explore_at = now
            return
        used = HERE if self._used is None else self._used
        self._budget -= max(0.0, seconds - (self._expected(used) or 0.0))
        self._explore_at = now + OFTEN
