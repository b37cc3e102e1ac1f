"""The command line: `zmq-offload <subcommand>`."""

from __future__ import annotations

import sys

TYPE_CHECKING = False  # typing's is not imported: what comes before `main` is not protected from Ctrl-C
if TYPE_CHECKING:
    from collections.abc import Sequence

    from zmq_offload.console.settings import Parser

# Each module has add_parser(subparsers) and imports what is heavy when it runs: `status` works without TVM.
COMMANDS = (
    "zmq_offload.cli.compile",
    "zmq_offload.cli.profile",
    "zmq_offload.cli.plan",
    "zmq_offload.cli.status",
    "zmq_offload.cli.load",
    "zmq_offload.cli.link",
    "zmq_offload.cli.keys",
    "zmq_offload.cli.demo",
)

# Each has main(arguments, prog), and is a package of its own, which this one does not import otherwise.
PROGRAMS = {
    "broker": ("broker.__main__", "run a broker: it balances devices' requests over workers"),
    "worker": ("workers.__main__", "run workers, which serve the subgraphs of a model repository"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Exit codes: 0 fine, 1 failed (one line on stderr), 2 wrong usage."""
    try:
        from zmq_offload.console.interrupts import quiet_ctrl_c

        with quiet_ctrl_c():
            from zmq_offload.console.programs import own, run

            arguments = list(sys.argv[1:] if argv is None else argv)
            if arguments and arguments[0] in PROGRAMS:
                name = arguments[0]
                return int(own(PROGRAMS[name][0]).main(arguments[1:], f"zmq-offload {name}"))
            return run(lambda: _run(arguments), "zmq-offload")
    except KeyboardInterrupt:  # before there is a handler
        return 130


def _run(arguments: Sequence[str]) -> int:
    from zmq_offload.console import dotenv
    from zmq_offload.console.variables import warn_of_unknown

    dotenv.load()
    args = make_parser().parse_args(arguments)
    warn_of_unknown("zmq-offload")
    return int(args.run(args) or 0)


def make_parser() -> Parser:
    """The parser of all commands."""
    import importlib

    from zmq_offload.console.settings import Parser

    parser = Parser(prog="zmq-offload", description="Offload subgraphs of TVM models to workers.")
    subparsers = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, (_, text) in PROGRAMS.items():
        subparsers.add_parser(name, help=text)
    for module in COMMANDS:
        importlib.import_module(module).add_parser(subparsers)
    return parser


if __name__ == "__main__":
    sys.exit(main())
