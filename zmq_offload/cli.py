"""The command line: `zmq-offload <subcommand>`."""

from __future__ import annotations

import sys
from collections.abc import Sequence

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

# Each has main(arguments, prog), and is a package of its own, which this one does not import otherwise.
PROGRAMS = {
    "broker": ("broker.__main__", "run a broker: it balances devices' requests over workers"),
    "worker": ("workers.__main__", "run workers, which serve the subgraphs of a model repository"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Exit codes: 0 fine, 1 failed (one line on stderr), 2 wrong usage."""
    try:
        from zmq_offload.programs import own, run

        arguments = list(sys.argv[1:] if argv is None else argv)
        if arguments and arguments[0] in PROGRAMS:
            name = arguments[0]
            return int(own(PROGRAMS[name][0]).main(arguments[1:], f"zmq-offload {name}"))
        return run(lambda: _run(arguments), "zmq-offload")
    except KeyboardInterrupt:  # while the first modules are imported
        return 130


def _run(arguments: Sequence[str]) -> int:
    import importlib

    from zmq_offload.settings import Parser
    from zmq_offload.variables import warn_of_unknown

    parser = Parser(prog="zmq-offload", description="Offload subgraphs of TVM models to workers.")
    subparsers = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, (_, text) in PROGRAMS.items():
        subparsers.add_parser(name, help=text)
    for module in COMMANDS:
        importlib.import_module(module).add_parser(subparsers)
    args = parser.parse_args(arguments)
    warn_of_unknown("zmq-offload")
    return int(args.run(args) or 0)


if __name__ == "__main__":
    sys.exit(main())
