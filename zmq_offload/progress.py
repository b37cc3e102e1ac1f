"""A progress display for commands with long steps, on stderr."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO


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
    def step(self, title: str) -> Iterator[None]:
        """Show `title` while the body runs, and the seconds that it took. A step that fails is left without them."""
        self._done += 1
        self.total = max(self.total, self._done)
        if self._quiet:
            yield
            return
        head = f"[{self._done}/{self.total}] {title} ..."
        began = time.monotonic()
        ended = threading.Event()
        ticker = threading.Thread(target=self._tick, args=(head, began, ended), daemon=True)
        live = self._stream.isatty()
        if live:
            ticker.start()
        tail = "failed"
        try:
            yield
            tail = f"{time.monotonic() - began:.1f} s"
        finally:
            ended.set()
            if live:
                ticker.join()
            print(f"{chr(13) if live else ''}{head} {tail}", file=self._stream, flush=True)

    def _tick(self, head: str, began: float, ended: threading.Event) -> None:
        while True:
            print(f"\r{head} {time.monotonic() - began:.1f} s", end="", file=self._stream, flush=True)
            if ended.wait(0.2):
                return
