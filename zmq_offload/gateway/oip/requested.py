"""The outputs that a request asks for, and how each of them is returned. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from zmq_offload.errors import InvalidArgument
from zmq_offload.gateway.regions.table import Part
from zmq_offload.protocol.payload import Array


class Requested(NamedTuple):
    """One output: its name, and whether it is returned as binary data, as its highest classes, or in shared memory."""

    name: str
    binary: bool = False
    classes: int = 0
    part: Part | None = None


def check_requested(requested: Sequence[Requested]) -> None:
    """Raise InvalidArgument if an output is asked for twice, or in two ways."""
    names = set()
    for output in requested:
        if output.name in names:
            raise InvalidArgument(f"output {output.name!r:.80} is requested twice; name each output once")
        if output.part is not None and (output.binary or output.classes):
            raise InvalidArgument(
                f"output {output.name!r:.80} has both shared_memory_region and "
                f"{'classification' if output.classes else 'binary_data'}; use one of them"
            )
        names.add(output.name)


def check_known(model: str, requested: Iterable[Requested], known: Iterable[str]) -> None:
    """Raise InvalidArgument for an output that the model does not have."""
    names = tuple(known)
    for output in requested:
        if output.name not in names:
            raise InvalidArgument(
                f"model {model!r} has no output {output.name!r:.80}; it has {', '.join(map(repr, names))}"
            )


def selected(
    outputs: Mapping[str, Array], model: str, requested: Sequence[Requested] | None, binary: bool
) -> list[tuple[Requested, Array]]:
    """The outputs to return with their arrays: those asked for, or all. Raises InvalidArgument for an unknown one."""
    if requested is None:
        return [(Requested(name, binary), array) for name, array in outputs.items()]
    check_known(model, requested, outputs)
    return [(output, outputs[output.name]) for output in requested]


_MOST = 1_000_000
"""Elements of an output that is sorted for its classes, as in Triton."""


def classes_of(name: str, array: Array, count: int, batched: bool) -> tuple[list[int], list[bytes]]:
    """The `count` highest elements, each as "value:index", and the shape of these texts.

    They are one row, or a row for each of a batch. Equal elements keep their order, and NaN is last. Values are written
    as Triton writes them. Raises InvalidArgument for an output without an order, or with too many elements.
    """
    kind = array.dtype.kind
    if kind not in "uif" or array.dtype == np.float16:
        raise InvalidArgument(f"output {name!r} is {array.dtype}; classification is for integers, FP32 and FP64")
    batch = array.shape[:1] if batched else ()
    rows = array.reshape(batch[0] if batch and batch[0] else 1, -1)
    if rows.shape[1] > _MOST:
        raise InvalidArgument(f"output {name!r} has {rows.shape[1]} elements a row; classification takes {_MOST}")
    count = min(count, rows.shape[1])
    # Both are monotonic, and no value overflows.
    order = np.argsort(-rows if kind == "f" else ~rows, axis=1, kind="stable")[:, :count]
    form = "{:f}:{}" if kind == "f" else "{}:{}"
    highest = np.take_along_axis(rows, order, axis=1)
    texts = [
        form.format(value, index).encode()
        for value, index in zip(highest.ravel().tolist(), order.ravel().tolist(), strict=True)
    ]
    return [*batch, count], texts
