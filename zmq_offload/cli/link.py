"""`zmq-offload link`: emulate a network link to a broker."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from zmq_offload.common.extras import needs
from zmq_offload.common.units import duration
from zmq_offload.console.outputs import check_outputs
from zmq_offload.console.parser import Parser
from zmq_offload.console.tables import Column, Table, show
from zmq_offload.errors import InvalidArgument

if TYPE_CHECKING:
    from collections.abc import Sequence

    from zmq_offload.charts.links import Recorded
    from zmq_offload.testing.link.relay import Relay
    from zmq_offload.testing.link.trace import Trace


def add_options(parser: Parser) -> None:
    parser.description = (
        "Forward TCP connections as a network link would: with limited bandwidth, delay, jitter and outages. Ctrl-C "
        "ends it."
    )
    parser.set_example(
        "zmq-offload link --to tcp://127.0.0.1:5555 --listen tcp://127.0.0.1:6555 \\\n    --bandwidth 50Mbit --rtt 10ms"
    )
    parser.add_argument("--to", metavar="ENDPOINT", help="endpoint to forward to, tcp://HOST:PORT")
    parser.add_argument(
        "--listen",
        default="tcp://127.0.0.1:*",
        metavar="ENDPOINT",
        help="endpoint to listen at (default: tcp://127.0.0.1:*, a free port, which is printed)",
    )
    parser.add_argument("--bandwidth", metavar="B", help="rate in each direction, e.g. 100Mbit (default: unlimited)")
    parser.add_argument("--rtt", default="0ms", metavar="T", help="round-trip time, e.g. 10ms (default: 0ms)")
    parser.add_argument(
        "--jitter", default="0ms", metavar="T", help="how far the round-trip time varies, up or down (default: 0ms)"
    )
    parser.add_argument(
        "--outage",
        action="append",
        default=[],
        metavar="START:SECONDS[:refuse]",
        help="let nothing through for SECONDS from second START on; with :refuse, reset and refuse connections",
    )
    parser.add_argument(
        "--trace",
        metavar="FILE|NAME",
        help="follow a recorded link, in place of --bandwidth, --rtt and --outage: a CSV file or a name",
    )
    parser.add_argument("--list-traces", action="store_true", help="list the names of recorded links, and end")
    parser.add_argument(
        "--plot",
        metavar="FILE",
        help="draw the recorded link, or all of them, and end: an SVG or PNG file",
    )
    parser.add_argument(
        "--commands",
        action="store_true",
        help="obey commands on standard input: stall, refuse, restore, change B RTT JITTER",
    )
    parser.set_defaults(run=run, usage_error=parser.error)


def run(args: argparse.Namespace) -> int:
    from zmq_offload.testing.link.conditions import Conditions, Outage, check_alone
    from zmq_offload.testing.link.relay import Relay
    from zmq_offload.testing.link.trace import NAMES, Trace

    try:
        trace = None if args.trace is None else Trace.find(args.trace)
        if args.list_traces or args.plot:
            return _show([Trace.named(name) for name in NAMES] if trace is None else [trace], args.plot)
        if args.to is None:
            args.usage_error("--to is missing; give the endpoint of a broker, tcp://HOST:PORT")
        if trace is not None:
            check_alone(args.bandwidth, args.rtt, args.outage)
            conditions = Conditions(jitter=duration(args.jitter))
        else:
            conditions = Conditions.parse(args.bandwidth, args.rtt, args.jitter)
        relay = Relay(args.to, args.listen, conditions, [Outage.parse(text) for text in args.outage], trace)
    except InvalidArgument as error:
        args.usage_error(error.message)
    _be_punctual()
    like = conditions if trace is None else f"trace {trace.name}, {trace.length:g} s, again and again"
    print(f"{relay.endpoint} -> {args.to}: {like}", flush=True)
    try:
        if args.commands:
            relay.run(sys.stdin.fileno(), _Commands(relay))
        else:
            relay.run()
    finally:
        relay.close()
    return 0


def _show(traces: Sequence[Trace], plot: str | None) -> int:
    """List traces, or draw them."""
    if plot is None:
        headings = ("trace", "length", "Mbit/s up", "Mbit/s down", "round trip", "stalled")
        show(Table(list(map(Column, headings)), [_row(trace) for trace in traces]))
        return 0
    with needs("compile"):
        from zmq_offload.charts import links, style

        file = Path(plot)
        check_outputs(file)
        style.save(links.draw([_recorded(trace) for trace in traces]), file)
    return 0


def _row(trace: Trace) -> list[str]:
    moments = [moment for moment in trace.moments if not moment.stalled]
    ranges = [sorted(getattr(moment, name) for moment in moments) for name in ("up", "down", "delay")]
    up, down = (f"{rates[0] / 1e6:.3g} to {rates[-1] / 1e6:.3g}" for rates in ranges[:2])
    rtt = f"{2e3 * ranges[2][0]:.0f} to {2e3 * ranges[2][-1]:.0f} ms"
    periods = zip(trace.moments, [moment.seconds for moment in trace.moments[1:]] + [trace.length], strict=True)
    stalled = sum(end - moment.seconds for moment, end in periods if moment.stalled)
    return [trace.name, f"{trace.length:g} s", up, down, rtt, f"{stalled:g} s"]


def _recorded(trace: Trace) -> Recorded:
    from zmq_offload.charts.links import Recorded

    seconds, up, down, delay, stalled = zip(*trace.moments, strict=True)
    return Recorded(
        trace.name,
        (*seconds, trace.length),
        [rate / 1e6 for rate in up],
        [rate / 1e6 for rate in down],
        [2e3 * each for each in delay],
        stalled,
    )


class _Commands:
    """Commands on standard input, one a line, each answered by "ok". The end of the input ends the link."""

    def __init__(self, relay: Relay) -> None:
        self._relay = relay
        self._rest = b""

    def __call__(self) -> bool:
        data = os.read(sys.stdin.fileno(), 4096)
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            self._obey(line.decode().split())
            print("ok", flush=True)
        return bool(data)

    def _obey(self, words: list[str]) -> None:
        from zmq_offload.testing.link.conditions import Conditions

        match words:
            case ["stall" | "refuse" as kind]:
                self._relay.go(kind)
            case ["restore"]:
                self._relay.go(None)
            case ["change", bandwidth, rtt, jitter]:
                given = None if bandwidth == "unlimited" else bandwidth
                self._relay.change(Conditions.parse(given, rtt, jitter))
            case _:
                raise InvalidArgument(
                    f"{' '.join(words)!r} is not a command; use stall, refuse, restore or change B RTT JITTER"
                )


def _be_punctual() -> None:
    """Run before other processes, if the system allows it: a real link needs no CPU and is never late."""
    with contextlib.suppress(OSError):
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
    with contextlib.suppress(OSError), open("/proc/self/timerslack_ns", "w") as slack:
        slack.write("1")
