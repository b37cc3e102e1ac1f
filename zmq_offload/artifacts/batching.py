"""How requests of one model may run together. Apart from tensors, so that options can be read without NumPy."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import msgspec

from zmq_offload.errors import InvalidArgument

if TYPE_CHECKING:
    from zmq_offload.protocol.tensors import TensorSpec


class Batching(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How requests of one model may run together: at most `max_batch` rows at a time (dimension 0 of every tensor). The
    first of them waits at most `delay_us` microseconds for others."""

    max_batch: int
    delay_us: int = 0

    def __post_init__(self) -> None:
        if type(self.max_batch) is not int or self.max_batch < 1:
            raise InvalidArgument(f"max_batch {self.max_batch!r} is not a whole number of rows from 1")
        if type(self.delay_us) is not int or self.delay_us < 0:
            raise InvalidArgument(f"batch delay {self.delay_us!r} is not a whole number of microseconds from 0")

    def check(self, tensors: Iterable[TensorSpec]) -> None:
        """Raises InvalidArgument naming the first tensor whose dimension 0 is not symbolic."""
        for tensor in tensors:
            if not tensor.shape or tensor.shape[0] >= 0:
                raise InvalidArgument(
                    f"requests cannot run together: tensor {tensor} has no symbolic batch dimension; "
                    "compile the model with --input NAME=N,..."
                )
