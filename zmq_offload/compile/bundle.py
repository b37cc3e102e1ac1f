"""The back half of compiling: a partitioned module -> device bundle and model repository entries."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import tvm

from zmq_offload.artifacts.manifest import (
    LIBRARY,
    Fallback,
    Manifest,
    OffloadedRegion,
    fallback_library,
)
from zmq_offload.artifacts.repository import LIBRARY as SUBGRAPH
from zmq_offload.artifacts.repository import ModelVersion, checksum
from zmq_offload.byoc.codegen import Subgraph, offloaded_functions, split
from zmq_offload.common.extras import needs
from zmq_offload.common.scratch import folders_made, put_in_place, scratch_folder
from zmq_offload.compile.build import build, export, prepared
from zmq_offload.compile.destination import Destination
from zmq_offload.compile.flops import Count, counting
from zmq_offload.compile.target import cpu_needs, runs_here, target_json
from zmq_offload.compile.tuning.plan import Tuning
from zmq_offload.console.progress import Progress
from zmq_offload.errors import FailedPrecondition, InvalidArgument
from zmq_offload.protocol.tensors import TensorSpec, check_signature

if TYPE_CHECKING:  # MetaSchedule takes as long to import as everything else, and only tuning needs it
    from zmq_offload.compile.check import Check, Checked
    from zmq_offload.compile.tuning.report import Summary


@dataclass(frozen=True)
class Compiled:
    """What compiling wrote: the device bundle's folder and manifest, and each subgraph's folder and description; and
    what tuning and the check found, where there was any."""

    device: Path
    manifest: Manifest
    subgraphs: tuple[Path, ...]
    models: tuple[ModelVersion, ...]
    tuning: Summary | None = None
    check: Checked | None = None


def write(
    mod: tvm.IRModule,
    models: Sequence[str],
    signature: tuple[Sequence[TensorSpec], Sequence[TensorSpec]],
    destination: Destination,
    target: tvm.target.Target,
    device_target: tvm.target.Target,
    progress: Progress,
    tuning: Tuning | None = None,
    check: Check | None = None,
) -> Compiled:
    """Compile a partitioned module and write the results; `models` is in the order of its offloaded functions.

    `signature` has the inputs and outputs of the whole model. Nothing is written until everything is compiled, and
    `check`, if there is one, has passed.
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
    destination.check_signature(subgraphs)
    if destination.batching is not None:
        for subgraph in subgraphs:
            destination.batching.check((*subgraph.inputs, *subgraph.outputs))
    parts = [(s.module, target) for s in subgraphs]
    parts += [] if destination.only_subgraph else [(device, device_target)]
    found = _tune(parts, tuning, progress) if tuning is not None and tuning.trials else None
    folder = tuning.folder if tuning is not None else None
    try:
        with (
            folders_made(destination.output, destination.repository.root),
            scratch_folder(destination.output, ".compile-") as scratch,
        ):
            libraries, work = [], []
            for subgraph in subgraphs:
                with progress.step(f"compile the subgraph {subgraph.model!r}"):
                    libraries.append(scratch / f"{subgraph.symbol}.so")
                    with counting() as flops:
                        export(build(subgraph.module, target, folder), libraries[-1], target)
                    work.append(flops)
            draft = None
            if not destination.only_subgraph:
                draft = scratch / "device"
                draft.mkdir(mode=0o755)
                with progress.step("compile the device's part"), counting() as flops:
                    export(build(device, device_target, folder), draft / LIBRARY, device_target)
                copies = [
                    _fallback(destination, subgraph, draft, device_target, folder, progress)
                    for subgraph in (subgraphs if destination.with_fallback else ())
                ]
                _manifest(destination, subgraphs, signature, draft, device_target, flops, copies).write(draft)
            checked = None
            if check is not None:
                operations = sum(fixed + rows for counts in work for fixed, rows in counts.values())
                with progress.step("compare it with the file"):
                    built = list(zip(subgraphs, libraries, strict=True))
                    checked = check(draft or destination.device, built, operations)
            with progress.step(f"write {destination.output}"):
                written = _publish(destination, list(zip(subgraphs, libraries, work, strict=True)), target, draft)
    except OSError as error:
        raise FailedPrecondition(f"{destination.output} cannot be written: {error.strerror or error}") from None
    folders = tuple(destination.repository.path(m.name, m.version) for m in written)
    return Compiled(destination.device, Manifest.read(destination.device), folders, tuple(written), found, checked)


def _fallback(
    destination: Destination,
    subgraph: Subgraph,
    draft: Path,
    target: tvm.target.Target,
    tuned: Path | None,
    progress: Progress,
) -> Fallback:
    """Compile the device's copy of a subgraph into its bundle."""
    with progress.step(f"compile the device's copy of {subgraph.model!r}"):
        name = fallback_library(subgraph.model)
        export(build(subgraph.module, target, tuned), draft / name, target)
        number, digest = destination.number(subgraph.model), checksum(draft / name)
        return Fallback(subgraph.model, number, name, digest, subgraph.inputs, subgraph.outputs)


def _manifest(
    destination: Destination,
    subgraphs: Sequence[Subgraph],
    signature: tuple[Sequence[TensorSpec], Sequence[TensorSpec]],
    draft: Path,
    target: tvm.target.Target,
    flops: dict[str, Count],
    copies: Sequence[Fallback],
) -> Manifest:
    return Manifest(
        tuple(signature[0]),
        tuple(signature[1]),
        tuple(OffloadedRegion(s.symbol, s.model, destination.policy, s.inputs, s.outputs) for s in subgraphs),
        target_json(target),
        cpu_needs(target),
        tvm.__version__,
        checksum(draft / LIBRARY),
        flops,
        tuple(copies),
    )


def _publish(
    destination: Destination,
    parts: Sequence[tuple[Subgraph, Path, dict[str, Count]]],
    target: tvm.target.Target,
    draft: Path | None,
) -> list[ModelVersion]:
    """Put the subgraphs and the device bundle, if there is one, in their places: all, or none that was not there."""
    written: list[ModelVersion] = []
    fresh: list[Path] = []
    try:
        for subgraph, library, work in parts:
            place = destination.repository.path(subgraph.model, destination.number(subgraph.model))
            if not place.exists():
                fresh.append(place)
            written.append(_add(destination, subgraph, library, work, target))
        if draft is not None:
            put_in_place(draft, destination.device)
    except BaseException:
        for place in fresh:
            shutil.rmtree(place, ignore_errors=True)
            with contextlib.suppress(OSError):  # there are other versions
                place.parent.rmdir()
        raise
    return written


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
