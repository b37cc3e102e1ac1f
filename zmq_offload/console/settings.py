"""Options of the programs: an argument over an environment variable over a default."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from zmq_offload.common.suggest import did_you_mean
from zmq_offload.common.version import __version__
from zmq_offload.console.programs import shortened
from zmq_offload.console.variables import PREFIX
from zmq_offload.errors import OffloadError

FRONTEND = "tcp://127.0.0.1:5555"
"""Where a broker listens for clients, unless told otherwise."""


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, suggests what was meant, and names a variable whose value is wrong.

    A program gets `--version`; so do its commands, unless they have an option of that name.
    """

    _commands: Any = None

    def add_subparsers(self, **arguments: Any) -> Any:
        self._commands = super().add_subparsers(**arguments)
        return self._commands

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        args = list(sys.argv[1:] if args is None else args)
        if "--version" not in self._option_string_actions:
            text = f"zmq-offload {__version__}"
            self.add_argument("--version", action="version", version=text, help="show the version and exit")
        self._check_names(args)
        try:
            found, rest = super().parse_known_args(args, namespace)
        except _WrongVariable as error:
            self.error(str(error))
        if rest:
            self.error(f"unexpected argument {rest[0]!r}")
        return found, rest

    def _check_names(self, args: Sequence[str]) -> None:
        """Find unknown commands and options first: argparse would rather say what else is missing because of them."""
        options = self._option_string_actions
        if self._commands is not None:
            for arg in args:
                if arg in self._commands.choices:
                    return
                if not arg.startswith("-"):
                    names = list(self._commands.choices)
                    meant = did_you_mean(arg, names) or f"; the commands are {', '.join(names)}"
                    self.error(f"unknown command {arg!r}{meant}")
                if not any(known.startswith(arg) for known in options):
                    self.error(f"unknown option {arg}{did_you_mean(arg, options)}")
            return
        for arg in args:
            name = arg.partition("=")[0]
            if arg == "--":
                return
            if name.startswith("--") and " " not in name and not any(known.startswith(name) for known in options):
                self.error(f"unknown option {name}{did_you_mean(name, options)}")

    def error(self, message: str) -> NoReturn:
        """One line; `--help` has the usage. Exits with 2."""
        lost = message.startswith(("unknown", "unexpected", "the following arguments are required"))
        see = f" (see {self.prog} --help)" if lost else ""
        self.exit(2, f"{self.prog}: error: {shortened(message)}{see}\n")


def add_picture(parser: argparse.ArgumentParser, default: str) -> None:
    """The option for the picture that a command draws."""
    help = f"picture to write (default: {default})"
    parser.add_argument("-o", "--output", type=path, default=Path(default), metavar="PNG", help=help)


def add_option(
    parser: argparse.ArgumentParser,
    flag: str,
    kind: Callable[[str], Any],
    default: Any,
    help: str,
    *,
    variable: str | None = None,
    bare: bool = False,
    **more: Any,
) -> None:
    """Add `--some-flag`, which falls back to ZMQ_OFFLOAD_SOME_FLAG (or to `variable`) and then to `default`.

    A value from the environment goes through `kind` as one from the command line does (argparse does that with default
    strings), and its error names the variable. `zmq_offload.console.variables` must have it: one name, one meaning.

    With `bare` these are the values of the flag without one; without the flag the option is None.
    """
    variable = variable or _variable(flag)
    shown = "" if default is None else f", default {default}"
    given = os.environ.get(variable)
    value = _FromEnvironment.of(variable, given) if given else default
    values = {"nargs": "?", "const": value} if bare else {"default": value}
    parser.add_argument(flag, type=_naming(kind), help=f"{help} [{variable}{shown}]", **values, **more)
    OPTIONS.setdefault(variable, set()).add(parser.prog)


def check_together(parser: argparse.ArgumentParser, given: argparse.Namespace, *flags: str) -> None:
    """Usage error unless all of these options are given or none; it names the variables that gave one."""
    values = {flag: getattr(given, flag.removeprefix("--").replace("-", "_")) for flag in flags}
    missing = [flag for flag, value in values.items() if not value]
    if missing and len(missing) < len(flags):
        there = [_source(flag, value) for flag, value in values.items() if value]
        parser.error(f"{' and '.join(there)} without {' and '.join(missing)}: give all of them, or none")


def _source(flag: str, value: str) -> str:
    variable = _variable(flag)
    return f"variable {variable}" if os.environ.get(variable) == value else flag


def _variable(flag: str) -> str:
    return PREFIX + flag.removeprefix("--").replace("-", "_").upper()


OPTIONS: dict[str, set[str]] = {}
"""Variables of the options that were added, and the programs that have them."""


