"""The back half of compiling: a partitioned module -> device bundle and model repository entries."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import tvm

from zmq_offload.byoc.codegen import Subgraph, offloaded_functions, split
from zmq_offload.byoc.manifest import (
    LIBRARY,
    MANIFEST,
    Fallback,
    Manifest,
    Offloaded,
    VersionPolicy,
    check_policy,
    fallback_library,
)
from zmq_offload.compile.build import build, export, prepared
from zmq_offload.compile.flops import Count, counting
from zmq_offload.compile.target import cpu_needs, runs_here, target_json
from zmq_offload.compile.tuning.plan import Tuning
from zmq_offload.errors import AlreadyExists, FailedPrecondition, InvalidArgument
from zmq_offload.extras import needs
from zmq_offload.progress import Progress
from zmq_offload.protocol.tensors import TensorSpec, check_signature
from zmq_offload.repository import LIBRARY as SUBGRAPH
from zmq_offload.repository import Batching, ModelVersion, Repository, check_model_name, check_version, checksum

if TYPE_CHECKING:  # MetaSchedule takes as long to import as everything else, and only tuning needs it
    from zmq_offload.compile.tuning.report import Summary


@dataclass(frozen=True)
class Compiled:
    """What compiling wrote: the device bundle's folder and manifest, and each subgraph's folder and description; and
    what tuning found, where there was any."""

    device: Path
    manifest: Manifest
    subgraphs: tuple[Path, ...]
    models: tuple[ModelVersion, ...]
    tuning: Summary | None = None


@dataclass(frozen=True)
class Destination:
    """Where compiling writes, and what it may replace.

    `output` gets the folder `device`, and `repository` (default: a folder in `output`) the subgraphs. `version` is
    the subgraphs' version number: 1 unless given, the next free one with `only_subgraph`, which leaves an existing
    device bundle as it is. `policy` is what the device asks for. `force` allows to replace what is there. `batching`
    is how workers may put requests together, None for one at a time. `with_fallback` puts a copy of each subgraph into
    the device bundle, which then is not sealed.
    """

    output: Path
    repository: Repository
    version: int | None = None
    policy: VersionPolicy = "latest"
    force: bool = False
    only_subgraph: bool = False
    batching: Batching | None = None
    with_fallback: bool = False

    @property
    def device(self) -> Path:
        return self.output / "device"

    def number(self, model: str) -> int:
        """The version that `model` will get."""
        if self.version is not None:
            return self.version
        return max(self.repository.versions(model), default=0) + 1 if self.only_subgraph else 1

    def check(self, models: Sequence[str]) -> None:
        """Find out before the slow part whether the result can be written.

        Raises InvalidArgument for a bad name or version, AlreadyExists for what is there and not to be replaced,
        FailedPrecondition where nothing can be written, for a device bundle that is missing or of other models, and
        for a folder in its place that is none: that is not replaced even by `force`.
        """
        check_policy(self.policy)
        if self.only_subgraph and self.with_fallback:
            raise InvalidArgument("--with-fallback is for a device bundle, which --only-subgraph leaves as it is")
        for model in models:
            check_model_name(model)
            check_version(self.number(model))
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
                raise FailedPrecondition(f"{self.device} is no device bundle, and is not replaced; remove it yourself")
        for folder in (self.output, self.repository.root):
            _check_writable(folder)

    def check_signature(self, subgraphs: Sequence[Subgraph]) -> None:
        """Raises FailedPrecondition naming the tensor by which a subgraph does not fit the existing device bundle."""
        called = self._called([s.model for s in subgraphs])
        for subgraph in subgraphs:
            device = called[subgraph.model]
            for kind, ours, theirs in (
                ("input", subgraph.inputs, device.inputs),
                ("output", subgraph.outputs, device.outputs),
            ):
                fault = _difference(kind, ours, theirs)
                if fault:
                    raise FailedPrecondition(f"model {subgraph.model!r} does not fit the device bundle: {fault}")

    def _called(self, models: Sequence[str]) -> dict[str, Offloaded]:
        called = {o.model: o for o in Manifest.read(self.device).offloaded}
        for model in models:
            if model not in called:
                raise FailedPrecondition(f"{self.device} does not call a model {model!r}; it calls {', '.join(called)}")
        return called


def write(
    mod: tvm.IRModule,
    models: Sequence[str],
    signature: tuple[Sequence[TensorSpec], Sequence[TensorSpec]],
    destination: Destination,
    target: tvm.target.Target,
    device_target: tvm.target.Target,
    progress: Progress,
    tuning: Tuning | None = None,
) -> Compiled:
    """Compile a partitioned module and write the results; `models` is in the order of its offloaded functions.

    `signature` has the inputs and outputs of the whole model. Nothing is written until everything is compiled.
    """
    if len(models) != len(offloaded_functions(mod)):
        raise InvalidArgument(
            f"the module has {len(offloaded_functions(mod))} offloaded functions, but {len(models)} model names are "
            "given; partition it first, and name each"
        )
    if len(set(models)) != len(models):
        raise InvalidArgument(f"each offloaded function needs a model name of its own, not {', '.join(models)}")
    device, subgraphs = split(mod, models)
    for subgraph in subgraphs:
        check_signature(subgraph.inputs, subgraph.outputs)
    if destination.only_subgraph:
        destination.check_signature(subgraphs)
    if destination.batching is not None:
        for subgraph in subgraphs:
            destination.batching.check((*subgraph.inputs, *subgraph.outputs))
    parts = [(s.module, target) for s in subgraphs]
    parts += [] if destination.only_subgraph else [(device, device_target)]
    found = _tune(parts, tuning, progress) if tuning is not None and tuning.trials else None
    folder = tuning.folder if tuning is not None else None
    with tempfile.TemporaryDirectory(prefix=".compile-", dir=destination.output) as scratch:
        libraries, work = [], []
        for subgraph in subgraphs:
            with progress.step(f"compile the subgraph {subgraph.model!r}"):
                libraries.append(Path(scratch) / f"{subgraph.symbol}.so")
                with counting() as flops:
                    export(build(subgraph.module, target, folder), libraries[-1], target)
                work.append(flops)
        draft = Path(scratch) / "device"
        if not destination.only_subgraph:
            with progress.step("compile the device's part"):
                draft.mkdir(mode=0o755)
                with counting() as flops:
                    export(build(device, device_target, folder), draft / LIBRARY, device_target)
            fallback = []
            for subgraph in subgraphs if destination.with_fallback else ():
                with progress.step(f"compile the device's copy of {subgraph.model!r}"):
                    name = fallback_library(subgraph.model)
                    export(build(subgraph.module, device_target, folder), draft / name, device_target)
                    number, digest = destination.number(subgraph.model), checksum(draft / name)
                    signed = subgraph.inputs, subgraph.outputs
                    fallback.append(Fallback(subgraph.model, number, name, digest, *signed))
            manifest = Manifest(
                tuple(signature[0]),
                tuple(signature[1]),
                tuple(Offloaded(s.symbol, s.model, destination.policy, s.inputs, s.outputs) for s in subgraphs),
                target_json(device_target),
                cpu_needs(device_target),
                tvm.__version__,
                checksum(draft / LIBRARY),
                flops,
                tuple(fallback),
            )
            manifest.write(draft)
        with progress.step(f"write {destination.output}"):
            written = [_add(destination, *part, target) for part in zip(subgraphs, libraries, work, strict=True)]
            if not destination.only_subgraph:
                _replace(draft, destination.device)
    folders = tuple(destination.repository.path(m.name, m.version) for m in written)
    return Compiled(destination.device, Manifest.read(destination.device), folders, tuple(written), found)


def _tune(parts: Sequence[tuple[tvm.IRModule, tvm.target.Target]], tuning: Tuning, progress: Progress) -> Summary:
    """Measure candidates for the parts that this machine can run."""
    with needs("tune"):
        from zmq_offload.compile.tuning.run import tune
    ours = [(prepared(mod), target) for mod, target in parts if runs_here(target)]
    with progress.step(f"tune with {tuning.trials} trials") as say:
        return tune(ours, tuning.folder, tuning.trials, lambda p: say(str(p)))


def _add(
    destination: Destination, subgraph: Subgraph, library: Path, flops: dict[str, Count], target: tvm.target.Target
) -> ModelVersion:
    number = destination.number(subgraph.model)

    def fill(folder: Path) -> ModelVersion:
        shutil.move(library, folder / SUBGRAPH)
        return ModelVersion(
            subgraph.model,
            number,
            subgraph.inputs,
            subgraph.outputs,
            target_json(target),
            tvm.__version__,
            checksum="",
            cpu=cpu_needs(target),
            batching=destination.batching,
            extra={"flops": flops} if flops else {},
        )

    return destination.repository.write(subgraph.model, number, fill, force=destination.force)


def _replace(draft: Path, place: Path) -> None:
    try:
        if place.exists():
            shutil.rmtree(place)
        draft.rename(place)
    except OSError as error:
        raise FailedPrecondition(f"{place} cannot be written: {error.strerror or error}") from None


def _there(place: Path) -> bool:
    try:
        return place.exists()
    except OSError as error:  # a name that is too long, a folder that is not ours to look into
        raise FailedPrecondition(f"{place} cannot be written: {error.strerror or error}") from None


def _check_writable(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise FailedPrecondition(
            f"{folder} cannot be written: {error.strerror or os.strerror(error.errno or 0)}"
        ) from None


def _difference(kind: str, ours: Sequence[TensorSpec], theirs: Sequence[TensorSpec]) -> str | None:
    found = {t.name: t for t in ours}
    for spec in theirs:
        if spec.name not in found:
            return f"the device's {kind} {spec} is missing"
        if found[spec.name] != spec:
            return f"{kind} {spec.name!r} is {found[spec.name]}, the device has {spec}"
    extra = [t for t in ours if t.name not in {s.name for s in theirs}]
    return f"the device knows no {kind} {extra[0]}" if extra else None
