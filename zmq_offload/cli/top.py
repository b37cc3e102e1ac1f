"""`zmq-offload top`: what a fabric does now, on the whole terminal."""

from __future__ import annotations

import argparse
import contextlib
import os
import select
import signal
import sys
import termios
import threading
import time
import tty
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NoReturn

from zmq_offload.console.parser import Parser
from zmq_offload.console.settings import add_frontend, add_option, seconds

if TYPE_CHECKING:
    from zmq_offload.cli.brokers import Brokers
    from zmq_offload.dashboard.history import History

_TURN = 0.1
"""Seconds until a key, a new size of the terminal or a new status is seen."""


def add_options(parser: Parser) -> None:
    parser.description = (
        "Show what a broker, its workers and models do now, on the whole terminal. Keys: q quits, s sorts by name or "
        "by load, p pauses. Without a terminal, print what happened in one interval."
    )
    parser.set_example("zmq-offload top", "zmq-offload top --broker tcp://edge-1:5555 --interval 0.5")
    add_frontend(parser)
    parser.add_argument("--interval", type=seconds, default=1.0, help="seconds between looks (1)", metavar="S")
    add_option(parser, "--timeout", seconds, 5.0, "maximum seconds to wait for the broker", metavar="S")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    from zmq_offload.cli.brokers import Brokers
    from zmq_offload.dashboard.history import History

    history = History()
    with Brokers(args.broker, args.timeout) as brokers:
        history.add(brokers.status(), time.monotonic())
        if sys.stdin.isatty() and sys.stdout.isatty() and os.environ.get("TERM") != "dumb":
            from zmq_offload.common.extras import needs
            from zmq_offload.console.interrupts import raising_ctrl_c

            with needs("cli"):
                import rich.live  # noqa: F401
            with raising_ctrl_c(), _ending_by_sigterm(), contextlib.suppress(_Quit):
                _Top(brokers, history, args.interval).run()
        else:
            from zmq_offload.cli.topscreen import snapshot

            time.sleep(args.interval)
            now = time.monotonic()
            history.add(brokers.status(), now)
            print(snapshot(history.view(now), brokers.endpoint))
    return 0


class _Quit(Exception):
    """The user wants to quit."""


@contextlib.contextmanager
def _ending_by_sigterm() -> Iterator[None]:
    """Let SIGTERM end the body as Ctrl-C does, so that the terminal is as it was."""

    def end(number: int, _: object) -> NoReturn:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


class _Looks(threading.Thread):
    """Asks for the status again and again, since an answer may take until the timeout and keys shall work meanwhile."""

    def __init__(self, brokers: Brokers, every: float) -> None:
        super().__init__(daemon=True)
        self._brokers = brokers
        self._every = every
        self._ended = threading.Event()
        self._lock = threading.Lock()
        self._latest: tuple[float, dict[str, Any] | str] | None = None

    def run(self) -> None:
        from zmq_offload.errors import Cancelled, OffloadError

        while not self._ended.wait(self._every):
            found: dict[str, Any] | str
            try:
                found = self._brokers.status()
            except Cancelled:
                return
            except OffloadError as error:
                found = error.message
            with self._lock:
                self._latest = time.monotonic(), found

    def take(self) -> tuple[float, dict[str, Any] | str] | None:
        """The latest answer, or why there is none, if it was not taken before."""
        with self._lock:
            latest, self._latest = self._latest, None
            return latest

    def end(self) -> None:
        self._ended.set()


class _Top:
    """The screen, the keys and the looks at the broker."""

    def __init__(self, brokers: Brokers, history: History, every: float) -> None:
        self._history = history
        self._endpoint = brokers.endpoint
        self._looks = _Looks(brokers, every)
        self._by_load = False
        self._paused = False

    def run(self) -> None:
        from rich.console import Console
        from rich.live import Live

        console = Console(highlight=False, markup=False, emoji=False)
        self._looks.start()
        with _keys_at_once(), Live(console=console, screen=True, auto_refresh=False) as live:
            try:
                self._show(live)
                shown, size = time.monotonic(), console.size
                while True:
                    changed = self._read_key() | self._take_look()
                    if changed or console.size != size or time.monotonic() > shown + 1:
                        shown, size = time.monotonic(), console.size
                        if not self._paused or changed:
                            self._show(live)
            finally:
                self._looks.end()

    def _show(self, live: Any) -> None:
        from zmq_offload.cli.topscreen import screen
        from zmq_offload.dashboard.terminal import sorted_view

        view = sorted_view(self._history.view(time.monotonic()), self._by_load)
        order = "load" if self._by_load else "name"
        keys = f" q quit   s sort (by {order})   p {'go on (paused)' if self._paused else 'pause'} "
        live.update(screen(view, self._endpoint, keys, *live.console.size), refresh=True)

    def _read_key(self) -> bool:
        """Wait a turn for a key. Returns whether one changed anything."""
        if not select.select([sys.stdin], [], [], _TURN)[0]:
            return False
        keys = os.read(sys.stdin.fileno(), 64)
        if not keys or b"q" in keys or keys == b"\x1b":
            raise _Quit
        if b"s" in keys:
            self._by_load = not self._by_load
        if b"p" in keys:
            self._paused = not self._paused
        return b"s" in keys or b"p" in keys

    def _take_look(self) -> bool:
        """Take the latest look into the history. Returns whether the screen has to follow."""
        latest = self._looks.take()
        if latest is None:
            return False
        at, found = latest
        if isinstance(found, str):
            self._history.missed(found)
        else:
            self._history.add(found, at)
        return not self._paused


@contextlib.contextmanager
def _keys_at_once() -> Iterator[None]:
    """Get keys without Enter, and do not show them."""
    before = termios.tcgetattr(sys.stdin)
    tty.setcbreak(sys.stdin)
    try:
        yield
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)
