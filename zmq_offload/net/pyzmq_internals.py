"""All uses of pyzmq that its documentation does not cover.

`tests/net/test_pyzmq_internals.py` fails with an explanation when a new pyzmq changes one of them.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TypeAlias, cast

import zmq

Sendable: TypeAlias = "bytes | memoryview | zmq.Frame"
"""What a socket takes as one frame."""

send_frame = cast("Callable[[zmq.Socket[bytes], Sendable, int], object]", zmq.backend.Socket.send)
"""`zmq.Socket.send` without its checks of two arguments that are never given here. Arguments: socket, data, flags."""

_NO_PUBLIC_KEY = "No public key"
"""How the text of `load_certificate`'s error begins for a file that is not a certificate."""


def is_not_a_certificate(error: Exception) -> bool:
    """Whether `zmq.auth.load_certificate` raised `error` because the file has no public key."""
    return isinstance(error, ValueError) and _NO_PUBLIC_KEY in str(error)


def is_missing_certificate(error: Exception, path: str | os.PathLike[str]) -> bool:
    """Whether `load_certificate` raised `error` because `path` does not exist: an OSError without a code of its own."""
    return isinstance(error, OSError) and error.errno is None and not os.path.exists(path)
