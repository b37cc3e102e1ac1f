"""The results of the example as text."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from zmq_offload.common.units import counted
from zmq_offload.compile import Compiled
from zmq_offload.plan.costs import Network, message_bytes
from zmq_offload.plan.slow import Seen

GOAL = 70.0
"""Items per second that the proposal reached."""


@dataclass(frozen=True)
class Result:
    """One way to run: the seconds of each item, the seconds between results, and the times of the stages."""

    way: str
    link: str
    latencies: list[float]
    interval: float
    seen: list[Seen] = field(default_factory=list)


def setting(compiled: Compiled, slowdown: float, workers: int) -> list[str]:
    """The device, the server, and the tensors that cross."""
    (model,) = compiled.models
    crossing = "; ".join(map(str, model.inputs))
    payload = sum(t.nbytes for t in model.inputs)
    picture = np.prod(compiled.manifest.inputs[0].shape) * 4
    return [
        f"device: one thread of this machine, slowed down {slowdown:g} times (emulated: each stage takes that many",
        "        times its processor time, sleeps for the rest, and runs alone)",
        f"server: {counted(workers, 'worker process', 'es')} of one thread on the same machine",
        f"wire:   {crossing}, {payload:,} bytes; the picture has {picture:,}",
    ]


def table(results: Sequence[Result]) -> list[str]:
    """Rate and latency of each way."""
    lines = [f"{'way':<13}{'link':<18}{'items/s':>10}{'latency ms':>12}{'95 %':>8}"]
    for r in results:
        high = statistics.quantiles(r.latencies, n=20)[-1] if len(r.latencies) > 1 else r.latencies[0]
        median = statistics.median(r.latencies)
        lines.append(f"{r.way:<13}{r.link:<18}{1 / r.interval:>10.1f}{median * 1e3:>12.1f}{high * 1e3:>8.1f}")
    return lines


def stages(compiled: Compiled, last: Result, network: Network, workers: int) -> dict[str, float]:
    """How long an item occupies each resource, in seconds."""
    (model,) = compiled.models
    return {
        "device": statistics.median(s.ended - s.began for s in last.seen),
        "uplink": network.up_time(message_bytes(model.inputs, answer=False)),
        "server": statistics.median(s.timings.compute for s in last.seen) / workers,
        "downlink": network.down_time(message_bytes(model.outputs, answer=True)),
    }


def verdict(compiled: Compiled, last: Result, network: Network, workers: int) -> list[str]:
    """The slowest stage, how near the pipeline comes to it, and whether it reaches the goal."""
    times = stages(compiled, last, network, workers)
    slowest = max(times, key=lambda name: times[name])
    shown = ", ".join(f"{name} {seconds * 1e3:.2f} ms" for name, seconds in times.items())
    rate, bound = 1 / last.interval, 1 / times[slowest]
    found = [
        f"stages: {shown} (the last pipelined run; a round trip delays items and occupies nothing)",
        f"bound:  {slowest}, {bound:.1f} items/s; reached {rate:.1f}, {rate / bound:.0%} of it",
    ]
    if rate >= GOAL:
        return [*found, f"goal:   {GOAL:.0f} items/s over the emulated link: reached"]
    why = f"the {slowest} alone allows {bound:.1f}" if bound < GOAL else "the stages' own times would have allowed it"
    return [*found, f"goal:   {GOAL:.0f} items/s over the emulated link: not reached; {why}"]
