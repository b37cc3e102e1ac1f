"""A plan as text, and the numbers for its chart."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

from zmq_offload.charts.cuts import Curve, CutsChart, Point
from zmq_offload.charts.style import shortened
from zmq_offload.common.units import bandwidth_text
from zmq_offload.console.tables import Column, Table
from zmq_offload.plan.costs import OBJECTIVES, Costs, Network, Pair, Prediction, Split, Wire
from zmq_offload.plan.rules import Rules
from zmq_offload.plan.search import Decision

COLUMNS = (
    Column("CUT", folds=True),
    Column("UNTIL", folds=True),
    Column("WIRE"),
    Column("SENT", right=True, spare=3),
    Column("BACK", right=True, spare=5),
    Column("DEVICE", right=True),
    Column("ENCODE", right=True, spare=8),
    Column("UPLINK", right=True),
    Column("SERVER", right=True, spare=1),
    Column("DOWN", right=True, spare=4),
    Column("REST", right=True, spare=6),
    Column("FIXED", right=True, spare=7),
    Column("LATENCY", right=True),
    Column("RATE", right=True, spare=2),
    Column(""),
)
UNITS = "times in ms, sizes in bytes, rate in items per second when items are pipelined"
SEVERAL = "times in ms: of the best of these cuts on each link, of the best of all cuts, of the device alone"
_NAME = 26
_LINKS = 10
"""The most links in a table."""


def facts(costs: Costs, decision: Decision, machines: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """The lines above the table: a word and a sentence each."""
    network, overhead = costs.network, costs.overhead
    many = len(costs.points) - 2
    return [
        *machines,
        ("link", _ways(network)),
        ("fixed", f"{overhead.request * 1e3:.2f} ms a request and {overhead.byte * 1e9:.2f} ms a MB, measured"),
        ("looked at", f"{many} cuts, {len(decision.ranking):,} splits, for the best {decision.objective}"),
    ]


def _ways(network: Network) -> str:
    if not network.down:
        return f"{bandwidth_text(network.bandwidth)} each way, round trip {network.rtt * 1e3:.3g} ms"
    ways = f"{bandwidth_text(network.bandwidth)} up, {bandwidth_text(network.down)} down"
    return f"{ways}, round trip {network.rtt * 1e3:.3g} ms"


def link_text(network: Network) -> str:
    """A link in a title."""
    return f"{bandwidth_text(network.bandwidth)}, {network.rtt * 1e3:.3g} ms"


def table(costs: Costs, decision: Decision, rules: Rules, top: int) -> Table:
    """The best splits, then the choice, the device alone and the server alone, in milliseconds."""
    shown = list(decision.ranking[:top])
    ends = [decision.chosen, decision.local]
    ends += [p for p in decision.ranking if p.split.start == 0 and p.split.end == len(costs.points) - 1][:1]
    shown += [p for p in ends if p.split not in {s.split for s in shown}]
    chosen = [at for at, p in enumerate(shown) if p.split == decision.chosen.split]
    return Table(COLUMNS, [_row(costs, p, decision, rules) for p in shown], bold=chosen)


def _row(costs: Costs, p: Prediction, decision: Decision, rules: Rules) -> tuple[str, ...]:
    notes = ["measured" if p.measured else "estimated"]
    if p.split == decision.chosen.split:
        notes.append("chosen")
    if not rules.allow(p.split):
        notes.append("not allowed")
    tail = (f"{p.latency * 1e3:.2f}", f"{1 / max(p.interval, 1e-9):.1f}", ", ".join(notes))
    if p.local:
        return ("(device only)", *[""] * 4, f"{p.device * 1e3:.2f}", *[""] * 6, *tail)
    last = len(costs.points) - 1
    cut, until = costs.named(p.split)
    cut = "(server only)" if (p.split.start, p.split.end) == (0, last) else cut
    times = (p.device, p.encode, p.uplink, p.server, p.downlink, p.rest, p.overhead)
    cells = [f"{t * 1e3:.2f}" for t in times]
    if p.measured:
        cells[1] = ""  # encoding is fused with the operator before it and has no time of its own
    sizes = f"{p.sent:,}", f"{p.received:,}"
    return (shortened(cut, _NAME), shortened(until, _NAME), p.split.wire, *sizes, *cells, *tail)


def several(
    costs: Costs, chosen: Mapping[Pair, Sequence[Split]], links: Sequence[Network], decision: Decision
) -> Table:
    """Which of several cuts is best on each link, or on some from slow to fast, and how long the best of all takes."""
    of = OBJECTIVES[decision.objective]
    columns = (
        Column("UP", right=True), Column("RTT", right=True), Column("CUT", folds=True), Column("UNTIL", folds=True),
        Column("WIRE"), Column("TIME", right=True), Column("BEST", right=True), Column("DEVICE ONLY", right=True),
    )  # fmt: skip
    rows = []
    for link in links[:: math.ceil(len(links) / _LINKS)]:
        over = costs.over(link)
        every = [over.predict(p.split) for p in decision.ranking]
        own = [over.predict(split) for splits in chosen.values() for split in splits]
        own += [p for p in every if p.local]
        best = min(own, key=of)
        names = ("(device only)", "", "") if best.local else (*costs.named(best.split), best.split.wire)
        figures = (of(best), of(min(every, key=of)), of(over.predict(costs.local)))
        where = bandwidth_text(link.bandwidth), f"{link.rtt * 1e3:.3g} ms"
        rows.append((*where, *(shortened(name, _NAME) for name in names), *(f"{t * 1e3:.2f}" for t in figures)))
    return Table(columns, rows)


def verdict(costs: Costs, decision: Decision, rules: Rules) -> str:
    """The recommendation, in a sentence or two."""
    chosen, local, aim = decision.chosen, decision.local, decision.objective
    if chosen.local:
        return (
            f"No cut beats staying local: the whole model takes {local.latency * 1e3:.2f} ms on the device, and every "
            f"split has a worse {aim}. Run it there."
        )
    cut, until = costs.named(chosen.split)
    text = f"Cut at {cut}"
    if until:
        text += f", until {until}"
    text += (
        f", {chosen.split.wire} on the wire: {chosen.latency * 1e3:.2f} ms, {1 / chosen.interval:.1f} items per second "
        f"when pipelined, {chosen.device_time * 1e3:.2f} ms of the device's time per item"
    )
    if decision.gain >= 1:
        text += f"; {aim} {decision.gain:.1f} times as good as with all of it on the device."
    else:
        text += f". Staying local would have the better {aim}, by {1 / decision.gain:.1f} times."
    sealed = rules.on_device(costs.local)
    if sealed:
        text += f" (The rules exclude that: the device would hold {', '.join(sorted(sealed))}.)"
    if chosen.split.wire != "float32":
        text += " `zmq-offload compile --wire` measures what the encoding costs in accuracy."
    return text


def chart(costs: Costs, decision: Decision, wires: Sequence[Wire], title: str) -> CutsChart:
    """The allowed splits that run everything after the cut on the server."""
    last = len(costs.points) - 1
    allowed = {p.split: p for p in decision.ranking}

    def curve(wire: Wire) -> Curve:
        found = ((at, allowed.get(Split(at, last, wire))) for at in range(last))
        points = [Point(at, p.latency * 1e3, p.measured) for at, p in found if p is not None]
        return Curve(wire, points, [sum(t.nbytes for t in point.sent(wire)) for point in costs.points[:last]])

    chosen, local = decision.chosen, decision.local.latency * 1e3
    names = [point.name for point in costs.points]
    if chosen.local:
        return CutsChart(title, f"Chosen: device only, {local:.1f} ms", names[:-1], [*map(curve, wires)], local, None)
    cut, until = costs.named(chosen.split)
    until = until and f" until {until}"
    summary = f"Chosen: {cut}{until} as {chosen.split.wire}, {chosen.latency * 1e3:.1f} ms"
    ring = Point(chosen.split.start, chosen.latency * 1e3, chosen.measured)
    return CutsChart(title, summary, names[:-1], [*map(curve, wires)], local, ring)


def compile_command(model: Path, plan: Path, target: str | None = None, option: str = "--plan") -> str:
    """The command that compiles by a plan, for a device of this target."""
    device = "" if target is None else f" --device-target {shlex.quote(target)}"
    return f"zmq-offload compile {shlex.quote(str(model))} {option} {shlex.quote(str(plan))} --name NAME{device}"


def figures(p: Prediction) -> dict[str, float]:
    """The figures of a prediction for the plan file, in seconds and bytes."""
    times = {
        "device": p.device, "encode": p.encode, "uplink": p.uplink, "server": p.server, "downlink": p.downlink,
        "rest": p.rest, "fixed": p.overhead, "latency": p.latency, "interval": p.interval,
    }  # fmt: skip
    return {**times, "sent": p.sent, "received": p.received, "measured": p.measured}
