"""Which splits are allowed: some weights must stay off the device, some inputs must not leave it raw. Pure."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from zmq_offload.common.suggest import nearest
from zmq_offload.errors import InvalidArgument
from zmq_offload.plan.costs import Crossings, CutPoint, Pair, Split, Wire


@dataclass(frozen=True)
class Rules:
    """The rules at each point of a model.

    `sealed_before[i]` are the sealed weights that are needed up to point i, and `sealed_after[i]` those needed from
    there on. `raw[i]` are the private inputs that a cut at point i would send raw: unchanged, or changed only number by
    number (reshaped, cast, normalized, activated).
    """

    sealed_before: tuple[frozenset[str], ...]
    sealed_after: tuple[frozenset[str], ...]
    raw: tuple[frozenset[str], ...]
    sent_raw: Mapping[Pair, frozenset[str]] = field(default_factory=dict)

    @classmethod
    def none(cls, points: int) -> Rules:
        empty = (frozenset[str](),) * points
        return cls(empty, empty, empty)

    def on_device(self, split: Split) -> frozenset[str]:
        """The sealed weights that the device would hold."""
        return self.sealed_before[split.start] | self.sealed_after[split.end]

    def allow(self, split: Split) -> bool:
        local = split.start == split.end
        return not self.on_device(split) and (local or not self._sends_raw(split))

    def _sends_raw(self, split: Split) -> frozenset[str]:
        return self.sent_raw.get((split.start, split.end), self.raw[split.start])


def all_splits(crossings: Crossings, wires: Sequence[Wire]) -> list[Split]:
    """The device alone, and every pair of points with every encoding that is possible there."""
    last = max(end for _, end in crossings)
    found = [Split(last, last)]
    for (start, end), crossing in sorted(crossings.items()):
        usable = [w for w in wires if w != "int8" or not crossing.sent.has_integers()]
        found += [Split(start, end, wire) for wire in usable]
    return found


def allowed_splits(
    points: Sequence[CutPoint], crossings: Crossings, wires: Sequence[Wire], rules: Rules
) -> list[Split]:
    """The splits that the rules allow. Raises InvalidArgument, with the reasons, if there are none."""
    every = all_splits(crossings, wires)
    allowed = [split for split in every if rules.allow(split)]
    if not allowed:
        raise InvalidArgument(f"no split is allowed: {'; '.join(_reasons(points, every, rules))}")
    return allowed


def _reasons(points: Sequence[CutPoint], every: Sequence[Split], rules: Rules) -> list[str]:
    # Only a seal excludes the first, which is device only.
    found = [f"--seal {_names(rules.on_device(every[0]))} excludes device only"]
    cuts = sorted({split.start for split in every[1:]})
    for name in sorted(frozenset[str]().union(*rules.raw)):
        hit = [at for at in cuts if name in rules.raw[at]]
        found.append(f"--private {name!r} excludes sending {_shortly([points[at].name for at in hit])}")
    sealed = frozenset[str]().union(*rules.sealed_before, *rules.sealed_after)
    for name in sorted(sealed):
        hit = [at for at in cuts if name in rules.sealed_before[at]]
        if hit:
            found.append(f"--seal {name!r} excludes cutting at {_shortly([points[at].name for at in hit])}")
    return found


def check_names(option: str, names: Collection[str], known: Collection[str], what: str) -> None:
    """Raises InvalidArgument for an unknown name, with the nearest known ones."""
    for name in names:
        if name not in known:
            raise InvalidArgument(f"{option}: the model has no {what} {name!r}{nearest(name, known)}")


def _names(names: Collection[str]) -> str:
    return ", ".join(map(repr, sorted(names)))


def _shortly(names: Sequence[str]) -> str:
    shown = [repr(name) for name in names]
    return ", ".join(shown if len(shown) <= 4 else [*shown[:2], f"... {len(shown) - 3} more ...", shown[-1]])
