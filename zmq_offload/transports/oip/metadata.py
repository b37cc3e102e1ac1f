"""What a server says of a model, and how priorities are said to it. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import NamedTuple

from zmq_offload.errors import NotFound, OffloadError, Unavailable
from zmq_offload.protocol import limits
from zmq_offload.protocol.tensors import TensorSpec
from zmq_offload.transports.transport import Served
from zmq_offload.transports.versions import numbers_of


class Metadata(NamedTuple):
    """A model as its server describes it. `versions` are names as the server has them."""

    versions: Sequence[str]
    inputs: Sequence[TensorSpec]
    outputs: Sequence[TensorSpec]


def served_versions(describe: Callable[[int | None], Metadata]) -> Iterator[Served]:
    """The versions of a model, the latest first. `describe` asks for a version, or for what a call without one gets."""
    latest = describe(None)
    numbers = numbers_of(latest.versions)
    if len(numbers) < 2:
        yield Served(next(iter(numbers), None), latest.inputs, latest.outputs)
        return
    for number in numbers:
        with suppress(NotFound):  # it was unloaded meanwhile
            found = describe(number)
            yield Served(number, found.inputs, found.outputs)


def urgency(priority: int) -> int:
    """Triton's priority for ours: 1 is the most urgent, a larger number is less urgent, 0 is the default.

    Ours go from 100 (most urgent) to -100. A Triton whose model has fewer levels takes its default for higher numbers.
    """
    return limits.PRIORITY + 1 - priority if priority else 0


def meant(error: OffloadError, ready: bool) -> OffloadError:
    """The error of a call, with what the server says of itself: who is not ready may only not have the model yet."""
    return (
        Unavailable(f"the server is not ready: {error.message}") if isinstance(error, NotFound) and not ready else error
    )
