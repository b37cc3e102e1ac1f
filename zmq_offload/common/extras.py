"""Errors for missing optional packages."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from zmq_offload.errors import FailedPrecondition


@contextmanager
def needs(extra: str) -> Iterator[None]:
    """Turn an ImportError in the body into advice to install an extra of this distribution."""
    try:
        yield
    except ImportError as error:
        raise FailedPrecondition(
            f"a package is missing ({error}); install it with pip install 'zmq-offload[{extra}]'"
        ) from None
