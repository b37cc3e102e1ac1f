"""What is missing when an optional package is."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from zmq_offload.errors import FailedPrecondition


@contextmanager
def needs(extra: str) -> Iterator[None]:
    """Turn an ImportError inside into the advice to install that extra of the distribution."""
    try:
        yield
    except ImportError as error:
        raise FailedPrecondition(
            f"a package is missing ({error}): install it by pip install 'zmq-offload[{extra}]'"
        ) from None
