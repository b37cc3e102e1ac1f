"""Spans, as plain data. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal, NamedTuple, TypeAlias

Kind: TypeAlias = Literal["client", "server", "internal"]

NewId: TypeAlias = "Callable[[], bytes]"
"""Makes the id of a span."""


class Span(NamedTuple):
    """A span. `start` and `end` are seconds of the monotonic clock. `parent` is empty for the first span of a trace.

    `error` is the text of what went wrong; empty if nothing did.
    """

    name: str
    kind: Kind
    trace_id: bytes
    id: bytes
    parent: bytes
    start: float
    end: float
    attributes: Mapping[str, str | int | float]
    error: str = ""
