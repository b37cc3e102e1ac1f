"""How adaptive bundles fare on links that change: `python -m tests.simulation.adaptive`.

The real controller in simulated time. A camera gives an item every 100 ms, or later if the one before it is not done.
Messages pass a recorded link byte by byte. The table has the mean latency of the best split alone, or of the device
alone if that is better, of the controller, and of the oracle, which runs each item by the split that turns out to be
the quickest.

The models are made up: bytes and times are of the size of a MobileNetV2 (224 x 224), of a text detector with large
features (320 x 320), and of a transformer of six layers.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Sequence
from typing import NamedTuple

from zmq_offload.device.controller import HERE, Chosen, Controller, Sample, SplitFacts
from zmq_offload.testing.link.trace import NAMES, Trace

PERIOD = 0.1
"""Seconds between two items of the camera."""

DEADLINE = 0.1


class Way(NamedTuple):
    """A split: bytes there and back, and ms of the device (on a fast machine), of the server, and of the rest."""

    name: str
    sent: int
    received: int
    device: float
    server: float
    rest: float = 0.1


MODELS: dict[str, tuple[float, tuple[Way, ...]]] = {
    "classifier": (
        9.0,
        (
            Way("input", 150_000, 4_000, 0.3, 5.0),
            Way("stage2@int8", 75_000, 4_000, 3.2, 3.4),
            Way("stage4@int8", 25_000, 4_000, 5.6, 2.2),
            Way("stage6@int8", 8_000, 4_000, 7.9, 0.9),
        ),
    ),
    "text detector": (
        30.0,
        (
            Way("input@int8", 307_000, 102_000, 0.8, 16.0),
            Way("neck@int8", 153_000, 102_000, 14.0, 8.0),
            Way("fused@int8", 51_000, 102_000, 22.0, 4.0),
        ),
    ),
    "transformer": (
        42.0,
        (
            Way("tokens", 2_000, 3_000, 0.2, 24.0),
            Way("layer2@float16", 196_000, 3_000, 14.0, 16.0),
            Way("layer4@int8", 98_000, 3_000, 28.0, 8.0),
        ),
    ),
}
"""By name: ms of the whole model on a fast machine, and its splits."""


def passes(trace: Trace, nbytes: int, at: float, way: str) -> float:
    """When the last of so many bytes has arrived that are sent from a time on."""
    bits, changes = 8.0 * nbytes, len(trace.moments)
    while True:
        moment = trace.at(at)
        index = trace.moments.index(moment)
        end = trace.moments[index + 1].seconds if index + 1 < changes else trace.length
        lasts = end - at % trace.length
        rate = 0.0 if moment.stalled else getattr(moment, way)
        if bits <= rate * lasts:
            return at + (bits / rate if rate else 0.0) + moment.delay
        bits -= rate * lasts
        at += max(lasts, 1e-9)


class World:
    """A device, a link and a server. Times vary by a tenth, and are the same for whoever asks for the same item."""

    def __init__(self, model: str, trace: Trace, slower: float, seed: int) -> None:
        whole, self.ways = MODELS[model]
        self.whole, self._trace, self._slower, self._seed = whole * slower / 1e3, trace, slower, seed

    def item(self, number: int, way: Way, began: float) -> Sample:
        """What an item takes by a split."""
        chance = random.Random(self._seed * 1_000_003 + number)
        noise = 1 + 0.1 * abs(chance.gauss(0, 1))
        device, server = noise * way.device * self._slower / 1e3, noise * way.server / 1e3
        there = passes(self._trace, way.sent + 300, began + device, "up")
        back = passes(self._trace, way.received + 200, there + server, "down")
        return Sample(device, back - began - device, 0.0, server, noise * way.rest * self._slower / 1e3)

    def here(self, number: int) -> float:
        """What an item takes on the device alone."""
        return self.whole * (1 + 0.1 * abs(random.Random(self._seed * 1_000_003 + number).gauss(0, 1)))


def latency(sample: Sample) -> float:
    return sample.device + sample.total + sample.rest


class Course(NamedTuple):
    """The latencies of all items, in seconds, and how often the split changed."""

    latencies: list[float]
    changes: int

    @property
    def mean(self) -> float:
        return sum(self.latencies) / len(self.latencies)

    @property
    def p99(self) -> float:
        return sorted(self.latencies)[len(self.latencies) * 99 // 100]

    @property
    def late(self) -> float:
        """The share of the items that took longer than the deadline."""
        return sum(one > DEADLINE for one in self.latencies) / len(self.latencies)


def static(world: World, way: Way, seconds: float) -> Course:
    """Always one split."""
    now, found = 0.0, []
    while now < seconds:
        found.append(latency(world.item(len(found), way, now)))
        now += max(PERIOD, found[-1])
    return Course(found, 0)


def alone(world: World, seconds: float) -> Course:
    """Always the device alone."""
    now, found = 0.0, []
    while now < seconds:
        found.append(world.here(len(found)))
        now += max(PERIOD, found[-1])
    return Course(found, 0)


def oracle(world: World, seconds: float, *, local: bool) -> Course:
    """Each item by the split that turns out to be the quickest."""
    now, found, changes, last = 0.0, list[float](), 0, -2
    while now < seconds:
        costs = [latency(world.item(len(found), way, now)) for way in world.ways]
        if local:
            costs.append(world.here(len(found)))
        best = min(range(len(costs)), key=costs.__getitem__)
        changes, last = changes + (best != last), best
        found.append(costs[best])
        now += max(PERIOD, found[-1])
    return Course(found, changes - 1)


def controlled(world: World, seconds: float, *, local: bool, predicted: bool = True) -> Course:
    """By the controller. A request that is late is given up and computed here, where that is possible."""
    facts = [
        SplitFacts(
            w.name, w.sent, w.received, w.device / 1e3 if predicted else None, w.server / 1e3 if predicted else None
        )
        for w in world.ways
    ]
    controller = Controller(facts, local=None if local else False)
    now, found, changes, last = 0.0, list[float](), 0, None
    while now < seconds:
        chosen = controller.choose(now)
        found.append(_run(world, controller, chosen, len(found), now, local=local))
        if not chosen.explores:
            changes, last = changes + (last not in (None, chosen.split)), chosen.split
        now += max(PERIOD, found[-1])
    return Course(found, changes)


def _run(world: World, controller: Controller, chosen: Chosen, number: int, now: float, *, local: bool) -> float:
    if chosen.split == HERE:
        seconds = world.here(number)
        controller.ran_here(chosen, seconds, now + seconds)
        return seconds
    sample = world.item(number, world.ways[chosen.split], now)
    if local and sample.total > chosen.patience:
        given_up = now + sample.device + chosen.patience
        controller.missed(chosen, chosen.patience, given_up)
        seconds = world.here(number)
        controller.ran_here(chosen, seconds, given_up + seconds)
        return given_up + seconds - now
    controller.took(chosen, sample, now + latency(sample))
    return latency(sample)


class Row(NamedTuple):
    """Mean latencies of a model on a link, in seconds."""

    model: str
    trace: str
    slower: float
    best: Course
    best_name: str
    controller: Course
    oracle: Course


def row(model: str, trace: str, slower: float, seconds: float, seed: int, *, local: bool) -> Row:
    world = World(model, Trace.named(trace), slower, seed)
    courses = {way.name: static(world, way, seconds) for way in world.ways}
    if local:
        courses["device alone"] = alone(world, seconds)
    name = min(courses, key=lambda name: courses[name].mean)
    adaptive, best = controlled(world, seconds, local=local), oracle(world, seconds, local=local)
    return Row(model, trace, slower, courses[name], name, adaptive, best)


def described(rows: Sequence[Row], seconds: float) -> list[str]:
    """A table, and what it comes to."""
    lines = [
        "| model | link | device | best split alone | controller | oracle | controller / oracle | ... / best alone "
        "| p99 ms: best alone, controller, oracle | over 100 ms | changes a minute |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for r in rows:
        ms = [f"{1e3 * c.mean:.1f} ms" for c in (r.best, r.controller, r.oracle)]
        p99 = ", ".join(f"{1e3 * c.p99:.0f}" for c in (r.best, r.controller, r.oracle))
        late = ", ".join(f"{c.late:.0%}" for c in (r.best, r.controller, r.oracle))
        lines.append(
            f"| {r.model} | {r.trace} | {r.slower:g}x | {ms[0]} ({r.best_name}) | {ms[1]} | {ms[2]} "
            f"| {r.controller.mean / r.oracle.mean:.2f}x | {r.controller.mean / r.best.mean:.2f}x | {p99} | {late} "
            f"| {60 * r.controller.changes / seconds:.1f} |"
        )
    changing = [r for r in rows if r.trace != "steady-5g"]
    against = [r.controller.mean / r.oracle.mean for r in rows]
    best = [r.controller.mean / r.best.mean for r in rows]
    gain, possible = (
        1 - sum(getattr(r, who).mean / r.best.mean for r in changing) / max(1, len(changing))
        for who in ("controller", "oracle")
    )
    lines += [
        "",
        f"against the oracle: {sum(against) / len(against):.3f} on average, {max(against):.3f} at most; "
        f"{sum(one <= 1.1 for one in against)} of {len(rows)} within 1.10",
        f"against the best split alone: {sum(best) / len(best):.3f} on average, {max(best):.3f} at most; "
        f"{sum(one <= 1.03 for one in best)} of {len(rows)} within 1.03",
        f"less than the best split alone, where links change: {gain:.1%} on average (the oracle: {possible:.1%})",
    ]
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation.adaptive", description=__doc__.split("\n\n")[0])
    parser.add_argument("--seconds", type=float, default=240.0, help="of each run (default 240; a trace has 120)")
    parser.add_argument("--seed", type=int, default=7, help="of the times (default 7)")
    parser.add_argument("--slower", type=float, nargs="+", default=[3.0, 8.0], help="how slow the device is (3 8)")
    parser.add_argument("--sealed", action="store_true", help="bundles that hold no whole model")
    args = parser.parse_args()
    rows = [
        row(model, trace, slower, args.seconds, args.seed, local=not args.sealed)
        for model in MODELS
        for slower in args.slower
        for trace in NAMES
    ]
    print("\n".join(described(rows, args.seconds)))


if __name__ == "__main__":
    main()
