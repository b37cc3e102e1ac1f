"""The splits of an adaptive bundle: from the cuts that a user gives to regions, with names for people and models."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeAlias

from zmq_offload.artifacts.manifest import MOST_SPLITS
from zmq_offload.byoc.encoding import Wire, check_wire
from zmq_offload.byoc.region import Region
from zmq_offload.errors import InvalidArgument
from zmq_offload.protocol.names import NAME_PATTERN, check_model_name


@dataclass(frozen=True)
class Cut:
    """One of several cuts of a device bundle.

    Parameters
    ----------
    cut : str or sequence of str
        Names of the tensors at which the offloaded region begins.
    until : str or sequence of str, optional
        Names of the tensors at which it ends. Default: the model's outputs that depend on `cut`.
    wire : {"float32", "float16", "int8"}, optional
        How the float32 tensors at its boundary travel. Default: the `wire` of `compile_model`.
    predicted : mapping of str to float, optional
        Seconds that a plan predicts: of the ``device``, the ``server`` and the ``rest``. The bundle keeps them.

    Examples
    --------
    >>> Cut(["scores", "boxes"], wire="float16")
    Cut(cut=['scores', 'boxes'], until=None, wire='float16', predicted={})
    """

    cut: str | Sequence[str]
    until: str | Sequence[str] | None = None
    wire: Wire | None = None
    predicted: Mapping[str, float] = field(default_factory=dict)


CutLike: TypeAlias = str | Sequence[str] | Cut


@dataclass(frozen=True)
class Split:
    """A split with its name. `region` has the name of the model that it calls, and its encoding."""

    name: str
    region: Region
    predicted: Mapping[str, float]

    @property
    def wire(self) -> Wire:
        return check_wire(self.region.wire or "float32")

    @property
    def cut(self) -> tuple[str, ...]:
        return tuple(self.region.cut)

    @property
    def until(self) -> tuple[str, ...]:
        return tuple(self.region.until or ())


def named_splits(cuts: Sequence[CutLike], model: str | None, wire: Wire) -> list[Split]:
    """The splits of cuts, in their order. Those without an encoding of their own get `wire`.

    Raises InvalidArgument if there are none or too many, or if two are equal.
    """
    if isinstance(cuts, str) or not cuts:
        raise InvalidArgument(f"cuts is {cuts!r}; give a list with at least one cut")
    if model is None:
        raise InvalidArgument("name is missing; it begins the names of the models of all cuts")
    if len(cuts) > MOST_SPLITS:
        raise InvalidArgument(f"--or-cut: {len(cuts)} splits are given; a bundle has at most {MOST_SPLITS}")
    given = [cut if isinstance(cut, Cut) else Cut(cut) for cut in cuts]
    regions = [
        Region(check_model_name(model), _tensors(c.cut), _tensors(c.until) or None, check_wire(c.wire or wire))
        for c in given
    ]
    check_different(regions)
    names = _names(regions)
    return [
        Split(name, replace(region, name=own), cut.predicted)
        for name, own, region, cut in zip(names, _models(model, names), regions, given, strict=True)
    ]


def check_different(regions: Sequence[Region]) -> None:
    """Raises InvalidArgument if two regions have the same tensors and the same encoding."""
    known = set()
    for region in regions:
        key = frozenset(region.cut), frozenset(region.until or ()), region.wire
        if key in known:
            raise InvalidArgument(
                f"--or-cut: the cut at {', '.join(map(repr, region.cut))} is given twice with the encoding "
                f"{region.wire}; leave one out, or give it another --wire"
            )
        known.add(key)


def _tensors(names: str | Sequence[str] | None) -> list[str]:
    return [names] if isinstance(names, str) else list(names or ())


def _names(regions: Sequence[Region]) -> list[str]:
    """The tensors of each cut and its encoding; also those at its end, where only they tell two apart."""
    short = [_name(region, "") for region in regions]
    ends = ["+".join(region.until or ("outputs",)) for region in regions]
    return [
        name if short.count(name) == 1 else _name(region, f"..{end}")
        for name, region, end in zip(short, regions, ends, strict=True)
    ]


def _name(region: Region, end: str) -> str:
    return "+".join(region.cut) + end + ("" if region.wire == "float32" else f"@{region.wire}")


def _models(model: str, splits: Sequence[str]) -> list[str]:
    """A model's name for each split: the same for the same cut in every build, where names of models allow it."""
    found: list[str] = []
    for number, split in enumerate(splits, 1):
        own = f"{model}.{re.sub('[^A-Za-z0-9_.]+', '-', split).strip('-.')}"
        found.append(own if NAME_PATTERN.fullmatch(own) and own not in found else f"{model}.{number}")
    return found
