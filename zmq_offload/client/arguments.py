"""Checks of arguments, before anything is sent. Numbers become plain Python numbers."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
import os
import reprlib
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import numpy as np

from zmq_offload.client.session import RetryPolicy
from zmq_offload.errors import InvalidArgument
from zmq_offload.protocol import limits
from zmq_offload.protocol import messages as wire
from zmq_offload.protocol.names import check_label, check_model_name
from zmq_offload.protocol.payload import Array
from zmq_offload.protocol.tensors import Latest, array_of

if TYPE_CHECKING:
    from numpy.typing import ArrayLike


def check_call(
    model: str, timeout: float, version: int | Latest | None, priority: int, label: str | None = None
) -> tuple[float, int, int, bytes, str]:
    """Return timeout, version, priority, signature and label as the session takes them.

    Raises InvalidArgument naming the wrong argument.
    """
    try:
        return _checked(model, timeout, version, priority, label)
    except TypeError:  # an argument that cannot be hashed is wrong; find out which
        return _checked.__wrapped__(model, timeout, version, priority, label)


@functools.lru_cache(256, typed=True)  # a program repeats a few combinations
def _checked(
    model: str, timeout: float, version: int | Latest | None, priority: int, label: str | None
) -> tuple[float, int, int, bytes, str]:
    check_model_name(model)
    seconds = check_timeout(timeout)
    signature = b""
    if isinstance(version, Latest):
        signature, version = version.signature, None
        if type(signature) is not bytes or len(signature) != wire.SIGNATURE_BYTES:
            shown = reprlib.repr(signature)
            raise InvalidArgument(f"signature {shown} is not {wire.SIGNATURE_BYTES} bytes; make it with signature_of")
    wanted = wire.LATEST if version is None else whole(version)
    if wanted is None or not (version is None or 0 < wanted <= limits.VERSION):
        shown = reprlib.repr(version)
        raise InvalidArgument(f"version {shown} is not a whole number from 1; leave it out for the latest")
    urgency = whole(priority)
    if urgency is None or abs(urgency) > limits.PRIORITY:
        raise InvalidArgument(
            f"priority {reprlib.repr(priority)} is not a whole number from -{limits.PRIORITY} to {limits.PRIORITY}"
        )
    if label is not None and check_label(label) and wanted:
        raise InvalidArgument(f"version {wanted} and label {label!r} are both given; leave one of them out")
    return seconds, wanted, urgency, signature, label or ""


def check_timeout(timeout: float) -> float:
    """Return a call's time limit in seconds. Raises InvalidArgument for anything that is not one."""
    seconds = real(timeout)
    most = limits.BUDGET_US / 1e6
    if seconds is None or not 0 < seconds <= most:
        raise InvalidArgument(
            f"timeout {reprlib.repr(timeout)} is not a number of seconds above 0 and at most {most:.0f}"
        )
    return seconds


def check_policy(policy: RetryPolicy | None) -> RetryPolicy:
    """Return a policy whose times are plain numbers above 0. Raises InvalidArgument naming the wrong field."""
    if policy is None:
        return RetryPolicy()
    if not isinstance(policy, RetryPolicy):
        raise InvalidArgument(f"policy {policy!r} is not a zmq_offload.client.session.RetryPolicy")
    if not isinstance(policy.spread, bool):
        raise InvalidArgument(f"spread {policy.spread!r} of the policy is not a bool")
    numbers = {}
    for field in dataclasses.fields(policy):
        given = getattr(policy, field.name)
        if field.name == "spread":
            continue
        number = real(given)
        if number is None or not number > 0:
            raise InvalidArgument(f"{field.name} {given!r} of the policy is not a number above 0")
        numbers[field.name] = number
    return RetryPolicy(**numbers, spread=policy.spread)


def check_max_frame_bytes(given: int) -> int:
    """Return it as an int. Raises InvalidArgument for anything but a whole number from 1."""
    number = whole(given)
    if number is None or not 0 < number < 2**63:
        raise InvalidArgument(f"max_frame_bytes {given!r} is not a whole number of bytes from 1")
    return number


def check_arena_bytes(given: int | None) -> int:
    """Return the memory that a client shares, or by default what ZMQ_OFFLOAD_ARENA_BYTES says.

    Raises InvalidArgument for anything but a whole number of bytes.
    """
    source, said, number = "arena_bytes", repr(given), whole(given)
    if given is None:
        source, text = _ARENA_VARIABLE, os.environ.get(_ARENA_VARIABLE) or str(limits.ARENA_BYTES)
        said = repr(text)
        with contextlib.suppress(ValueError):
            number = int(text)
    if number is None or not 0 <= number < 2**46:
        raise InvalidArgument(f"{source} {said} is not a whole number of bytes below 2**46; 0 shares no memory")
    return number


_ARENA_VARIABLE = "ZMQ_OFFLOAD_ARENA_BYTES"


def whole(value: object) -> int | None:
    """A whole number of Python or NumPy as an int; None for anything else, bool included."""
    if type(value) is int:
        return value
    if isinstance(value, (int, np.integer)) and not isinstance(value, bool):
        return int(value)
    return None


def real(value: object) -> float | None:
    """A number of Python or NumPy as a float; None for anything else, bool included."""
    if type(value) is float:
        return value
    if isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool):
        try:
            return float(value)
        except OverflowError:
            return math.inf if value > 0 else -math.inf
    return None


def arrays_of(inputs: Mapping[str, ArrayLike]) -> Mapping[str, Array]:
    """The inputs of a call as arrays. Raises InvalidArgument naming the input that is none."""
    if type(inputs) is not dict and not isinstance(inputs, Mapping):  # a check against an abstract class is slow
        raise InvalidArgument(f"inputs is a {type(inputs).__name__}; use a mapping of names to arrays")
    for value in inputs.values():
        if type(value) is not np.ndarray:
            return {name: _array(name, value) for name, value in inputs.items()}
    return inputs  # type: ignore[return-value,unused-ignore]  # all values are arrays


def check_input_bytes(inputs: Iterable[tuple[str, int]], most: int) -> None:
    """Raise InvalidArgument, which names the first of these inputs that has more bytes than `max_frame_bytes`."""
    for name, nbytes in inputs:
        if nbytes > most:
            raise InvalidArgument(f"input {name!r} has {nbytes} bytes; max_frame_bytes allows {most}")


def _array(name: str, value: object) -> Array:
    try:
        return array_of(value)
    except ValueError as error:
        raise InvalidArgument(f"input {name!r} is not an array: {error}") from None
