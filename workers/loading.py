"""Which version a worker loads next, and when it may. Pure."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Container, Iterable, Mapping, Set
from dataclasses import dataclass, field
from typing import TypeAlias

Model: TypeAlias = tuple[str, int]
"""Name and version."""

INCOMPLETE = 0
"""The stamp of a version that lacks a file."""


@dataclass(slots=True)
class Loading:
    """The versions of a repository, each with a stamp that changes when the version is replaced.

    Until a version is ready, the one that it replaces is served.
    """

    there: dict[Model, int] = field(default_factory=dict)
    """Versions in the repository at the last scan."""
    settled: dict[Model, int] = field(default_factory=dict)
    """Versions that were loaded, or failed to load, with the stamp that they had."""
    vanishing: set[Model] = field(default_factory=set)
    """Versions that were complete and now lack a file, as while they are removed or copied file by file. They are not
    loaded in this refresh. If one is still incomplete in the next refresh, loading it reports what is wrong."""

    def scanned(self, there: Mapping[Model, int], first: bool = True) -> list[Model]:
        """A scan found the versions `there`. Returns the settled versions that are gone.

        `first` says whether this is the first scan of a refresh.
        """
        incomplete = {model for model, stamp in there.items() if stamp == INCOMPLETE}
        lately = {model for model in incomplete if self.there.get(model, INCOMPLETE) != INCOMPLETE}
        self.vanishing = lately if first else incomplete & (self.vanishing | lately)
        self.there = dict(there)
        gone = [model for model in self.settled if model not in self.there]
        for model in gone:
            del self.settled[model]
        return gone

    def try_again(self, models: Iterable[Model]) -> None:
        """Load versions that failed to load, although their files are the same."""
        for model in models:
            self.settled.pop(model, None)

    def next(self, running: Collection[Model] = ()) -> tuple[Model, int] | None:
        """The version to load next besides those that are `running`, with its stamp. The newest of each model comes
        first: most requests are for it."""
        out = {*self.vanishing, *running}
        due = ((model, stamp) for model, stamp in self.there.items() if model not in out)
        waiting = {model for model, stamp in due if self.settled.get(model) != stamp}
        if not waiting:
            return None
        chosen: Model | None = None
        least, newer = math.inf, Counter[str]()
        for model in sorted(self.there, key=lambda model: (model[0], -model[1])):
            # How many newer ones its model has; of equals, the first name.
            if model in waiting and newer[model[0]] < least:
                chosen, least = model, newer[model[0]]
            newer[model[0]] += 1
        assert chosen is not None
        return chosen, self.there[chosen]

    def again(self, model: Model) -> None:
        """A version that failed to load may load now."""
        self.settled.pop(model, None)

    def ended(self, model: Model, stamp: int) -> bool:
        """Loading ended, with success or not. Returns whether the result counts: it does not if the version was removed
        or replaced meanwhile."""
        if self.there.get(model) != stamp:
            return False
        self.settled[model] = stamp
        return True


def labels_in_effect(wanted: Mapping[str, int], before: Mapping[str, int], served: Container[int]) -> dict[str, int]:
    """What a model's labels stand for. One whose version is not served, as while it loads, stays where it was `before`,
    as long as that version is served."""
    found = {}
    for label, version in wanted.items():
        if version in served:
            found[label] = version
        elif before.get(label) in served:
            found[label] = before[label]
    return found


def lingering(
    wanted: Collection[int], labels: Mapping[str, int], in_effect: Mapping[str, int], served: Set[int]
) -> set[int]:
    """Of a model's served versions that are not `wanted` any more, those that go on: all of them until one that is
    wanted is served, and those that a label stands for until the version that it is to stand for is served."""
    left_out = {version for version in served if version not in wanted}
    if len(left_out) == len(served):
        return left_out
    return left_out & {v for label, v in in_effect.items() if v != labels[label] and labels[label] in wanted}


@dataclass(slots=True)
class Turn:
    """Workers of one repository load one after the other, so that they do not all slow down at once."""

    patience: float = 60.0
    """Seconds after which a worker no longer waits: the worker that loads may hang, or load a very large version."""
    _since: float | None = None

    def granted(self, free: bool, now: float) -> bool:
        """Whether to load now. `free`: whether the turn could be taken."""
        self._since = now if self._since is None else self._since
        return free or now >= self._since + self.patience
