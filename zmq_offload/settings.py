"""Options of the programs: an argument over an environment variable over a default."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Callable
from typing import Any

from zmq_offload.errors import OffloadError

PREFIX = "ZMQ_OFFLOAD_"


def add_option(
    parser: argparse.ArgumentParser,
    flag: str,
    kind: Callable[[str], Any],
    default: Any,
    help: str,
    *,
    variable: str | None = None,
    **more: Any,
) -> None:
    """Add `--some-flag`, which falls back to ZMQ_OFFLOAD_SOME_FLAG (or to `variable`) and then to `default`.

    A value from the environment goes through `kind` as one from the command line does (argparse does that with default
    strings), so that both fail the same way.
    """
    variable = variable or PREFIX + flag.removeprefix("--").replace("-", "_").upper()
    shown = "" if default is None else f", default {default}"
    value = os.environ.get(variable) or default
    parser.add_argument(flag, type=kind, default=value, help=f"{help} [{variable}{shown}]", **more)


def add_frontend(parser: argparse.ArgumentParser) -> None:
    """Add `--broker` of a client: the frontend, under the variable by which the broker knows it.

    ZMQ_OFFLOAD_BROKER is another endpoint, the backend, which workers connect to.
    """
    add_option(
        parser,
        "--broker",
        # A broker that binds to all addresses has this machine's, too.
        lambda text: text.replace("//*:", "//127.0.0.1:"),
        "tcp://127.0.0.1:5555",
        "the broker's frontend",
        variable=f"{PREFIX}FRONTEND",
        metavar="ENDPOINT",
    )


def checked(kind: Callable[[str], Any], holds: Callable[[Any], bool], wanted: str) -> Callable[[str], Any]:
    """An option's type: `kind`, and `holds` of the value, else argparse's usage error with what is `wanted`."""

    def parse(text: str) -> Any:
        try:
            value = kind(text)
        except (ValueError, OffloadError) as error:
            detail = error.message if isinstance(error, OffloadError) else f"{text!r} is not {wanted}"
            raise argparse.ArgumentTypeError(detail) from None
        if not holds(value):
            raise argparse.ArgumentTypeError(f"{text!r} is not {wanted}")
        return value

    return parse


count = checked(int, lambda n: n >= 1, "a whole number from 1")
microseconds = checked(int, lambda n: n >= 0, "a whole number of microseconds from 0")
seconds = checked(float, lambda s: 0 < s < 1e6, "a time in seconds above 0")


def run(main: Callable[[], int | None], program: str) -> int:
    """Run a program; an error of ours, or of a file, is one line on stderr and exit code 1."""
    try:
        code = main() or 0
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        # Whoever read our output has gone (`| head`); what is left of it must not fail again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except (OffloadError, OSError) as error:
        print(f"{program}: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
