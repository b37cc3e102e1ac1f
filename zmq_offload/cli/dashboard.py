"""`zmq-offload dashboard`: a page that shows a broker."""

from __future__ import annotations

import argparse

from zmq_offload.console.parser import Parser
from zmq_offload.console.settings import NONE, add_frontend, add_option, address
from zmq_offload.console.variables import PREFIX
from zmq_offload.errors import InvalidArgument


def add_options(parser: Parser) -> None:
    parser.description = (
        "Serve a page that shows throughput, latencies, queues, workers, models and errors of a broker, or of several "
        "together, with an hour of history. A gateway serves such a page of its broker with its option --dashboard."
    )
    parser.set_example("zmq-offload dashboard", "zmq-offload dashboard --broker tcp://broker.example:5555")
    add_frontend(parser)
    add_option(
        parser,
        "--http",
        address,
        "127.0.0.1:8080",
        "where the page is served",
        variable=f"{PREFIX}DASHBOARD",
        metavar="HOST:PORT",
    )
    parser.add_argument("--insecure", action="store_true", help="serve the page to all of a network")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    from zmq_offload.common.extras import needs

    if args.http == NONE:
        raise InvalidArgument("--http none serves no page; give HOST:PORT, such as 127.0.0.1:8080")
    with needs("gateway"):
        from zmq_offload.gateway.pageserver import serve
    return serve(args.broker, args.http, insecure=args.insecure)
