"""`zmq-offload completion`: print a script with which a shell completes commands, options and file names."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

from zmq_offload.common.extras import needs
from zmq_offload.console import settings
from zmq_offload.console.parser import Parser

SHELLS = ("bash", "zsh")

_FOLDERS = ("DIR",)
_FILES = ("FILE", "PNG", "MODEL", "FILE.key", "MODEL-OR-BUNDLE")


def add_options(parser: Parser) -> None:
    parser.description = (
        "Print a script with which a shell completes commands, options and file names. Print it again after an update."
    )
    parser.set_example(
        "zmq-offload completion bash > \\\n    ~/.local/share/bash-completion/completions/zmq-offload",
        "zmq-offload completion zsh > ~/.zfunc/_zmq-offload",
    )
    parser.add_argument("shell", choices=SHELLS, metavar="SHELL", help=" or ".join(SHELLS))
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    with needs("cli"):
        import shtab
    from zmq_offload.cli.main import make_parser

    whole = make_parser()
    for parser in parsers(whole):
        parser.complete_options()
        for action in parser._actions:
            # The attribute that shtab reads. Paths are completed by the shell, all else by the parser's choices.
            if action.metavar in _FOLDERS or action.type is settings.folder:
                action.complete = shtab.DIRECTORY  # type: ignore[attr-defined]
            elif action.metavar in _FILES or action.type in (settings.file, settings.path, Path):
                action.complete = shtab.FILE  # type: ignore[attr-defined]
    print(shtab.complete(whole, args.shell))
    return 0


def parsers(parser: Parser) -> Iterator[Parser]:
    """A parser and the parsers of all its commands."""
    yield parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                yield from parsers(command)
