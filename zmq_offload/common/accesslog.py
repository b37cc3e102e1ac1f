"""The access log of a broker or a gateway: requests that took long, and those that failed. Pure.

Requests are collected here, and the loop writes them. More than 1000 in a second would slow down the program that they
tell of. Those are counted, and the log says how many were left out.
"""

from __future__ import annotations

import logging
import re
from typing import NamedTuple

OK = "OK"

MOST = 1000
"""Requests a second that are logged."""


LONGEST = 200
"""Characters of a text that are logged."""

_PLAIN = re.compile(r"[\w.:/@+-]+")


class Access(NamedTuple):
    """A request that ended. Times are in seconds; what is None is not known."""

    request: str | None
    model: str
    version: int | None
    status: str
    total: float
    queue: float | None = None
    compute: float | None = None
    worker: str | None = None
    attempts: int | None = None
    client: str | None = None
    bytes_in: int | None = None
    bytes_out: int | None = None
    trace: str | None = None

    def fields(self) -> dict[str, object]:
        """What is known, for a machine."""
        return {name: _bounded(value) for name, value in self._asdict().items() if value not in (None, "")}

    def text(self) -> str:
        """What is known, as text: the model, its version and the status, and then name=value."""
        rest = self.fields()
        for name in ("model", "version", "status"):
            rest.pop(name, None)
        version = "" if self.version is None else f" version {self.version}"
        known = " ".join(f"{name}={_word(value)}" for name, value in rest.items())
        return f"model {_bounded(self.model)!r}{version}: {self.status} {known}"


def _bounded(value: object) -> object:
    """A value as the log has it. Clients choose ids, names and models, of any length."""
    if isinstance(value, float):
        return round(value, 6)
    if isinstance(value, str) and len(value) > LONGEST:
        return f"{value[:LONGEST]}…"
    return value


def _word(value: object) -> object:
    """A value of name=value. A text that could pass for several of these is quoted."""
    return repr(value) if isinstance(value, str) and not _PLAIN.fullmatch(value) else value


class Line(NamedTuple):
    """An event for the log."""

    level: int
    text: str
    fields: dict[str, object]


class AccessLog:
    """Requests that took `threshold` seconds or longer, or failed, and were not written yet."""

    def __init__(self, threshold: float, most: int = MOST) -> None:
        self.threshold = threshold
        self._most = most
        self._lines: list[Line] = []
        self._second = 0
        self._count = 0
        self._left_out = 0

    def __bool__(self) -> bool:
        return bool(self._lines)

    def add(self, access: Access, now: float) -> None:
        """Add a request, unless it was quick and good."""
        if access.status == OK and access.total < self.threshold:
            return
        if int(now) != self._second:
            self.flush()
            self._second, self._count = int(now), 0
        if self._count >= self._most:
            self._left_out += 1
            return
        self._count += 1
        level = logging.INFO if access.status == OK else logging.WARNING
        self._lines.append(Line(level, access.text(), access.fields()))

    def flush(self) -> None:
        """Say how many were left out until now, if there are any."""
        if self._left_out:
            text = f"{self._left_out} requests were left out here: only {self._most} a second are logged"
            self._lines.append(Line(logging.WARNING, text, {"left_out": self._left_out}))
            self._left_out = 0

    def take(self) -> list[Line]:
        """Return the events, and forget them."""
        lines, self._lines = self._lines, []
        return lines
