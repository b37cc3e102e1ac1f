"""Divide a model at several cuts: one module for the device, and one for the workers, with an entry for each split.

The entries are functions of one module, so that TVM's passes make one kernel of equal kernels, and one constant of
equal weights.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

from zmq_offload.byoc.codegen import split as split_module
from zmq_offload.byoc.joined import joined
from zmq_offload.byoc.outline import outline_regions, undivided
from zmq_offload.byoc.wire import encode_boundary
from zmq_offload.compile.bundle import Divided
from zmq_offload.compile.onnx.importer import Imported
from zmq_offload.compile.splits import Split
from zmq_offload.errors import InvalidArgument

LOCAL = "whole"
"""The entry of the device's library that runs the whole model."""


def divide_at(imported: Imported, splits: Sequence[Split], *, local: bool) -> Divided:
    """Divide a model; with `local` the device's module has an entry for the whole model, too.

    Raises InvalidArgument, with the name of the split, as `outline_regions` and `encode_boundary` do.
    """
    devices, subgraphs, entries = {}, [], []
    for number, split in enumerate(splits, 1):
        with _naming(split):
            mod, _ = outline_regions(imported.mod, imported.graph, [split.region])
            device, (subgraph,) = split_module(encode_boundary(mod, [split.wire]), [split.region.name])
        entries.append(f"split_{number}")
        devices[entries[-1]] = device
        subgraphs.append(replace(subgraph, entry=f"from_{number}"))
    if local:
        devices[LOCAL] = undivided(imported.mod, imported.graph)
    return Divided(joined(devices), tuple(subgraphs), tuple(zip(splits, entries, strict=True)), LOCAL if local else "")


@contextmanager
def _naming(split: Split) -> Iterator[None]:
    try:
        yield
    except InvalidArgument as error:
        raise InvalidArgument(f"split {split.name!r}: {error}") from None
