"""What models' configurations say to a broker: labels, canaries, bounds of requests and of queues. Pure.

Workers announce the configuration with each version that they serve. If two workers say different things, as while one
of them has read a new file and the other has not, the one that announced itself last is right.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from broker.canary import Trial
from broker.state import Model, Settings
from zmq_offload.errors import Status
from zmq_offload.protocol import limits
from zmq_offload.protocol.messages import LATEST


@dataclass(slots=True)
class Route:
    """What applies to the requests for one model."""

    settings: Settings
    labels: dict[str, int] = field(default_factory=dict)
    """Label -> version."""
    trial: Trial | None = None

    def empty(self) -> bool:
        return not self.labels and self.trial is None and self.settings == Settings()


class Routes:
    """By model; a model that has no configuration is not here."""

    def __init__(self) -> None:
        self.by_model: dict[str, Route] = {}

    def announced(self, models: Mapping[tuple[str, int], Model]) -> tuple[set[str], list[str]]:
        """A worker announced `models`.

        Returns the models whose labels or canary changed, and what changed, in words.
        """
        changed: set[str] = set()
        texts: list[str] = []
        for (name, version), model in models.items():
            settings = model.settings
            route = self.by_model.get(name)
            if route is None:
                if settings == Settings():
                    continue
                if len(self.by_model) >= limits.BODY_ITEMS:
                    oldest = next(iter(self.by_model))
                    del self.by_model[oldest]
                    changed.add(oldest)
                route = self.by_model[name] = Route(Settings())
            texts += self._label(name, version, route, settings.labels, changed)
            texts += self._try(name, route, settings, changed)
            route.settings = settings.of_model()
        for name in {name for name, _ in models}:
            if name in self.by_model and self.by_model[name].empty():
                del self.by_model[name]
        return changed, texts

    @staticmethod
    def _label(name: str, version: int, route: Route, labels: tuple[str, ...], changed: set[str]) -> list[str]:
        texts = []
        for label in [label for label, labeled in route.labels.items() if labeled == version and label not in labels]:
            del route.labels[label]
            changed.add(name)
            texts.append(f"model {name!r}: label {label!r} does not stand for version {version} any more")
        for label in labels:
            if route.labels.get(label) != version:
                route.labels[label] = version
                changed.add(name)
                texts.append(f"model {name!r}: label {label!r} stands for version {version} now")
        return texts

    @staticmethod
    def _try(name: str, route: Route, settings: Settings, changed: set[str]) -> list[str]:
        before = None if route.trial is None else route.trial.canary
        if settings.canary == before:
            return []
        changed.add(name)
        if settings.canary is None:
            route.trial = None
            return [f"model {name!r}: there is no canary any more"]
        route.trial = Trial(settings.canary)
        share = settings.canary.share
        return [
            f"model {name!r}: version {settings.canary.version} is a canary now and gets {share:.1%} of the requests"
        ]

    def canaries(self) -> dict[str, int]:
        """The versions that are canaries, by model."""
        return {name: route.trial.canary.version for name, route in self.by_model.items() if route.trial is not None}

    def labels_of(self, model: str, version: int) -> list[str]:
        """The labels that stand for a version."""
        route = self.by_model.get(model)
        return [] if route is None else sorted(label for label, labeled in route.labels.items() if labeled == version)

    def labeled(self, model: str, label: str) -> int | tuple[Status, str]:
        """The version that a label stands for, or the error of a request that names it."""
        route = self.by_model.get(model)
        version = LATEST if route is None else route.labels.get(label, LATEST)
        if version:
            return version
        known = sorted(route.labels) if route is not None else []
        has = f"it has {', '.join(known)}" if known else "it has no labels"
        return Status.NOT_FOUND, f"model {model!r} has no label {label!r}; {has}"
