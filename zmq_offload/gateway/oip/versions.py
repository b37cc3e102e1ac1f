"""The version of a model that a request names. Pure."""

from __future__ import annotations

from zmq_offload.errors import InvalidArgument
from zmq_offload.protocol import limits


def version_of(text: str | None) -> int | None:
    """The number of a version, or None for the latest if the request names none. Raises InvalidArgument."""
    if not text:
        return None
    if not (text.isascii() and text.isdecimal()) or int(text[:20]) > limits.VERSION:
        raise InvalidArgument(f"version {text!r:.40} is not a whole number from 1 to {limits.VERSION}")
    return int(text)
