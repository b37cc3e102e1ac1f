"""What models' configurations say to a broker: labels, canaries, bounds of requests and of queues. Pure.

Workers announce the configuration with each version that they serve. They may say different things: while one has read
a new file and another has not, while a version loads, or because their repositories differ. The rule:

- A label stands for the version under which most of the workers announce it. While as many announce it under two, it
  stays where it was. So a label moves when most of those that serve it can follow.
- Likewise what is said of the model: its canary, the bounds of requests, priority and queue.
- A canary that is returned is returned for good: brokers tell the workers, and they say so at brokers that start anew.
- Only workers that take requests count. A model without any keeps what applied until some come again: they restart.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple, TypeVar

from msgspec import to_builtins

from broker.canary import Trial
from broker.events import ToWorker
from broker.state import NO_SETTINGS, Model, Settings
from zmq_offload.errors import Status
from zmq_offload.protocol import limits
from zmq_offload.protocol import messages as wire
from zmq_offload.protocol.messages import LATEST
from zmq_offload.protocol.payload import encode_body

_Said = TypeVar("_Said", bound=Hashable)


@dataclass(slots=True)
class Route:
    """What applies to the requests for one model."""

    settings: Settings
    labels: dict[str, int] = field(default_factory=dict)
    """Label -> version. It is replaced, not changed: the metrics are made in another thread."""
    trial: Trial | None = None
    """That of the canary in `settings`."""


class _Announced(NamedTuple):
    """What a worker says of a model."""

    labels: Mapping[str, int]
    settings: Settings
    """Those of the model."""
    returned: str = ""
    """Why its canary was returned, as far as the worker knows."""


_NOTHING = _Announced({}, NO_SETTINGS)


class Routes:
    """By model; a model that has no configuration is not here."""

    def __init__(self) -> None:
        self.by_model: dict[str, Route] = {}
        self._announced: dict[str, dict[bytes, _Announced]] = {}
        """model -> peer -> what it says; of the workers that take requests for the model."""
        self._names: dict[bytes, set[str]] = {}
        """The models of each of these workers."""

    def announced(self, peer: bytes, models: Mapping[tuple[str, int], Model]) -> tuple[bool, list[str]]:
        """A worker takes requests for `models` from now on, and for no others.

        Returns whether a canary changed, and what changed, in words.
        """
        before, found = self._names.get(peer, set()), _said(models)
        for name in before - found.keys():
            self._leave(peer, name)
        for name, said in found.items():
            self._announced.setdefault(name, {})[peer] = said
        self._names[peer] = set(found)
        return self._settle(sorted(before | found.keys()))

    def left(self, peer: bytes) -> tuple[bool, list[str]]:
        """A worker takes no requests any more. Returns what `announced` returns."""
        names = self._names.pop(peer, set())
        for name in names:
            self._leave(peer, name)
        return self._settle(sorted(names))

    def _leave(self, peer: bytes, name: str) -> None:
        saying = self._announced[name]
        del saying[peer]
        if not saying:
            del self._announced[name]

    def _settle(self, names: Iterable[str]) -> tuple[bool, list[str]]:
        """Work out what applies to models of which workers say something else than before."""
        tried, texts = False, list[str]()
        for name in names:
            saying = list(self._announced.get(name, {}).values())
            if not saying:
                continue
            route = self.by_model.get(name) or Route(NO_SETTINGS)
            texts += self._label(name, route, saying)
            route.settings = _most(Counter(each.settings for each in saying), route.settings)
            texts += (text := self._try(name, route))
            texts += self._return(name, route, saying)
            tried |= bool(text)
            if route.labels or route.settings != NO_SETTINGS:
                self.by_model[name] = route
                tried |= self._forget()
            elif name in self.by_model:
                del self.by_model[name]
        return tried, texts

    @staticmethod
    def _label(name: str, route: Route, saying: list[_Announced]) -> list[str]:
        votes: dict[str, Counter[int]] = {}
        for each in saying:
            for label, version in each.labels.items():
                votes.setdefault(label, Counter())[version] += 1
        labels = {label: _most(found, route.labels.get(label, LATEST)) for label, found in votes.items()}
        texts = []
        for label in sorted({*route.labels, *labels}):
            before, after = route.labels.get(label), labels.get(label)
            if after is None:
                texts.append(f"model {name!r}: label {label!r} does not stand for version {before} any more")
            elif after != before:
                texts.append(f"model {name!r}: label {label!r} stands for version {after} now")
        route.labels = labels
        return texts

    @staticmethod
    def _try(name: str, route: Route) -> list[str]:
        canary = route.settings.canary
        if canary == (None if route.trial is None else route.trial.canary):
            return []
        if canary is None:
            route.trial = None
            return [f"model {name!r}: there is no canary any more"]
        route.trial = Trial(canary)
        return [f"model {name!r}: version {canary.version} is a canary now and gets {canary.share:.1%} of the requests"]

    @staticmethod
    def _return(name: str, route: Route, saying: list[_Announced]) -> list[str]:
        """Let a trial be over if most workers know that it is: it failed at another broker, or before this one came."""
        trial = route.trial
        if trial is None or trial.returned:
            return []
        known = [each.returned for each in saying if each.settings.canary == trial.canary]
        if 2 * sum(map(bool, known)) <= len(known):
            return []
        trial.returned = max(known)
        version = trial.canary.version
        return [f"model {name!r}: version {version} stays without a share, as its workers know: {trial.returned}"]

    def tell_returned(self, name: str, peer: bytes | None = None) -> list[ToWorker]:
        """What to send to workers, or to this one, that do not know yet that a model's canary is returned."""
        route = self.by_model.get(name)
        if route is None or route.trial is None or not route.trial.returned:
            return []
        saying, canary = self._announced.get(name, {}), route.trial.canary
        unaware = [p for p, said in saying.items() if said.settings.canary == canary and not said.returned]
        body = encode_body({"canary": to_builtins(canary), "text": route.trial.returned})
        return [ToWorker(p, wire.Returned(name), [body]) for p in unaware if peer in (None, p)]

    def _forget(self) -> bool:
        """If there are too many models, forget the oldest that nobody serves. Returns whether there was one."""
        if len(self.by_model) <= limits.BODY_ITEMS:
            return False
        unserved = next((name for name in self.by_model if name not in self._announced), None)
        if unserved is not None:
            del self.by_model[unserved]
        return unserved is not None

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


def _said(models: Mapping[tuple[str, int], Model]) -> dict[str, _Announced]:
    """What a worker says, by model."""
    found: dict[str, _Announced] = {}
    for (name, version), model in sorted(models.items(), key=lambda item: item[0]):
        if model.settings == NO_SETTINGS:
            found.setdefault(name, _NOTHING)
            continue
        labels = {**found.get(name, _NOTHING).labels, **dict.fromkeys(model.settings.labels, version)}
        found[name] = _Announced(labels, model.settings.of_model(), model.settings.returned)
    return found


def _most(votes: Counter[_Said], before: _Said) -> _Said:
    """What most say. Of equals what was said before, else the highest."""
    most = max(votes.values())
    equals = [said for said, count in votes.items() if count == most]
    return (
        before if before in equals else max(equals, key=lambda said: (said if isinstance(said, int) else 0, repr(said)))
    )
