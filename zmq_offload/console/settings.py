"""Options of the programs, and the types of their values.

An argument wins over the file of `--config` (see `zmq_offload.console.configfile`), that over an environment variable,
and that over a default.
"""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from zmq_offload.console.parser import Parser, Placed
from zmq_offload.console.programs import shortened
from zmq_offload.console.variables import PREFIX
from zmq_offload.errors import InvalidArgument, OffloadError
from zmq_offload.protocol import limits

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
    value = Placed.of(given, f"variable {variable}") if given else default
    values: dict[str, Any] = {"nargs": "?", "const": value} if bare else {"default": value}
    action = parser.add_argument(flag, type=kind, help=f"{help} [{variable}{shown}]", metavar=metavar, **values)
    parser.variables.setdefault(variable, []).append(action)
    OPTIONS.setdefault(variable, set()).add(parser.prog)


def check_together(parser: Parser, given: argparse.Namespace, *flags: str) -> None:
    """Exit with a usage error if some of these options are given and others are not.

    The message names the option, or the variable or line of a file, that each value came from.
    """
    values = {flag: getattr(given, flag.removeprefix("--").replace("-", "_")) for flag in flags}
    missing = [flag for flag, value in values.items() if not value]
    if missing and len(missing) < len(flags):
        sources = " and ".join(_source(parser, flag, value) for flag, value in values.items() if value)
        parser.error(f"{sources} given without {' and '.join(missing)}; give all of them or none")


def _source(parser: Parser, flag: str, value: str) -> str:
    default = parser.get_default(flag.removeprefix("--").replace("-", "_"))
    return default.place if isinstance(default, Placed) and default == value else flag


def _variable(flag: str) -> str:
    return PREFIX + flag.removeprefix("--").replace("-", "_").upper()


OPTIONS: dict[str, set[str]] = {}
"""The variables of all options that were added, each with the programs that have it."""


def add_frontend(parser: Parser) -> None:
    """Add `--broker` of a client: the frontend of the broker, or of several.

    Its variable is ZMQ_OFFLOAD_FRONTEND, as the broker's own; ZMQ_OFFLOAD_BROKER is the backend, for workers.
    """
    help = "frontends of the brokers, separated by commas"
    add_option(parser, "--broker", endpoints, FRONTEND, help, variable=f"{PREFIX}FRONTEND", metavar="ENDPOINT,...")


def add_optional_frontend(parser: Parser, help: str) -> None:
    """Add `--broker [ENDPOINT,...]` of a command that uses brokers only with this option."""
    add_option(
        parser, "--broker", endpoints, FRONTEND, help, variable=f"{PREFIX}FRONTEND", metavar="ENDPOINT,...", bare=True
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


def _all_reached(text: str) -> tuple[str, ...]:
    from zmq_offload.net.transport import check_endpoint

    # A broker that binds to all addresses is reached at this machine's own.
    parts = (part.strip() for part in text.split(",") if part.strip())
    return tuple(check_endpoint(part).replace("//*:", "//127.0.0.1:") for part in parts)


def _all_listened(text: str) -> tuple[str, ...]:
    from zmq_offload.net.transport import check_endpoint

    return tuple(check_endpoint(part.strip()) for part in re.split(r",(?=\s*[a-z]+://)", text))


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

endpoints = checked(_all_reached, bool, "one or more endpoints, separated by commas")
"""Where a program connects to brokers."""
listening = checked(_all_listened, bool, "one or more endpoints, separated by commas")
"""Where brokers listen."""
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
ARENA_BYTES = limits.ARENA_BYTES
share = checked(float, lambda part: 0.0 <= part <= 1.0, "a share, from 0 to 1")
seed = checked(int, lambda n: 0 <= n < 2**63, "a whole number from 0")
microseconds = checked(int, lambda n: 0 <= n <= MOST, f"a whole number of microseconds from 0 to {MOST}")
seconds = checked(float, lambda s: 0.001 <= s < 1e6, "a time in seconds, from 0.001 to a million")
heartbeat = checked(float, lambda s: 0.001 <= s <= 2000, "a time in seconds, from 0.001 to 2000")
"""ZMTP has 16 bits for a heartbeat's time to live, which is three times the interval, in tenths of a second."""
file = checked(str, lambda text: text.strip() not in ("", "."), "a file name (is a shell variable unset?)")
folder = checked(str, lambda text: bool(text.strip()), "a folder name (is a shell variable unset?)")
path = checked(Path, lambda path: path != Path(), "a file name (is a shell variable unset?)")
