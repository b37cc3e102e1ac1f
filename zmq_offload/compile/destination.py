"""Where compiling writes: what is there already, what may be replaced, and whether a new version fits."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from zmq_offload.artifacts.manifest import MANIFEST, Manifest, OffloadedRegion, VersionPolicy, check_policy
from zmq_offload.artifacts.repository import Batching, ModelVersion, Repository
from zmq_offload.byoc.codegen import Subgraph
from zmq_offload.common.suggest import did_you_mean
from zmq_offload.errors import AlreadyExists, FailedPrecondition, InvalidArgument
from zmq_offload.protocol.names import check_model_name, check_version
from zmq_offload.protocol.tensors import TensorSpec


@dataclass(frozen=True)
class Destination:
    """Where compiling writes, and what it may replace.

    `output` gets the folder `device`, and `repository` (default: a folder in `output`) the subgraphs. `version` is
    the subgraphs' version number: 1 unless given, the next free one with `only_subgraph`, which leaves an existing
    device bundle as it is. `policy` is what the device asks for. `force` allows to replace what is there. `batching`
    is how workers may put requests together, None for one at a time. `with_fallback` puts a copy of each subgraph into
    the device bundle, which then is not sealed. `new_signature` allows a version whose inputs or outputs differ from
    those of the highest version that is there.
    """

    output: Path
    repository: Repository
    version: int | None = None
    policy: VersionPolicy = "latest"
    force: bool = False
    only_subgraph: bool = False
    batching: Batching | None = None
    with_fallback: bool = False
    new_signature: bool = False

    @property
    def device(self) -> Path:
        return self.output / "device"

    def number(self, model: str) -> int:
        """The version that `model` will get."""
        if self.version is not None:
            return self.version
        return max(self.repository.versions(model), default=0) + 1 if self.only_subgraph else 1

    def check_names(self, models: Sequence[str]) -> None:
        """Raises InvalidArgument for a bad name or version, and for what cannot go together. The disk is not written
        to, and looked at for the next free version only."""
        check_policy(self.policy)
        if self.only_subgraph and self.with_fallback:
            raise InvalidArgument("--with-fallback is for a device bundle, which --only-subgraph leaves as it is")
        for model in models:
            number = check_version(self.number(check_model_name(model)))
            if self.with_fallback and self.policy not in ("latest", number):
                raise InvalidArgument(
                    f"--with-fallback: the copy of {model!r} would be of version {number}, but the device would ask "
                    f"for version {self.policy}; compile that one"
                )

    def check(self, models: Sequence[str]) -> None:
        """Find out before the slow part whether the result can be written, after `check_names`.

        Raises AlreadyExists for what is there and not to be replaced, FailedPrecondition where nothing can be written,
        for a device bundle that is missing or of other models, and for a folder in its place that is none: that is not
        replaced even by `force`.
        """
        for model in models:
            place = self.repository.path(model, self.number(model))
            if _there(place) and not self.force:
                free = max(self.repository.versions(model), default=0) + 1
                raise AlreadyExists(
                    f"{place} exists; choose another version (--version {free}) or replace it (--force)"
                )
        if self.only_subgraph:
            self._called(models)
        elif _there(self.device):
            if not self.force:
                raise AlreadyExists(
                    f"{self.device} exists; keep it and add a subgraph (--only-subgraph), replace it (--force), or "
                    "choose another folder (-o)"
                )
            if not (self.device / MANIFEST).is_file():
                raise FailedPrecondition(
                    f"{self.device} is not a device bundle, and is not replaced; remove it yourself"
                )
        for folder in (self.output, self.repository.root):
            _check_writable(folder)

    def check_signature(self, subgraphs: Sequence[Subgraph]) -> None:
        """Raises FailedPrecondition naming the tensor by which a subgraph does not fit the existing device bundle that
        it is compiled for, or differs from the highest version in the repository (without `new_signature`)."""
        if self.only_subgraph:
            self._check_device(subgraphs)
        if not self.new_signature:
            for subgraph in subgraphs:
                self._check_version(subgraph)

    def _check_version(self, subgraph: Subgraph) -> None:
        """Devices ask for the latest version: one that takes or returns something else fails all that are in use."""
        number = self.number(subgraph.model)
        before = self._before(subgraph.model, number)
        if before is None:
            return
        who = f"version {before.version}"
        fault = signature_difference("input", subgraph.inputs, before.inputs, who) or signature_difference(
            "output", subgraph.outputs, before.outputs, who
        )
        if fault:
            raise FailedPrecondition(
                f"version {number} of {subgraph.model!r} would have another signature than {who} in "
                f"{self.repository.root}: {fault}; {who} "
                f"{_signature(before.inputs, before.outputs)}, the new one "
                f"{_signature(subgraph.inputs, subgraph.outputs)}. Devices that were built for {who} cannot "
                "use the new one: choose another --name, or allow it by --new-signature"
            )

    def _before(self, model: str, number: int) -> ModelVersion | None:
        """The highest version of a model that stays and that workers can load."""
        for version in reversed(self.repository.versions(model)):
            if version != number:
                with contextlib.suppress(FailedPrecondition):  # damaged: no worker serves it
                    return self.repository.read(model, version)
        return None

    def _check_device(self, subgraphs: Sequence[Subgraph]) -> None:
        called = self._called([s.model for s in subgraphs])
        for subgraph in subgraphs:
            device = called[subgraph.model]
            for kind, ours, theirs in (
                ("input", subgraph.inputs, device.inputs),
                ("output", subgraph.outputs, device.outputs),
            ):
                fault = signature_difference(kind, ours, theirs, "the device")
                if fault:
                    raise FailedPrecondition(f"model {subgraph.model!r} does not fit the device bundle: {fault}")

    def _called(self, models: Sequence[str]) -> dict[str, OffloadedRegion]:
        called = {o.model: o for o in Manifest.read(self.device).offloaded}
        for model in models:
            if model not in called:
                raise FailedPrecondition(
                    f"{self.device} does not call a model {model!r}; it calls {', '.join(called)}"
                    f"{did_you_mean(model, called)}"
                )
        return called


def _there(place: Path) -> bool:
    try:
        return place.exists()
    except OSError as error:  # a name that is too long, a folder that is not ours to look into
        raise FailedPrecondition(f"{place} cannot be written: {error.strerror or error}") from None


def _check_writable(folder: Path) -> None:
    """Whether a folder can be written, or made. It is not made yet: what is still to be checked may fail."""
    place = folder
    try:
        while not place.exists():
            place = place.parent
        with tempfile.TemporaryFile(dir=place):
            pass
    except OSError as error:
        raise FailedPrecondition(
            f"{folder} cannot be written: {error.strerror or os.strerror(error.errno or 0)}"
        ) from None


def signature_difference(kind: str, ours: Sequence[TensorSpec], theirs: Sequence[TensorSpec], who: str) -> str | None:
    """In which tensor (`kind`: "input" or "output") ours differ from theirs, by name in any order; `who` theirs are."""
    found = {t.name: t for t in ours}
    for spec in theirs:
        if spec.name not in found:
            return f"{who}'s {kind} {spec} is missing"
        if found[spec.name] != spec:
            return f"{kind} {spec.name!r} is {found[spec.name]}, {who} has {spec}"
    extra = [t for t in ours if t.name not in {s.name for s in theirs}]
    return f"{who} has no {kind} {extra[0]}" if extra else None


def _signature(inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> str:
    return f"takes {', '.join(map(str, inputs))} and returns {', '.join(map(str, outputs))}"
