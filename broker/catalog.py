"""The models that workers announced since the broker started, and when a worker that had one was lost. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterable

from broker.state import Model, Wanted
from zmq_offload.protocol import limits
from zmq_offload.protocol.messages import LATEST


class Catalog:
    """Models by name. It is bounded: the oldest are forgotten."""

    def __init__(self) -> None:
        self._versions: dict[str, dict[int, bytes]] = {}  # model -> version -> signature
        self._lost_at: dict[str, float] = {}

    def __len__(self) -> int:
        return len(self._versions)

    def add(self, models: dict[tuple[str, int], Model]) -> None:
        """Remember what a worker announced."""
        for (name, version), model in models.items():
            versions = self._versions.setdefault(name, {})
            versions[version] = model.signature
            if len(versions) > limits.BODY_ITEMS:
                del versions[min(versions)]
            if len(self._versions) > limits.BODY_ITEMS:
                oldest = next(iter(self._versions))
                del self._versions[oldest]
                self._lost_at.pop(oldest, None)

    def has(self, wanted: Wanted) -> bool:
        """Whether a worker ever announced what a request asks for."""
        versions = self._versions.get(wanted.model, {})
        if wanted.signature:
            return wanted.signature in versions.values()
        return bool(versions) if wanted.version == LATEST else wanted.version in versions

    def names(self) -> list[str]:
        """All models."""
        return list(self._versions)

    def newest(self, wanted: Wanted) -> int:
        """The newest version that was announced of those that a request may run; 0 without any."""
        name, version, signature = wanted
        return max(
            (
                known
                for known, its in list(self._versions.get(name, {}).items())  # the metrics are made in another thread
                if version in (LATEST, known) and signature in (b"", its)
            ),
            default=LATEST,
        )

    def lost(self, names: Iterable[str], now: float) -> None:
        """Note that a worker that had these models was lost."""
        self._lost_at.update((name, now) for name in names)

    def lost_at(self, name: str) -> float:
        """When the last worker that had a model was lost; minus infinity if none was."""
        return self._lost_at.get(name, -math.inf)
