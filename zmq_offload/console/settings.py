"""Options of the programs, and the types of their values.

An argument wins over the file of `--config`, that over an environment variable, and that over a default.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from zmq_offload.console import configfile
from zmq_offload.console.configfile import FromFile
from zmq_offload.console.parser import Parser, WrongVariable
from zmq_offload.console.programs import shortened
from zmq_offload.console.variables import PREFIX
from zmq_offload.errors import InvalidArgument, OffloadError

FRONTEND = "tcp://127.0.0.1:5555"
"""Where a broker listens for clients by default."""

Value = TypeVar("Value")


def add_picture(parser: Parser, default: str) -> None:
    """Add `--output`, the picture that a command draws."""
    help = f"picture to write, SVG if its name ends so, else PNG (default: {default})"
    parser.add_argument("-o", "--output", type=path, default=Path(default), metavar="FILE", help=help)


def add_option(
    parser: Parser,
    flag: str,
    kind: Callable[[str], object],
    default: object,
    help: str,
    *,
    variable: str | None = None,
    bare: bool = False,
    metavar: str,
) -> None:
    """Add `--some-flag`, which falls back to ZMQ_OFFLOAD_SOME_FLAG (or to `variable`) and then to `default`.

    A value from the environment is parsed by `kind` like an argument (argparse does that with default strings), and its
    error names the variable. The variable must be listed in `zmq_offload.console.variables`.

    With `bare`, variable and default apply to the flag without a value; without the flag the option is None.
    """
    variable = variable or _variable(flag)
    shown = "" if default is None else f", default {default}"
    given = os.environ.get(variable)
    value = _FromEnvironment.of(variable, given) if given else default
    values: dict[str, Any] = {"nargs": "?", "const": value} if bare else {"default": value}
    parser.add_argument(flag, type=_naming(kind), help=f"{help} [{variable}{shown}]", metavar=metavar, **values)
    OPTIONS.setdefault(variable, set()).add(parser.prog)


def add_config(parser: Parser, table: str) -> None:
    """Add `--config`: a file with the options of the program, in a table of this name."""
    _add_config(parser, f"file with options, in its TOML table [{table}]", lambda values: {table: values})


def add_configs(parser: Parser, others: Collection[str]) -> None:
    """Add `--config` of a command that looks at what the programs are given.

    Of each program's table it takes the options that it has itself, but for `others`, which mean something else there.
    """

    def chosen(values: dict[str, Any]) -> dict[str, dict[str, Any]]:
        own = {option.removeprefix("--") for action in parser._actions for option in action.option_strings}
        own -= {"config", "help", "version", *others}

        def kept(table: dict[str, Any]) -> dict[str, Any]:
            return {key: value for key, value in table.items() if key.replace("_", "-") in own}

        tables = {name: values.get(name, {}) for name in configfile.PROGRAMS}
        return {name: {**kept(values), name: kept(table)} for name, table in tables.items() if isinstance(table, dict)}

    _add_config(parser, "file with options of the programs, in their TOML tables", chosen)


def _add_config(parser: Parser, text: str, chosen: Callable[[dict[str, Any]], Mapping[str, Mapping[str, Any]]]) -> None:
    """Add `--config`. `chosen` says which content of the file is taken for which table."""
    variable = f"{PREFIX}CONFIG"
    parser.add_argument("--config", type=file, help=f"{text} [{variable}]", metavar="FILE")
    OPTIONS.setdefault(variable, set()).add(parser.prog)

    def apply(given: Sequence[str]) -> str | None:
        first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
        first.add_argument("--config", nargs="?")  # the program itself objects if the name is missing
        name = first.parse_known_args([word for word in given if word != "--config="])[0].config
        name = name or os.environ.get(variable)
        if name:
            for table, values in chosen(configfile.read(name)).items():
                configfile.apply(values, name, table, parser._actions, (file, folder, path))
        return name or None

    parser.prepare = apply


def check_together(parser: Parser, given: argparse.Namespace, *flags: str) -> None:
    """Exit with a usage error if some of these options are given and others are not.

    The message names the option or the variable that each value came from.
    """
    values = {flag: getattr(given, flag.removeprefix("--").replace("-", "_")) for flag in flags}
    missing = [flag for flag, value in values.items() if not value]
    if missing and len(missing) < len(flags):
        sources = " and ".join(_source(flag, value) for flag, value in values.items() if value)
        parser.error(f"{sources} given without {' and '.join(missing)}; give all of them or none")


def _source(flag: str, value: str) -> str:
    variable = _variable(flag)
    return f"variable {variable}" if os.environ.get(variable) == value else flag


def _variable(flag: str) -> str:
    return PREFIX + flag.removeprefix("--").replace("-", "_").upper()


OPTIONS: dict[str, set[str]] = {}
"""The variables of all options that were added, each with the programs that have it."""


class _FromEnvironment(str):
    """A value from the environment, with the variable's name."""

    variable: str

    @classmethod
    def of(cls, variable: str, value: str) -> _FromEnvironment:
        made = cls(value)
        made.variable = variable
        return made