class _FromEnvironment(str):
    """A value that the environment gave."""

    variable: str

    @classmethod
    def of(cls, variable: str, value: str) -> _FromEnvironment:
        made = cls(value)
        made.variable = variable
        return made


class _WrongVariable(Exception):
    """A value of the environment that its option does not take. Not one of the errors that argparse turns into one
    about the option, which nobody gave."""


def _naming(kind: Callable[[str], Any]) -> Callable[[str], Any]:
    def parse(text: str) -> Any:
        try:
            return kind(text)
        except (argparse.ArgumentTypeError, OffloadError, ValueError) as error:
            if isinstance(text, _FromEnvironment):
                raise _WrongVariable(f"variable {text.variable}: {error}") from None
            if isinstance(error, OffloadError):
                raise argparse.ArgumentTypeError(shortened(error.message)) from None
            raise

    return parse


def add_frontend(parser: argparse.ArgumentParser, *, several: bool = False) -> None:
    """Add `--broker` of a client: the frontend, or `several`, under the variable by which the broker knows it.

    ZMQ_OFFLOAD_BROKER is another endpoint, the backend, which workers connect to.
    """
    add_option(
        parser,
        "--broker",
        _frontends if several else _frontend,
        FRONTEND,
        "brokers' frontends, separated by commas" if several else "the broker's frontend",
        variable=f"{PREFIX}FRONTEND",
        metavar="ENDPOINT,..." if several else "ENDPOINT",
    )


def add_optional_frontend(parser: argparse.ArgumentParser, help: str) -> None:
    """Add `--broker [ENDPOINT]` of a command that does without a broker unless it is given; the endpoint then falls
    back as `add_frontend`'s does."""
    add_option(
        parser, "--broker", _frontend, FRONTEND, help, variable=f"{PREFIX}FRONTEND", metavar="ENDPOINT", bare=True
    )


def _frontend(text: str) -> str:
    from zmq_offload.net.transport import check_endpoint

    # A broker that binds to all addresses has this machine's, too.
    return check_endpoint(text.strip()).replace("//*:", "//127.0.0.1:")


def _frontends(text: str) -> tuple[str, ...]:
    found = tuple(_frontend(part) for part in text.split(",") if part.strip())
    if not found:
        raise argparse.ArgumentTypeError(f"{_short(text)} names no endpoint; use tcp://HOST:PORT")
    return found


def checked(kind: Callable[[str], Any], holds: Callable[[Any], bool], wanted: str) -> Callable[[str], Any]:
    """An option's type: `kind`, and `holds` of the value, else argparse's usage error with what is `wanted`."""

    def parse(text: str) -> Any:
        try:
            value = kind(text)
        except (ValueError, OverflowError, OffloadError) as error:
            detail = error.message if isinstance(error, OffloadError) else f"{_short(text)} is not {wanted}"
            raise argparse.ArgumentTypeError(shortened(detail)) from None
        if not holds(value):
            raise argparse.ArgumentTypeError(f"{_short(text)} is not {wanted}")
        return value

    return parse


def _short(text: str) -> str:
    return repr(str(text)) if len(text) <= 60 else f"{text[:57]!r}..."


MOST = 10**9
"""Of whatever is counted: requests, rows, runs. More is a slip of the pen, and would overflow somewhere."""

whole = checked(int, lambda n: 0 <= n <= MOST, f"a whole number from 0 to {MOST}")
count = checked(int, lambda n: 1 <= n <= MOST, f"a whole number from 1 to {MOST}")
processes = threads = checked(int, lambda n: 1 <= n <= 1024, "a whole number from 1 to 1024")
"""A hundred thousand threads are a slip of the pen as well, and the machine stands still while they start."""
bytes_ = checked(int, lambda n: 1 <= n < 2**62, "a whole number of bytes from 1")
seed = checked(int, lambda n: 0 <= n < 2**63, "a whole number from 0")
microseconds = checked(int, lambda n: 0 <= n <= MOST, f"a whole number of microseconds from 0 to {MOST}")
seconds = checked(float, lambda s: 0.001 <= s < 1e6, "a time in seconds, from 0.001 to a million")
heartbeat = checked(float, lambda s: 0.001 <= s <= 2000, "a time in seconds, from 0.001 to 2000")
"""ZMTP has 16 bits for a heartbeat's time to live, three times the interval, in tenths of a second."""
file = checked(str, lambda text: text.strip() not in ("", "."), "a file's name (of an unset variable?)")
folder = checked(str, lambda text: bool(text.strip()), "a folder's name (of an unset variable?)")
path = checked(Path, lambda path: path != Path(), "a file's name (of an unset variable?)")
