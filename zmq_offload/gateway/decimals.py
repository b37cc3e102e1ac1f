"""Floats as JSON writes them: 0.1 of a float32 as 0.1, not as 0.10000000149011612. Pure."""

from __future__ import annotations

from typing import Any

import numpy as np

from zmq_offload.protocol.payload import Array

_DIGITS = {2: range(3, 6), 4: range(6, 10)}
"""Bytes of a float -> significant digits to try. All values of so many bytes differ in the last number of digits."""


def short_floats(array: Array) -> Array:
    """The same values as float64 whose shortest decimals are those of the narrow floats where that is possible.

    Each is rounded to as few digits as lead back to it. Converted to the narrow type, the result is the input, exactly.
    """
    digits = _DIGITS.get(array.dtype.itemsize)
    if digits is None:
        return array
    with np.errstate(all="ignore"):
        exact = array.astype(np.float64)
        magnitude = np.floor(np.log10(np.abs(exact)))
        result: Array = exact.copy()
        pending: Any = np.isfinite(magnitude)  # zeros, NaN and infinities are right as they are
        for count in digits:
            power = count - 1 - magnitude
            # Two powers, both whole: 0.1 and the like are no floats.
            up, down = 10.0 ** np.maximum(power, 0), 10.0 ** np.maximum(-power, 0)
            tried = np.rint(exact * up / down) / up * down
            fits = pending & (tried.astype(array.dtype) == array)
            np.copyto(result, tried, where=fits)
            pending &= ~fits
    return result
