"""The parameters of a request that say how it is queued. Pure.

`priority` is Triton's: 0 is the default, 1 is the most urgent, a larger number is less urgent. Ours go from 100 (most
urgent) to -100, and 0 is the default: 1 becomes 100, 100 becomes 1, 101 is the same as the default, 201 and above
become -100.

`timeout` is in microseconds; 0 is the default of the gateway.

A model here keeps nothing between requests. So `sequence_id`, `sequence_start` and `sequence_end` are checked and have
no effect, as in Triton for such a model. Other parameters have no effect either.
"""

from __future__ import annotations

import json
import reprlib
from collections.abc import Mapping

from zmq_offload.errors import InvalidArgument
from zmq_offload.protocol import limits

_UNSIGNED = 2**64
_RESERVED = "triton_"


def queueing(parameters: Mapping[str, object]) -> tuple[int, float | None]:
    """Priority and timeout in seconds (None: the default), as `Call` has them. Raises InvalidArgument."""
    priority, timeout = 0, None
    for name, value in parameters.items():
        if name == "priority":
            priority = priority_of(_unsigned(name, value))
        elif name == "timeout":
            timeout = seconds_of(_unsigned(name, value))
        elif name == "sequence_id":
            if type(value) is not str:
                _unsigned(name, value)
        elif name in ("sequence_start", "sequence_end", "binary_data_output"):
            flag(parameters, name)
        elif name.startswith(_RESERVED):
            raise InvalidArgument(
                f"parameter {name!r:.80} is reserved; names of your own do not start with {_RESERVED}"
            )
        elif type(value) not in (str, int, bool, float):
            raise InvalidArgument(f"parameter {name!r:.80} is {shown(value)}; use a string, a number or a boolean")
    return priority, timeout


def priority_of(given: int) -> int:
    """Our priority for Triton's."""
    return 0 if given == 0 else max(limits.PRIORITY + 1 - given, -limits.PRIORITY)


def seconds_of(microseconds: int) -> float | None:
    """A timeout in seconds; None for 0, and a day for more."""
    return min(microseconds, limits.BUDGET_US) / 1e6 if microseconds else None


def flag(parameters: Mapping[str, object], name: str, default: bool = False) -> bool:
    """A boolean parameter. Raises InvalidArgument for anything else."""
    value = parameters.get(name, default)
    if type(value) is not bool:
        raise InvalidArgument(f"parameter {name!r} is {shown(value)}; use true or false")
    return value


def number(parameters: Mapping[str, object], name: str) -> int:
    """An unsigned parameter; 0 if it is not given. Raises InvalidArgument."""
    return _unsigned(name, parameters.get(name, 0))


def _unsigned(name: str, value: object) -> int:
    if type(value) is not int or not 0 <= value < _UNSIGNED:
        raise InvalidArgument(f"parameter {name!r} is {shown(value)}; use a whole number from 0")
    return value


def shown(value: object) -> str:
    """A value for a message, short; null, true and false as JSON writes them."""
    return json.dumps(value) if value is None or type(value) is bool else reprlib.repr(value)
