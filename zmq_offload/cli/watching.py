"""`zmq-offload status --watch`: the status again and again, in place at a terminal."""

from __future__ import annotations

import io
import json
import os
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NoReturn

from zmq_offload.cli.status import describe
from zmq_offload.console.tables import Part, show, text
from zmq_offload.errors import DeadlineExceeded, Unavailable

if TYPE_CHECKING:
    from zmq_offload.cli.brokers import Brokers


def watch(brokers: Brokers, status: dict[str, Any], every: float, *, as_json: bool) -> NoReturn:
    """Show the status until Ctrl-C, also of a broker that is gone and comes back."""
    looked = time.monotonic()
    _show(["", *describe(status)], status, as_json)
    before: dict[str, Any] | None = status
    while True:
        time.sleep(max(0.0, looked + every - time.monotonic()))
        began, looked = looked, time.monotonic()
        try:
            status = brokers.status()
        except (Unavailable, DeadlineExceeded) as error:
            gone = f"no broker answers ({error.message}); it is asked again. This is what it said last:"
            _show(["", gone, "", *describe(status)], {"error": error.message}, as_json)
            before = None
            continue
        _show(["", *describe(status, before, looked - began)], status, as_json)
        before = status


def _show(parts: Sequence[Part], body: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print(json.dumps(body), flush=True)
        return
    parts = [time.strftime("%Y-%m-%d %H:%M:%S"), *parts]
    if sys.stdout.isatty():
        _redraw(parts)
    else:
        print(text(parts), end="\n\n", flush=True)


class _Screen(io.StringIO):
    """What the terminal shows next. It is written at once, so that nothing flickers."""

    def isatty(self) -> bool:
        return True

    def fileno(self) -> int:
        return sys.stdout.fileno()


def _redraw(parts: Sequence[Part]) -> None:
    """Write over what the terminal shows. Lines for which it is too low are left out."""
    screen = _Screen()
    show(*parts, stream=screen)
    lines = screen.getvalue().splitlines()
    room = os.get_terminal_size(sys.stdout.fileno()).lines - 1
    if len(lines) > room:
        lines = [*lines[: room - 1], f"({len(lines) - room + 1} more lines on a taller terminal)"]
    sys.stdout.write("\x1b[H" + "".join(f"{line}\x1b[K\n" for line in lines) + "\x1b[J")
    sys.stdout.flush()
