"""`zmq-offload link`: emulate a network link to a broker."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from typing import TYPE_CHECKING

from zmq_offload.console.parser import Parser
from zmq_offload.errors import InvalidArgument

if TYPE_CHECKING:
    from zmq_offload.testing.link.relay import Relay


def add_options(parser: Parser) -> None:
    parser.description = (
        "Forward TCP connections as a network link would: with limited bandwidth, delay, jitter and outages. Ctrl-C "
        "ends it."
    )
    parser.set_example(
        "zmq-offload link --to tcp://127.0.0.1:5555 --listen tcp://127.0.0.1:6555 \\\n    --bandwidth 50Mbit --rtt 10ms"
    )
    parser.add_argument("--to", required=True, metavar="ENDPOINT", help="endpoint to forward to, tcp://HOST:PORT")
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
        "--commands",
        action="store_true",
        help="obey commands on standard input: stall, refuse, restore, change B RTT JITTER",
    )
    parser.set_defaults(run=run, usage_error=parser.error)


def run(args: argparse.Namespace) -> int:
    from zmq_offload.testing.link.conditions import Conditions, Outage
    from zmq_offload.testing.link.relay import Relay

    try:
        conditions = Conditions.parse(args.bandwidth, args.rtt, args.jitter)
        relay = Relay(args.to, args.listen, conditions, [Outage.parse(text) for text in args.outage])
    except InvalidArgument as error:
        args.usage_error(error.message)
    _be_punctual()
    print(f"{relay.endpoint} -> {args.to}: {conditions}", flush=True)
    try:
        if args.commands:
            relay.run(sys.stdin.fileno(), _Commands(relay))
        else:
            relay.run()
    finally:
        relay.close()
    return 0


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
