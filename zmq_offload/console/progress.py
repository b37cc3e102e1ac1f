"""A progress display for commands with long steps, on stderr."""

from __future__ import annotations

import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TextIO

# Where nobody watches, a long step writes a line this often.
REPORT_S = 10.0
CLEAR = "\r\x1b[K"  # to the line's beginning, and what stood there away


class Progress:
    """Numbered steps: `[3/6] compile the subgraph ... 12.3 s`.

    On a terminal the seconds count while the step runs; elsewhere a step is one plain line, written when it ends.
    `quiet` shows nothing. `done` steps were shown before, by another process perhaps.
    """

    def __init__(self, total: int = 0, *, done: int = 0, stream: TextIO | None = None, quiet: bool = False) -> None:
        self.total = total
        self._stream = stream or sys.stderr
        self._quiet = quiet
        self._done = done

    def expect(self, steps: int) -> None:
        """At least so many steps are still to come."""
        self.total = max(self.total, self._done + steps)

    @contextmanager
    def step(self, title: str) -> Iterator[Callable[[str], None]]:
        """Show `title` while the body runs, and the seconds that it took. A step that fails is left without them, one
        that is interrupted without a line: the program says that once.

        The body may say how far it is: shown at once on a terminal, elsewhere as a line every REPORT_S seconds.
        """
        self._done += 1
        self.total = max(self.total, self._done)
        if self._quiet:
            yield lambda _: None
            return
        head = f"[{self._done}/{self.total}] {title} ..."
        began = time.monotonic()
        ended = threading.Event()
        live = self._stream.isatty()
        said = _Said(head, began if live else began + REPORT_S)
        ticker = threading.Thread(target=self._tick, args=(said, began, ended), daemon=True)
        if live:
            ticker.start()

        def say(text: str) -> None:
            if live:
                said.text = f"{head} {text},"
            elif time.monotonic() >= said.next_report:
                said.next_report = time.monotonic() + REPORT_S
                print(f"{head} {text}", file=self._stream, flush=True)

        tail = "failed"
        try:
            yield say
            tail = f"{time.monotonic() - began:.1f} s"
        except KeyboardInterrupt:
            tail = ""
            raise
        finally:
            ended.set()
            if live:
                ticker.join()
            line = f"{head} {tail}\n" if tail else ""
            print(f"{CLEAR if live else ''}{line}", end="", file=self._stream, flush=True)

    def _tick(self, said: _Said, began: float, ended: threading.Event) -> None:
        while True:
            shown = fitted(f"{said.text} {time.monotonic() - began:.1f} s")
            print(f"{CLEAR}{shown}", end="", file=self._stream, flush=True)
            if ended.wait(0.2):
                return


def fitted(line: str) -> str:
    """What of a line fits the terminal. A longer one would wrap, and only its last row could be taken away."""
    most = max(shutil.get_terminal_size().columns - 1, 4)
    return line if len(line) <= most else f"{line[: most - 3]}..."


@dataclass
class _Said:
    """What a step shows now, and when it may report next."""

    text: str
    next_report: float
