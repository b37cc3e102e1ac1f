"""Find out whether a stream is a terminal with colors and bars. `rich` is imported only if it is."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from rich.console import Console

CLEAR = "\r\x1b[K"
"""Go to the beginning of the line and delete it."""


def console_of(stream: TextIO) -> Console | None:
    """A rich console for a stream; None where plain text is right: not a terminal, or rich is not installed."""
    if not stream.isatty() or os.environ.get("TERM") == "dumb":
        return None
    try:
        from rich.console import Console
    except ImportError:
        return None

    class VisibleCursor(Console):
        """Never hides the cursor: a program that is killed while a bar is shown could not show it again."""

        def show_cursor(self, show: bool = True) -> bool:
            return False

    width = None if os.environ.get("COLUMNS") else _columns(stream)
    return VisibleCursor(file=stream, width=width, highlight=False, markup=False, emoji=False)


def _columns(stream: TextIO) -> int | None:
    """The width of a stream's terminal. With None, rich asks the standard streams."""
    try:
        return os.get_terminal_size(stream.fileno()).columns or None
    except (OSError, ValueError):
        return None
