"""Which weights of a model the device holds."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TypeAlias

from zmq_offload.byoc.region import Region
from zmq_offload.common.suggest import nearest
from zmq_offload.compile.models.base import Origins
from zmq_offload.errors import InvalidArgument

Way: TypeAlias = tuple[str, Sequence[Region]]
"""Words for one way in which a model is divided, and its regions."""


def ways_to_divide(regions: Sequence[Region], splits: Sequence[str], whole: bool) -> list[Way]:
    """The ways in which a model is divided.

    With `splits`, their names, each region is a way of its own; else all are one. `whole` adds the undivided model.
    """
    ways: list[Way] = [(f"the split {name!r}", [region]) for name, region in zip(splits, regions, strict=False)]
    return [*(ways or [("its part of the model", regions)]), *([("--with-fallback", [])] if whole else [])]


def weights_on_device(
    origins: Origins, ways: Sequence[Way], outputs: Sequence[str], seal: Collection[str]
) -> tuple[str, ...]:
    """The names of the weights that the device holds, for any of the ways in which a model is divided.

    Raises InvalidArgument for an unknown weight in `seal`, and for one that the device would hold. A way with a tensor
    of unknown origin may need all weights, so it is refused with any `seal`; it adds no names, since the device must
    not know those of what is offloaded.
    """
    for name in seal:
        if name not in origins.weights:
            raise InvalidArgument(f"--seal: the model has no weight {name!r}{nearest(name, origins.weights)}")
    every: set[str] = set()
    for way, regions in ways:
        held = _held(origins, regions, outputs)
        found = sorted(seal if held is None else held.intersection(seal))
        if found:
            raise InvalidArgument(
                f"--seal: the device would hold {', '.join(map(repr, found))} for {way}; leave that out, or cut before "
                "the weight is used"
            )
        every |= held or frozenset()
    return tuple(sorted(every))


def _held(origins: Origins, regions: Sequence[Region], outputs: Sequence[str]) -> frozenset[str] | None:
    """What the device needs around regions; without any, what the whole model needs. None: unknown."""
    cuts = {tensor for region in regions for tensor in region.cut}
    ends = {tensor for region in regions for tensor in region.until or _depending(origins, outputs, region.cut)}
    if not {*cuts, *ends, *outputs} <= {*origins.sources, *origins.inputs}:
        return None
    return _needed(origins, {*outputs, *cuts}, ends) & origins.weights


def _depending(origins: Origins, outputs: Sequence[str], cut: Sequence[str]) -> list[str]:
    return [output for output in outputs if _needed(origins, {output}, ()).intersection(cut)]


def _needed(origins: Origins, names: Collection[str], stop: Collection[str]) -> frozenset[str]:
    """The names, and all from which they are computed; not past `stop`."""
    found, todo = set[str](), list(names)
    while todo:
        name = todo.pop()
        if name not in found and name not in stop:
            found.add(name)
            todo += origins.sources.get(name, ())
    return frozenset(found)