def _naming(kind: Callable[[str], Value]) -> Callable[[str], Value]:
    """`kind` with errors that name the variable, if the value came from one."""

    def parse(text: str) -> Value:
        try:
            return kind(text)
        except (argparse.ArgumentTypeError, OffloadError, ValueError) as error:
            if isinstance(text, _FromEnvironment):
                raise WrongVariable(f"variable {text.variable}: {error}") from None
            if isinstance(text, FromFile):
                raise WrongVariable(f"{text.place}: {error}") from None
            if isinstance(error, OffloadError):
                raise argparse.ArgumentTypeError(shortened(error.message)) from None
            raise

    parse.kind = kind  # type: ignore[attr-defined]
    return parse


def add_frontend(parser: Parser, *, several: bool = False) -> None:
    """Add `--broker` of a client: the broker's frontend, or `several`.

    Its variable is ZMQ_OFFLOAD_FRONTEND, as the broker's own; ZMQ_OFFLOAD_BROKER is the backend, for workers.
    """
    add_option(
        parser,
        "--broker",
        _frontends if several else _frontend,
        FRONTEND,
        "frontends of the brokers, separated by commas" if several else "the broker's frontend",
        variable=f"{PREFIX}FRONTEND",
        metavar="ENDPOINT,..." if several else "ENDPOINT",
    )


def add_optional_frontend(parser: Parser, help: str) -> None:
    """Add `--broker [ENDPOINT]` of a command that uses a broker only with this option."""
    add_option(
        parser, "--broker", _frontend, FRONTEND, help, variable=f"{PREFIX}FRONTEND", metavar="ENDPOINT", bare=True
    )


NONE = "none"
"""The address of a port that is turned off."""


def _address(text: str) -> str:
    from zmq_offload.net.transport import check_endpoint

    if text == NONE:
        return text
    if "://" in text:
        raise InvalidArgument(f"address {text!r} has a transport; use HOST:PORT, or none")
    try:
        check_endpoint(f"tcp://{text}")
    except InvalidArgument:
        raise InvalidArgument(
            f"address {text!r} is not a host and a port; use HOST:PORT, such as 127.0.0.1:8000 or [::1]:8000, or none"
        ) from None
    if text.endswith(":*"):
        raise InvalidArgument(f"address {text!r}: the port is not a number; use 0 for a free one")
    return text


def _frontend(text: str) -> str:
    from zmq_offload.net.transport import check_endpoint

    # A broker that binds to all addresses is reached at this machine's own.
    return check_endpoint(text.strip()).replace("//*:", "//127.0.0.1:")


def _frontends(text: str) -> tuple[str, ...]:
    found = tuple(_frontend(part) for part in text.split(",") if part.strip())
    if not found:
        raise argparse.ArgumentTypeError(f"{_short(text)} is not a list of endpoints; use tcp://HOST:PORT,...")
    return found


def checked(kind: Callable[[str], Value], holds: Callable[[Value], bool], wanted: str) -> Callable[[str], Value]:
    """Make an option's type: `kind` parses the text, and `holds` must be true of the value.

    Otherwise the usage error says that the text is not `wanted`.
    """

    def parse(text: str) -> Value:
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
"""Limit of all counts: requests, rows, runs. A higher number is a typing error, and would overflow somewhere."""

address = checked(_address, lambda _: True, "HOST:PORT")
"""HOST:PORT, or "none"."""

switch = checked(str, lambda text: text in ("on", "off"), "on or off")
whole = checked(int, lambda n: 0 <= n <= MOST, f"a whole number from 0 to {MOST}")
count = checked(int, lambda n: 1 <= n <= MOST, f"a whole number from 1 to {MOST}")
processes = threads = checked(int, lambda n: 1 <= n <= 1024, "a whole number from 1 to 1024")
"""Far more threads are a typing error, too, and stop the whole machine while they start."""
bytes_ = checked(int, lambda n: 1 <= n < 2**62, "a whole number of bytes from 1")
arena = checked(int, lambda n: 0 <= n < 2**46, "a whole number of bytes below 2**46")
"""The bytes of an arena; 0: no memory is shared."""
ARENA_BYTES = 512 * 1024 * 1024
share = checked(float, lambda part: 0.0 <= part <= 1.0, "a share, from 0 to 1")
seed = checked(int, lambda n: 0 <= n < 2**63, "a whole number from 0")
microseconds = checked(int, lambda n: 0 <= n <= MOST, f"a whole number of microseconds from 0 to {MOST}")
seconds = checked(float, lambda s: 0.001 <= s < 1e6, "a time in seconds, from 0.001 to a million")
heartbeat = checked(float, lambda s: 0.001 <= s <= 2000, "a time in seconds, from 0.001 to 2000")
"""ZMTP has 16 bits for a heartbeat's time to live, which is three times the interval, in tenths of a second."""
file = checked(str, lambda text: text.strip() not in ("", "."), "a file name (is a shell variable unset?)")
folder = checked(str, lambda text: bool(text.strip()), "a folder name (is a shell variable unset?)")
path = checked(Path, lambda path: path != Path(), "a file name (is a shell variable unset?)")
