"""The models that workers serve, as the broker listed them. Pure."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from zmq_offload.errors import InvalidArgument, NotFound, ProtocolError
from zmq_offload.protocol.names import NAME_PATTERN
from zmq_offload.protocol.tensors import TensorSpec

_NAMED = 20
"""Models that an error names; as many as the broker's errors."""


_GONE = 1024
"""Versions that are remembered after they were served."""


@dataclass(frozen=True, slots=True)
class CachePolicy:
    """That answers of a version may be kept, and for how many seconds. `build` changes when its files are replaced."""

    seconds: float
    build: str = ""


@dataclass(frozen=True, slots=True)
class Model:
    """One served version of a model.

    `latest` says whether requests without a version go to it; `open`, whether this gateway takes requests for it.
    `max_batch` is the largest batch that workers accept, if they have a bound. `cache`: whether answers may be kept.
    `canary`: whether the model has a canary, so that a request for the latest version may go to another one. `labels`
    are the names that stand for this version.
    """

    name: str
    version: int
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    workers: int
    latest: bool
    open: bool = True
    max_batch: int | None = None
    cache: CachePolicy | None = None
    canary: bool = False
    labels: tuple[str, ...] = ()

    def is_meant(self, version: int | None, label: str = "") -> bool:
        """Whether requests for a version, or a label, or for neither go to this one."""
        if label:
            return label in self.labels
        return self.latest if version is None else self.version == version


class Indexed(NamedTuple):
    """A version in the index of the repository. `reason` says why it is not ready."""

    name: str
    version: int
    ready: bool
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Catalog:
    """All served versions, sorted by name and version. `find` and `versions` know only those that are open.

    `gone` are versions that were served earlier, those that were seen last first.
    """

    models: Sequence[Model]
    gone: Sequence[Model] = ()

    def versions(self, name: str) -> list[Model]:
        """The open versions of a model, the lowest first; empty if there are none."""
        return [model for model in self.models if model.name == name and model.open]

    def find(self, name: str, version: int | None = None, label: str = "") -> Model:
        """A version, or the latest, or the one of a label. Raises NotFound, which lists what is served."""
        found = self.versions(name)
        for model in found:
            if model.is_meant(version, label):
                return model
        if found and label:
            known = sorted({one for model in found for one in model.labels})
            raise NotFound(f"model {name!r} has no label {label!r:.200}; it has {', '.join(known) or 'no labels'}")
        if found:
            listing = ", ".join(str(model.version) for model in found)
            plural = "s are" if len(found) > 1 else " is"
            raise NotFound(f"model {name!r} has no version {version}; the served version{plural} {listing}")
        if any(model.name == name for model in self.models):
            raise unloaded(name)
        names = list(dict.fromkeys(model.name for model in self.models if model.open))
        more = f", and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
        raise NotFound(f"model {name!r} is not served; served are: {', '.join(names[:_NAMED]) or 'none'}{more}")

    def awaited(self, name: str, version: int | None = None, label: str = "") -> Model:
        """The same for a request to run a model. It may be gone: the broker knows whether its worker may come back."""
        try:
            return self.find(name, version, label)
        except NotFound:
            for model in self.gone:
                if model.name == name and model.open and model.is_meant(version, label):
                    return model
            raise

    def after(self, before: Catalog | None) -> Catalog:
        """This list with the versions that are gone since an earlier one."""
        if before is None:
            return self
        served = {(model.name, model.version) for model in self.models}
        gone = [model for model in (*before.models, *before.gone) if (model.name, model.version) not in served]
        return Catalog(self.models, gone[:_GONE])

    def indexed(self) -> list[Indexed]:
        """The versions for an index."""
        return [Indexed(m.name, m.version, m.open, "" if m.open else "unloaded") for m in self.models]

    def has(self, name: str, version: int | None = None) -> bool:
        """Whether a version, or any, is served."""
        return any(model.name == name and version in (None, model.version) for model in self.models)

    def seen(self, allows: Callable[[str], bool], closed: Collection[str]) -> Catalog:
        """The part that somebody may see, without the way to the models that are `closed`."""
        if not closed and all(allows(model.name) for model in (*self.models, *self.gone)):
            return self
        models, gone = (
            [
                dataclasses.replace(model, open=False) if model.name in closed else model
                for model in models
                if allows(model.name)
            ]
            for models in (self.models, self.gone)
        )
        return Catalog(models, gone)


def unloaded(name: str) -> NotFound:
    """The error of a request for a model that this gateway was told to unload."""
    return NotFound(f"model {name!r} has no available versions; it is unloaded at this gateway")


def can_exist(name: str) -> bool:
    """Whether a model can have this name."""
    return NAME_PATTERN.fullmatch(name) is not None


def unknown(name: str) -> NotFound:
    """The error of a request for a model that cannot exist: no different from one that does not."""
    return NotFound(f"model {name!r:.80} is not served, and no model can have this name")


def catalog_of(body: object) -> Catalog:
    """Read the broker's answer to the query "models". Raises ProtocolError.

    An older broker does not say which version is the latest; then it is the highest.
    """
    try:
        if not isinstance(body, list):
            raise ProtocolError("the broker's list of models is not a list")
        highest: dict[str, int] = {}
        for entry in body:
            highest[entry["name"]] = max(entry["version"], highest.get(entry["name"], 0))
        models = [_model(entry, highest) for entry in body]
    except (KeyError, TypeError, InvalidArgument) as error:
        if isinstance(error, ProtocolError):
            raise
        raise ProtocolError(f"the broker's list of models cannot be read: {error}") from None
    return Catalog(sorted(models, key=lambda model: (model.name, model.version)))


def _model(entry: Mapping[str, object], highest: Mapping[str, int]) -> Model:
    name, version, workers = entry["name"], entry["version"], entry["workers"]
    if not isinstance(name, str) or not isinstance(version, int) or not isinstance(workers, int):
        raise ProtocolError("a model of the broker's list has no name, version and workers of the right types")
    latest, most = entry.get("latest", version == highest[name]), entry.get("max_batch")
    if most is not None and not isinstance(most, int):
        raise ProtocolError("a model of the broker's list has a max_batch that is not a number")
    config = entry.get("config")
    config = config if isinstance(config, dict) else {}
    return Model(
        name,
        version,
        _specs(entry["inputs"]),
        _specs(entry["outputs"]),
        workers,
        latest is True,
        max_batch=most,
        cache=_cache_of(config.get("cache")),
        canary=bool(config.get("canary")),
        labels=_labels_of(entry.get("labels", config.get("labels", []))),
    )


def _labels_of(value: object) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(label, str) for label in value):
        raise ProtocolError("the labels of a model of the broker's list are not names")
    return tuple(value)


def _cache_of(value: object) -> CachePolicy | None:
    """The policy in an entry; None if its answers are not kept."""
    if not isinstance(value, dict):
        return None
    seconds, build = value.get("seconds"), value.get("build", "")
    if not isinstance(seconds, int | float) or not isinstance(build, str) or not 0 < seconds < math.inf:
        raise ProtocolError("the cache of a model of the broker's list is not a time in seconds and a build")
    return CachePolicy(seconds, build)


def _specs(values: object) -> tuple[TensorSpec, ...]:
    if not isinstance(values, list):
        raise ProtocolError("the tensors of a model are not a list")
    return tuple(TensorSpec.from_json(value) for value in values)
