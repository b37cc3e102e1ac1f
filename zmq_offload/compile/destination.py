"""The folders that a build writes to: what exists there, what may be replaced, and whether a new version fits."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from zmq_offload.artifacts.manifest import MANIFEST, Manifest, OffloadedRegion, check_policy
from zmq_offload.artifacts.repository import ModelVersion, Repository
from zmq_offload.byoc.codegen import Subgraph
from zmq_offload.common.suggest import did_you_mean
from zmq_offload.compile.options import BuildOptions
from zmq_offload.errors import AlreadyExists, FailedPrecondition, InvalidArgument
from zmq_offload.protocol.names import check_model_name, check_version
from zmq_offload.protocol.tensors import TensorSpec


@dataclass(frozen=True)
class Destination:
    """The folders that a build writes to, and the rules for what it may replace there."""

    options: BuildOptions

    @property
    def output(self) -> Path:
        return Path(self.options.output)

    @property
    def device(self) -> Path:
        return self.output / "device"

    @property
    def repository(self) -> Repository:
        given = self.options.repository
        return Repository(Path(given) if given is not None else self.output / "repository")

    def number(self, model: str) -> int:
        """The version number that `model` gets."""
        if self.options.version is not None:
            return self.options.version
        return max(self.repository.versions(model), default=0) + 1 if self.options.only_subgraph else 1

    def together(self, models: Sequence[str]) -> Destination:
        """The destination in which all models get the same version number, which is free for each."""
        return replace(self, options=replace(self.options, version=max(map(self.number, models))))

    def check_names(self, models: Sequence[str]) -> None:
        """Raises InvalidArgument for a bad name or version, and for options that exclude each other.

        Writes nothing, and reads the disk only for the next free version.
        """
        check_policy(self.options.policy)
        if self.options.only_subgraph and self.options.with_fallback:
            raise InvalidArgument(
                "--with-fallback changes the device bundle, which --only-subgraph keeps; leave one out"
            )
        for model in models:
            number = check_version(self.number(check_model_name(model)))
            pinned = self.options.policy if isinstance(self.options.policy, int) else number
            if self.options.with_fallback and pinned != number:
                raise InvalidArgument(
                    f"--with-fallback: the fallback of {model!r} would be version {number}, but the device asks for "
                    f"version {self.options.policy}; compile that version"
                )

    def check(self, models: Sequence[str]) -> None:
        """Check, before anything slow, that the results can be written. Call it after `check_names`.

        Raises AlreadyExists for a version or bundle that `force` would replace, and FailedPrecondition for folders that
        cannot be written, for a device bundle that is missing or calls other models, and for a folder in its place
        that is not a device bundle (not even `force` replaces that).
        """
        for model in models:
            place = self.repository.path(model, self.number(model))
            if _exists(place) and not self.options.force:
                free = max(self.repository.versions(model), default=0) + 1
                raise AlreadyExists(
                    f"{place} exists; choose another version (--version {free}) or replace it (--force)"
                )
        if self.options.only_subgraph:
            self._called(models)
        elif _exists(self.device):
            if not self.options.force:
                raise AlreadyExists(
                    f"{self.device} exists; keep it and add a subgraph (--only-subgraph), replace it (--force), or "
                    "choose another folder (-o)"
                )
            if not (self.device / MANIFEST).is_file():
                raise FailedPrecondition(
                    f"{self.device} is not a device bundle and is not replaced; remove it, or choose another folder"
                )
        for folder in (self.output, self.repository.root):
            _check_writable(folder)

    def check_signature(self, subgraphs: Sequence[Subgraph]) -> None:
        """Raises FailedPrecondition, with the tensor, for a subgraph that does not fit the existing device bundle
        (`only_subgraph`), or that differs from the highest version in the repository (without `new_signature`)."""
        if self.options.only_subgraph:
            self._check_device(subgraphs)
        if not self.options.new_signature:
            for subgraph in subgraphs:
                self._check_version(subgraph)

    def _check_version(self, subgraph: Subgraph) -> None:
        """Devices ask for the latest version. One with another signature would fail on every device in use."""
        number = self.number(subgraph.model)
        before = self._highest_other(subgraph.model, number)
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
                f"{_signature(subgraph.inputs, subgraph.outputs)}, and devices built for {who} cannot "
                "use it; choose another --name, or allow it with --new-signature"
            )

    def _highest_other(self, model: str, number: int) -> ModelVersion | None:
        """The highest version of a model that workers can load, apart from version `number`."""
        for version in reversed(self.repository.versions(model)):
            if version != number:
                with contextlib.suppress(FailedPrecondition):  # a damaged version, which no worker serves
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


def _exists(place: Path) -> bool:
    try:
        return place.exists()
    except OSError as error:  # the name is too long, or the folder may not be read
        raise FailedPrecondition(f"{place} cannot be written: {error.strerror or error}") from None


def _check_writable(folder: Path) -> None:
    """Raises FailedPrecondition if a folder cannot be written or created. Does not create it."""
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
    """Describe the first tensor in which two signatures differ, by name in any order; None if they agree.

    `kind` is "input" or "output", `who` the owner of `theirs`, for the text.
    """
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
