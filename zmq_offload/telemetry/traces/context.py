"""What a request carries of its trace: W3C's `traceparent`, as text and as the 25 bytes of a Request. Pure.

https://www.w3.org/TR/trace-context/ has the rules. A traceparent that breaks one is ignored, as if there were none.
"""

from __future__ import annotations

import re

TRACE_ID_BYTES = 16
SPAN_ID_BYTES = 8
RANDOM_BYTES = 7
"""The last bytes of an id: random by W3C's second edition, and compared by OpenTelemetry's samplers."""
RANDOM_MASK = (1 << 8 * RANDOM_BYTES) - 1
SAMPLED = 1
"""The flag of a trace that is recorded."""
UNTRACED = bytes(TRACE_ID_BYTES + SPAN_ID_BYTES + 1)
"""In place of a trace: there is none, and nobody who passes the request on begins one."""

_VERSION_0 = "00"
_TEXT = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?", re.DOTALL)


def parse(text: str | None) -> bytes:
    """The trace that a `traceparent` names; empty if there is none, or if it is malformed.

    A later version may have more fields, which are ignored. Flags that are not known are left out.
    """
    if text is None:
        return b""
    match = _TEXT.fullmatch(text.strip(" \t"))
    if match is None:
        return b""
    version, trace_id, span_id, flags, more = match.groups()
    if version == "ff" or (version == _VERSION_0 and more is not None):
        return b""
    return joined(bytes.fromhex(trace_id), bytes.fromhex(span_id), int(flags, 16))


def joined(trace_id: bytes, span_id: bytes, flags: int) -> bytes:
    """A trace of its parts; empty if an id is all zeros, which stands for none."""
    if not any(trace_id) or not any(span_id):
        return b""
    return trace_id + span_id + bytes((flags & SAMPLED,))


def text_of(trace: bytes) -> str:
    """The `traceparent` of a trace."""
    return f"{_VERSION_0}-{trace_id(trace).hex()}-{span_id(trace).hex()}-{trace[-1]:02x}"


def trace_id(trace: bytes) -> bytes:
    return trace[:TRACE_ID_BYTES]


def span_id(trace: bytes) -> bytes:
    """The id of the caller's span."""
    return trace[TRACE_ID_BYTES : TRACE_ID_BYTES + SPAN_ID_BYTES]


def sampled(trace: bytes) -> bool:
    """Whether spans are made for a request. Its caller decides that."""
    return len(trace) == TRACE_ID_BYTES + SPAN_ID_BYTES + 1 and bool(trace[-1] & SAMPLED)


def chosen(trace_id: bytes, share: float) -> bool:
    """Whether a new trace is among the `share` (0 to 1) that are recorded. All programs choose the same ones."""
    return int.from_bytes(trace_id[-RANDOM_BYTES:], "big") >= least_random(share)


def least_random(share: float) -> int:
    """The smallest random part of the ids of those."""
    return round((1.0 - share) * (RANDOM_MASK + 1))
