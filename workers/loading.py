"""What a worker loads next, and when it is its turn. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

Model: TypeAlias = tuple[str, int]
"""Name and version."""

INCOMPLETE = 0
"""The stamp of a version that lacks a file."""


@dataclass(slots=True)
class Loading:
    """Versions by stamps, which change when a version is replaced. One version is loaded at a time; until it is ready,
    what was served before goes on being served."""

    there: dict[Model, int] = field(default_factory=dict)
    """What the repository held at the last look."""
    settled: dict[Model, int] = field(default_factory=dict)
    """What was loaded, or failed to load, as it is now."""
    vanishing: set[Model] = field(default_factory=set)
    """What was complete and lacks a file now: somebody removes or copies it, file by file. It is not loaded in this
    refresh. If it is still incomplete in the next one, loading it says what is wrong."""

    def looked(self, there: Mapping[Model, int], first: bool = True) -> list[Model]:
        """The repository holds `there` now. Returns the settled versions that are gone.

        `first` says whether this is the first look of a refresh.
        """
        incomplete = {model for model, stamp in there.items() if stamp == INCOMPLETE}
        lately = {model for model in incomplete if self.there.get(model, INCOMPLETE) != INCOMPLETE}
        self.vanishing = lately if first else incomplete & (self.vanishing | lately)
        self.there = dict(there)
        gone = [model for model in self.settled if model not in self.there]
        for model in gone:
            del self.settled[model]
        return gone

    def next(self) -> tuple[Model, int] | None:
        """The version to load next, with its stamp: the newest of each model before older ones, which fewer ask for."""
        due = ((model, stamp) for model, stamp in self.there.items() if model not in self.vanishing)
        waiting = [model for model, stamp in due if self.settled.get(model) != stamp]
        if not waiting:
            return None
        chosen = min(waiting, key=lambda model: (self._newer(model), model[0]))
        return chosen, self.there[chosen]

    def _newer(self, model: Model) -> int:
        name, version = model
        return sum(other[0] == name and other[1] > version for other in self.there)

    def ended(self, model: Model, stamp: int) -> bool:
        """Loading ended, well or not. Whether that counts: not if the version was removed or replaced meanwhile."""
        if self.there.get(model) != stamp:
            return False
        self.settled[model] = stamp
        return True


@dataclass(slots=True)
class Turn:
    """Workers of one repository load one after the other, so that they do not all get slower at once."""

    patience: float = 60.0
    """Seconds after which a worker no longer waits: whoever has the turn may hang, or load something very large."""
    _since: float | None = None

    def granted(self, free: bool, now: float) -> bool:
        """Whether to load now, given whether the turn was free to take."""
        self._since = now if self._since is None else self._since
        return free or now >= self._since + self.patience
