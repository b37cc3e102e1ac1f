"""The command line: `zmq-offload COMMAND`."""

from __future__ import annotations

import sys

TYPE_CHECKING = False  # typing is not imported: Ctrl-C is not handled before `main` runs
if TYPE_CHECKING:
    from collections.abc import Sequence

    from zmq_offload.console.parser import Parser

# Each module has add_options(parser), and imports slow packages only when it runs: `status` works without TVM.
COMMANDS = {
    "compile": ("zmq_offload.cli.compile", "split a model and compile both sides"),
    "export": ("zmq_offload.cli.export", "write a model repository for Triton"),
    "image": ("zmq_offload.cli.image", "write all that a device needs into a folder"),
    "profile": ("zmq_offload.cli.profile", "show where the time of a model goes, by function"),
    "plan": ("zmq_offload.cli.plan", "find the best place to cut a model"),
    "status": ("zmq_offload.cli.status", "show a broker's workers, models and queues"),
    "models": ("zmq_offload.cli.models", "choose the versions and labels that workers serve"),
    "top": ("zmq_offload.cli.top", "show what a fabric does now, on the whole terminal"),
    "doctor": ("zmq_offload.cli.doctor", "find what is wrong with a machine, its files, ports and broker"),
    "dashboard": ("zmq_offload.cli.dashboard", "serve a page that shows a broker"),
    "load": ("zmq_offload.cli.load", "measure throughput and latency of a model under load"),
    "link": ("zmq_offload.cli.link", "emulate a network link to a broker"),
    "keys": ("zmq_offload.cli.keys", "make, authorize and revoke keys"),
    "demo": ("zmq_offload.cli.demo", "run a split network on this machine and check it"),
    "completion": ("zmq_offload.cli.completion", "print a completion script for a shell"),
}

# Each package has main(arguments, prog) in __main__ and add_options(parser) in config. Nothing else here imports them.
PROGRAMS = {
    "broker": ("broker", "run a broker, which passes requests to workers"),
    "worker": ("workers", "run workers, which serve the models of a repository"),
    "gateway": ("zmq_offload.gateway", "run a gateway, which takes requests over HTTP and gRPC"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command. Exit codes: 0 success, 1 failure (one line on stderr), 2 wrong usage."""
    try:
        from zmq_offload.console.interrupts import quiet_ctrl_c

        with quiet_ctrl_c():
            from zmq_offload.console.programs import own, run

            arguments = list(sys.argv[1:] if argv is None else argv)
            try:
                if arguments and arguments[0] in PROGRAMS:
                    name = arguments[0]
                    return int(own(f"{PROGRAMS[name][0]}.__main__").main(arguments[1:], f"zmq-offload {name}"))
                return run(lambda: _run(arguments), "zmq-offload")
            except ModuleNotFoundError as error:
                if (error.name or "").partition(".")[0] not in ("zmq_offload", "broker", "workers"):
                    raise
                shown = next((word for word in arguments if not word.startswith("-")), "")
                print(
                    f"zmq-offload: error: the command {shown!r} is not in a device image; run it where zmq-offload is "
                    "installed",
                    file=sys.stderr,
                )
                return 1
    except KeyboardInterrupt:  # before there is a handler
        return 130


def _run(arguments: Sequence[str]) -> int:
    from zmq_offload.console import dotenv
    from zmq_offload.console.variables import warn_of_unknown

    dotenv.load()
    # Importing the module of each command would take longer than `status` does.
    args = make_parser(next((word for word in arguments if not word.startswith("-")), "")).parse_args(arguments)
    warn_of_unknown("zmq-offload")
    return int(args.run(args) or 0)


def make_parser(only: str | None = None) -> Parser:
    """The parser of all commands and programs; with `only`, no options but those of one command are added."""
    import importlib

    from zmq_offload.console.configfile import add_config
    from zmq_offload.console.parser import Parser
    from zmq_offload.console.programs import own

    parser = Parser(prog="zmq-offload", description="Offload parts of neural networks to shared workers.")
    parser.set_example("zmq-offload demo", "zmq-offload compile --help")
    subparsers = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, (package, text) in PROGRAMS.items():
        program = subparsers.add_parser(name, help=text)
        if only is None:
            own(f"{package}.config").add_options(program)
    for name, (module, text) in COMMANDS.items():
        command = subparsers.add_parser(name, help=text)
        if only in (None, name):
            importlib.import_module(module).add_options(command)
            if command.config is None:
                add_config(command, name)
    return parser


if __name__ == "__main__":
    sys.exit(main())
