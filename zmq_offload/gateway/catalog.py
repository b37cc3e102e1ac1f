"""The models that workers serve, as the broker listed them. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from zmq_offload.errors import NotFound
from zmq_offload.protocol.tensors import TensorSpec


@dataclass(frozen=True, slots=True)
class Model:
    """One served version of a model. `latest` says whether requests without a version go to it."""

    name: str
    version: int
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    workers: int
    latest: bool


@dataclass(frozen=True, slots=True)
class Catalog:
    """All served versions, sorted by name and version."""

    models: Sequence[Model]

    def versions(self, name: str) -> list[Model]:
        """The served versions of a model, the lowest first; empty if there are none."""
        return [model for model in self.models if model.name == name]

    def find(self, name: str, version: int | None = None) -> Model:
        """A version, or the latest. Raises NotFound, which lists what is served."""
        found = self.versions(name)
        for model in found:
            if model.latest if version is None else model.version == version:
                return model
        if found:
            listing = ", ".join(str(model.version) for model in found)
            raise NotFound(f"model {name!r} has no version {version}; served are versions {listing}")
        served = ", ".join(dict.fromkeys(model.name for model in self.models)) or "none"
        raise NotFound(f"model {name!r} is not served; served are: {served}")
