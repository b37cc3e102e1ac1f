"""Suggestions for misspelled names."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

_CUTOFF = 0.6
"""`difflib`'s ratio from which two names count as close: one or two letters differ in a short word."""


def did_you_mean(word: str, known: Iterable[str], *, prefix: str = "") -> str:
    """Return the end of a message about an unknown name: "; did you mean 'ocr'?", or "" if no known name is close.

    Letter case does not matter: "OCR" suggests "ocr". `word` itself is never suggested. A `prefix` that all names share
    is not compared, since it would make any two names close.

    >>> did_you_mean("orc", ["ocr", "echo"])
    "; did you mean 'ocr'?"
    """
    names = [name for name in dict.fromkeys(known) if name != word]
    wanted = word.removeprefix(prefix).casefold()
    folded = {name.removeprefix(prefix).casefold(): name for name in reversed(names)}
    if wanted in folded:
        return f"; did you mean {folded[wanted]!r}?"
    close = difflib.get_close_matches(wanted, folded, n=1, cutoff=_CUTOFF)
    return f"; did you mean {folded[close[0]]!r}?" if close else ""


def nearest(word: str, known: Iterable[str]) -> str:
    """Like `did_you_mean`, but if no name is close, list the three closest: "; the nearest are 'x', 'y'"."""
    names = list(known)
    near = difflib.get_close_matches(word, names, n=3, cutoff=0.0)
    return did_you_mean(word, names) or f"; the nearest are {', '.join(map(repr, near)) or 'none'}"
