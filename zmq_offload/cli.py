"""The command line: `zmq-offload <subcommand>`."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence

from zmq_offload.errors import OffloadError

# Each module has add_parser(subparsers) and imports what is heavy when it runs: `status` works without TVM.
COMMANDS = ("zmq_offload.compile.command", "zmq_offload.status", "zmq_offload.demo.command", "zmq_offload.keys_command")


def main(argv: Sequence[str] | None = None) -> int:
    """Exit codes: 0 fine, 1 failed (one line on stderr), 2 wrong usage."""
    parser = argparse.ArgumentParser(prog="zmq-offload", description="Offload subgraphs of TVM models to workers.")
    subparsers = parser.add_subparsers(required=True, metavar="COMMAND")
    for module in COMMANDS:
        importlib.import_module(module).add_parser(subparsers)
    args = parser.parse_args(argv)
    try:
        return int(args.run(args))
    except OffloadError as error:
        print(f"zmq-offload: error: {error.message}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
