"""`zmq-offload link`."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from typing import TYPE_CHECKING, Any

from zmq_offload.errors import InvalidArgument

if TYPE_CHECKING:
    from zmq_offload.testing.link.relay import Relay


def add_parser(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "link",
        help="emulate a network link to a broker: bandwidth, delay, jitter, outages",
        description="Pass TCP connections on as a network link would, until interrupted.",
    )
    parser.add_argument("--to", required=True, metavar="ENDPOINT", help="where the link leads, tcp://HOST:PORT")
    parser.add_argument(
        "--listen",
        default="tcp://127.0.0.1:*",
        metavar="ENDPOINT",
        help="where it begins (default: %(default)s, a free port, which is printed)",
    )
    parser.add_argument("--bandwidth", metavar="B", help="rate in each direction, 100Mbit (default: unlimited)")
    parser.add_argument(
        "--rtt", default="0ms", metavar="T", help="delay, there and back together, as 10ms (default: 0ms)"
    )
    parser.add_argument(
        "--jitter", default="0ms", metavar="T", help="how far the round trip varies, up or down (default: 0ms)"
    )
    parser.add_argument(
        "--outage",
        action="append",
        default=[],
        metavar="START:SECONDS[:refuse]",
        help="nothing gets through from second START on; with :refuse, connections are reset and refused",
    )
    parser.add_argument(
        "--commands",
        action="store_true",
        help="obey lines on standard input (stall, refuse, restore, change B RTT JITTER)",
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
    """Lines on standard input, each answered by a line; the end of it ends the link."""

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
                    f"command {' '.join(words)!r} is not one of stall, refuse, restore, change B RTT JITTER"
                )


def _be_punctual() -> None:
    """A real link takes no CPU and is never late: ask the scheduler for what comes nearest to that, if it allows it."""
    with contextlib.suppress(OSError):
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
    with contextlib.suppress(OSError), open("/proc/self/timerslack_ns", "w") as slack:
        slack.write("1")
