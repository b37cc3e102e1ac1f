"""The command line: `zmq-offload <subcommand>`."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence

from zmq_offload import __version__
from zmq_offload.settings import run

# Each module has add_parser(subparsers) and imports what is heavy when it runs: `status` works without TVM.
COMMANDS = (
    "zmq_offload.compile.command",
    "zmq_offload.compile.profile.command",
    "zmq_offload.plan.command",
    "zmq_offload.status",
    "zmq_offload.loadgen.command",
    "zmq_offload.link.command",
    "zmq_offload.keys_command",
    "zmq_offload.demo.command",
)


def main(argv: Sequence[str] | None = None) -> int:
    """Exit codes: 0 fine, 1 failed (one line on stderr), 2 wrong usage."""
    parser = argparse.ArgumentParser(prog="zmq-offload", description="Offload subgraphs of TVM models to workers.")
    parser.add_argument("--version", action="version", version=f"zmq-offload {__version__}")
    subparsers = parser.add_subparsers(required=True, metavar="COMMAND")
    for module in COMMANDS:
        importlib.import_module(module).add_parser(subparsers)
    args = parser.parse_args(argv)
    return run(lambda: args.run(args), "zmq-offload")


if __name__ == "__main__":
    sys.exit(main())
