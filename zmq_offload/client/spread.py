"""In which order a client tries the brokers that it knows. Pure.

Every client has an order of its own, so that the clients of several brokers spread over them, and so that those of a
broker that ends go to all of the others and not all to the same one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence


def in_order(endpoints: Sequence[str], token: bytes, *, spread: bool) -> list[str]:
    """The endpoints in the order in which the client with this random token tries them.

    Without `spread` as they were given: the first is preferred.
    """
    if not spread:
        return list(endpoints)
    return sorted(endpoints, key=lambda endpoint: hashlib.blake2b(endpoint.encode(), key=token).digest())
