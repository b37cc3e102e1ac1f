"""Writes the numbers of a packed field with NumPy: the other way of `varints.packed`. Pure."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

_CHUNK = 1 << 16
"""Numbers that are encoded at once, for the memory that it takes."""

_BITS = 7
_MORE = np.uint64(0x80)


def varints(values: npt.NDArray[np.generic]) -> bytes:
    """The bytes of integers. Negative ones have ten bytes, as protocol buffers have them for int32 and int64."""
    flat = values.ravel()
    wide = (flat.astype(np.int64) if flat.dtype.kind == "i" else flat).astype(np.uint64)
    return b"".join([_encoded(wide[at : at + _CHUNK]) for at in range(0, wide.size, _CHUNK)])


def _encoded(values: npt.NDArray[np.uint64]) -> bytes:
    rest = values >> np.uint64(_BITS)
    sizes = np.ones(values.size, np.intp)
    while rest.any():
        sizes += rest != 0
        rest >>= np.uint64(_BITS)
    starts = np.cumsum(sizes) - sizes
    found = np.empty(int(sizes.sum()), np.uint8)
    left = values
    for at in range(int(sizes.max())):
        longer = sizes > at + 1
        found[starts + at] = left & np.uint64(0x7F) | np.where(longer, _MORE, np.uint64(0))
        left, starts, sizes = left[longer] >> np.uint64(_BITS), starts[longer], sizes[longer]
    return found.tobytes()
