"""The progress of long work, on stderr: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol, TextIO

from zmq_offload.console.terminal import console_of

if TYPE_CHECKING:
    from rich.console import Console

REPORT_S = 10.0
"""Without a terminal, a long step writes a line at most this often."""

_PER_SECOND = 4
"""How often a bar is drawn. More often would disturb measurements."""


class Say(Protocol):
    """Tells how far a step is: in words, and as a fraction from 0 to 1 where that is known."""

    def __call__(self, text: str, part: float = 0.0) -> None: ...


class Progress:
    """Numbered steps: `[3/6] compile the subgraph ... 12.3 s`.

    On a terminal with `rich`, the running step has a bar for the whole work and counts its seconds. Elsewhere a step is
    one plain line, written when it ends. `quiet` shows nothing. The first `done` steps were shown by another process.
    """

    def __init__(self, total: int = 0, *, done: int = 0, stream: TextIO | None = None, quiet: bool = False) -> None:
        self.total = total
        self._stream = stream or sys.stderr
        self._quiet = quiet
        self._done = done

    def expect(self, steps: int) -> None:
        """Count on at least `steps` more steps."""
        self.total = max(self.total, self._done + steps)

    @contextmanager
    def step(self, title: str) -> Iterator[Say]:
        """Show `title` while the body runs, then the seconds that it took, or "failed".

        An interrupted step leaves no line: the program itself says that it was interrupted. The body may call the
        yielded function; on a terminal its text is shown at once, elsewhere every REPORT_S seconds.
        """
        self._next()
        if self._quiet:
            yield say_nothing
            return
        began = time.monotonic()
        console = console_of(self._stream)
        head = f"[{self._done}/{self.total}] {title}"
        tail = "failed"
        try:
            with self._bar(head, console) if console else self._reports(head) as say:
                yield say
            tail = f"{time.monotonic() - began:.1f} s"
        except KeyboardInterrupt:
            tail = ""
            raise
        finally:
            if tail and console is not None:
                console.print(f"{head} ... {tail}", style="red" if tail == "failed" else "", soft_wrap=True)
            elif tail:
                print(f"{head} ... {tail}", file=self._stream, flush=True)

    @contextmanager
    def watch(self, title: str) -> Iterator[Say]:
        """Like `step`, for work that prints its own result: it is shown on a terminal only, and leaves no line."""
        self._next()
        console = None if self._quiet else console_of(self._stream)
        if console is None:
            yield say_nothing
            return
        with self._bar(title, console) as say:
            yield say

    def _next(self) -> None:
        self._done += 1
        self.total = max(self.total, self._done)

    @contextmanager
    def _reports(self, head: str) -> Iterator[Say]:
        due = time.monotonic() + REPORT_S

        def say(text: str, part: float = 0.0) -> None:
            nonlocal due
            if time.monotonic() >= due:
                due = time.monotonic() + REPORT_S
                print(f"{head} ... {text}", file=self._stream, flush=True)

        yield say

    @contextmanager
    def _bar(self, head: str, console: Console) -> Iterator[Say]:
        from rich.progress import BarColumn, TextColumn
        from rich.progress import Progress as Bars
        from rich.table import Column

        rest = Column(ratio=1, no_wrap=True, overflow="ellipsis")
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=20),
            TextColumn("{task.elapsed:.1f} s", markup=False, style="cyan"),
            TextColumn("{task.fields[detail]}", markup=False, table_column=rest),
        )
        bars = Bars(
            *columns,
            console=console,
            transient=True,
            expand=True,
            refresh_per_second=_PER_SECOND,
            redirect_stdout=False,
            redirect_stderr=False,
        )
        before = self._done - 1
        with bars:
            task = bars.add_task(head, total=self.total, completed=before, detail="")

            def say(text: str, part: float = 0.0) -> None:
                bars.update(task, completed=before + min(part, 1.0), detail=text)

            yield say


def say_nothing(text: str, part: float = 0.0) -> None:
    """Show nothing."""


Tell = Callable[[int, int], None]
"""Takes how many of how many repetitions are done."""


def counter(say: Say, what: str = "") -> Tell:
    """A function that shows repetitions by `say`: "3 of 20 runs"."""

    def tell(done: int, total: int) -> None:
        say(f"{done} of {total}{f' {what}' if what else ''}", done / max(total, 1))

    return tell
