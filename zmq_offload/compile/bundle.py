"""Compile a partitioned module into a device bundle and versions in a model repository, and write them."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import tvm

from zmq_offload.artifacts.manifest import (
    LIBRARY,
    BundleSplit,
    Fallback,
    Manifest,
    OffloadedRegion,
    fallback_library,
)
from zmq_offload.artifacts.repository import LIBRARY as SUBGRAPH
from zmq_offload.artifacts.repository import ModelVersion, checksum
from zmq_offload.byoc.codegen import Subgraph, offloaded_functions, result_types, split
from zmq_offload.byoc.joined import MAIN, joined
from zmq_offload.byoc.parameters import told_by
from zmq_offload.common.extras import needs
from zmq_offload.common.scratch import PREFIX, folders_made, put_in_place, scratch_folder
from zmq_offload.compile.build import build_library, prepared
from zmq_offload.compile.cuda.names import is_gpu
from zmq_offload.compile.destination import Destination
from zmq_offload.compile.flops import Count, counting
from zmq_offload.compile.splits import Split
from zmq_offload.compile.target import cpu_needs, gpu_needs, host_target, runs_here, target_json
from zmq_offload.compile.tuning.plan import Tuning
from zmq_offload.console.progress import Progress
from zmq_offload.errors import FailedPrecondition, InvalidArgument
from zmq_offload.protocol.tensors import TensorSpec, check_signature

if TYPE_CHECKING:  # MetaSchedule takes as long to import as everything else, and only tuning needs it
    from zmq_offload.compile.check import Check, Checked
    from zmq_offload.compile.quantization.quantize import Quantized
    from zmq_offload.compile.tuning.report import Summary


@dataclass(frozen=True)
class Compiled:
    """The results of `compile_model` and `compile_module`.

    Attributes
    ----------
    device : pathlib.Path
        Folder of the device bundle.
    manifest : Manifest
        What the device bundle holds: the model's signature and its calls of subgraphs.
    subgraphs : tuple of pathlib.Path
        Folder of each subgraph's version in the model repository.
    models : tuple of ModelVersion
        Name, version number and signature of each subgraph, in the same order.
    tuning : Summary, optional
        What tuning found, if there was any.
    check : Checked, optional
        The result of the check against the ONNX file, if there was one.
    quantized : Quantized, optional
        The int8 model that was compiled, and its accuracy, if one was made.

    Examples
    --------
    >>> import zmq_offload
    >>> compiled = compile_model("m.onnx", cut="features", name="m")  # doctest: +SKIP
    >>> model = zmq_offload.load(compiled.device, "tcp://127.0.0.1:5555")  # doctest: +SKIP
    """

    device: Path
    manifest: Manifest
    subgraphs: tuple[Path, ...]
    models: tuple[ModelVersion, ...]
    tuning: Summary | None = None
    check: Checked | None = None
    quantized: Quantized | None = None


@dataclass(frozen=True)
class Signature:
    """Inputs and outputs of the whole model, in its order."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


@dataclass(frozen=True)
class Divided:
    """A model that is divided: the device's module and the subgraphs.

    Of an adaptive bundle also its splits, each with the device's entry for it; the entry for the whole model, if there
    is one; and the weights that the device holds. All its subgraphs are in one library.
    """

    device: tvm.IRModule
    subgraphs: tuple[Subgraph, ...]
    splits: tuple[tuple[Split, str], ...] = ()
    local: str = ""
    weights: tuple[str, ...] = ()

    def libraries(self) -> list[tuple[Subgraph, ...]]:
        """The subgraphs of each library."""
        return [self.subgraphs] if self.splits else [(subgraph,) for subgraph in self.subgraphs]


@dataclass(frozen=True)
class BuildJob:
    """Checked options of one build. `models` names the subgraphs, in the order of the module's offloaded functions."""

    models: tuple[str, ...]
    destination: Destination
    target: tvm.target.Target
    device_target: tvm.target.Target
    progress: Progress
    tuning: Tuning | None = None

    @property
    def tuned(self) -> Path | None:
        """The folder with tuning results."""
        return self.tuning.folder if self.tuning is not None else None

    @property
    def rounded_here(self) -> bool:
        """Whether a check runs on this CPU with the roundings of a GPU, and not with the libraries themselves."""
        return is_gpu(self.target) and self.destination.options.precision == "float16"

    def expect(self, *, import_steps: int = 0, checks: bool = False, adaptive: bool = False) -> None:
        """Tell the progress display how many steps the build has."""
        options = self.destination.options
        of_workers = 1 if adaptive else len(self.models) * (1 + options.with_fallback)
        libraries = of_workers + (not options.only_subgraph)
        copies = of_workers if checks and self.rounded_here else 0
        self.progress.expect(import_steps + bool(options.tune) + libraries + copies + checks + 1)


@dataclass(frozen=True)
class _Library:
    """Subgraphs that are compiled: their library, and the operations of each function in it."""

    subgraphs: tuple[Subgraph, ...]
    file: Path
    flops: dict[str, Count]


def divide(mod: tvm.IRModule, models: Sequence[str]) -> Divided:
    """Divide a partitioned module. Raises InvalidArgument if `models` does not name each offloaded function."""
    functions = len(offloaded_functions(mod))
    if len(models) != functions:
        raise InvalidArgument(
            f"{len(models)} model names are given, but the module has {functions} offloaded functions; name each"
        )
    if len(set(models)) != len(models):
        raise InvalidArgument(
            f"the model names {', '.join(models)} are not distinct; give each offloaded function its own"
        )
    device, subgraphs = split(mod, models)
    return Divided(device, tuple(subgraphs))


def write(divided: Divided, signature: Signature, job: BuildJob, check: Check | None = None) -> Compiled:
    """Compile a model that is divided and write the results.

    Nothing is written before everything is compiled and the `check`, if given, has passed.
    """
    _check_subgraphs(divided.subgraphs, job)
    modules = [(_of_workers(subgraphs), subgraphs) for subgraphs in divided.libraries()]
    tuning = None
    if job.tuning is not None and job.tuning.trials:
        tuning = _tune(divided.device, [module for module, _ in modules], job)
    destination = job.destination
    try:
        with (
            folders_made(destination.output, destination.repository.root),
            scratch_folder(destination.output, PREFIX) as scratch,
        ):
            libraries = [_compile_library(*library, scratch, job) for library in modules]
            draft = None
            if not destination.options.only_subgraph:
                draft = _compile_bundle(divided, signature, scratch, job)
            checked = None
            if check is not None:
                comparable = libraries
                if job.rounded_here:
                    comparable = [_on_this_cpu(*library, scratch, job) for library in modules]
                checked = _checked(check, draft or destination.device, comparable, job)
            with job.progress.step(f"write {destination.output}"):
                versions = _publish(libraries, draft, job)
    except OSError as error:
        raise FailedPrecondition(f"{destination.output} cannot be written: {error.strerror or error}") from None
    folders = tuple(destination.repository.path(v.name, v.version) for v in versions)
    return Compiled(destination.device, Manifest.read(destination.device), folders, tuple(versions), tuning, checked)


def _of_workers(subgraphs: Sequence[Subgraph]) -> tvm.IRModule:
    """The module of the subgraphs of one library."""
    if len(subgraphs) == 1 and subgraphs[0].entry == MAIN:
        return subgraphs[0].module
    return joined({subgraph.entry: subgraph.module for subgraph in subgraphs})


def _check_subgraphs(subgraphs: Sequence[Subgraph], job: BuildJob) -> None:
    """Check the subgraphs against what the destination has."""
    for subgraph in subgraphs:
        check_signature(subgraph.inputs, subgraph.outputs)
    job.destination.check_signature(subgraphs)
    batching = job.destination.options.batching
    if batching is not None:
        for subgraph in subgraphs:
            batching.check((*subgraph.inputs, *subgraph.outputs))
            _check_rows(subgraph)


def _check_rows(subgraph: Subgraph) -> None:
    """Raises InvalidArgument for an output whose number of rows only the run tells: no rows of it are one request's."""
    main = subgraph.module["main"]
    inputs = [param.ty for param in main.params]
    for spec, ty in zip(subgraph.outputs, result_types(main), strict=True):
        if not told_by(inputs, ty):
            raise InvalidArgument(
                f"--max-batch: requests cannot run together: the shape of the output {spec} depends on the values of "
                "the inputs; leave --max-batch out, or end the region before it (--until)"
            )


def _tune(device: tvm.IRModule, of_workers: Sequence[tvm.IRModule], job: BuildJob) -> Summary:
    """Tune the modules whose target this machine can run."""
    assert job.tuning is not None
    with needs("tune"):
        from zmq_offload.compile.tuning.run import tune
    modules = [(module, job.target) for module in of_workers]
    if not job.destination.options.only_subgraph:
        modules.append((device, job.device_target))
    runnable = [(prepared(mod), target) for mod, target in modules if runs_here(target)]
    with job.progress.step(f"tune with {job.tuning.trials} trials") as report:
        return tune(runnable, job.tuning.folder, job.tuning.trials, lambda p: report(str(p), p.trials / p.total_trials))


def _compile_library(module: tvm.IRModule, subgraphs: tuple[Subgraph, ...], scratch: Path, job: BuildJob) -> _Library:
    first, *others = subgraphs
    file = scratch / f"{first.symbol}.so"
    what = f"{len(subgraphs)} subgraphs" if others else f"the subgraph {first.model!r}"
    with job.progress.step(f"compile {what}"), counting() as flops:
        build_library(module, file, job.target, job.tuned, job.destination.options.precision)
    return _Library(subgraphs, file, flops)


def _compile_bundle(divided: Divided, signature: Signature, scratch: Path, job: BuildJob) -> Path:
    """Compile the device bundle into a folder in `scratch`, with its fallbacks and manifest."""
    options, target = job.destination.options, job.device_target
    draft = scratch / "device"
    draft.mkdir(mode=0o755)
    with job.progress.step("compile the device bundle"), counting() as flops:
        build_library(divided.device, draft / LIBRARY, target, job.tuned)
    with_fallbacks = options.with_fallback and not divided.splits
    fallbacks = [_compile_fallback(s, draft, job) for s in divided.subgraphs] if with_fallbacks else []
    regions = [OffloadedRegion(s.symbol, s.model, options.policy, s.inputs, s.outputs) for s in divided.subgraphs]
    splits = [
        BundleSplit(split.name, split.cut, split.until, split.wire, entry, region, dict(split.predicted))
        for (split, entry), region in zip(divided.splits, regions, strict=False)
    ]
    manifest = Manifest(
        signature.inputs,
        signature.outputs,
        tuple(regions),
        target_json(target),
        cpu_needs(target),
        tvm.__version__,
        checksum(draft / LIBRARY),
        flops,
        tuple(fallbacks),
        tuple(splits),
        divided.local,
        divided.weights,
    )
    manifest.write(draft)
    return draft


def _compile_fallback(subgraph: Subgraph, draft: Path, job: BuildJob) -> Fallback:
    """Compile a subgraph for the device, into its bundle."""
    name = fallback_library(subgraph.model)
    with job.progress.step(f"compile the fallback of {subgraph.model!r}"):
        build_library(subgraph.module, draft / name, job.device_target, job.tuned)
    number = job.destination.number(subgraph.model)
    return Fallback(subgraph.model, number, name, checksum(draft / name), subgraph.inputs, subgraph.outputs)


def _on_this_cpu(module: tvm.IRModule, subgraphs: tuple[Subgraph, ...], scratch: Path, job: BuildJob) -> _Library:
    """A library that computes on this CPU what the one for a GPU does: the same roundings, other kernels."""
    file = scratch / f"{subgraphs[0].symbol}.cpu.so"
    with job.progress.step("compile what the GPU computes for this CPU"), counting() as flops:
        build_library(module, file, host_target(), None, job.destination.options.precision)
    return _Library(subgraphs, file, flops)


def _checked(check: Check, device: Path, libraries: Sequence[_Library], job: BuildJob) -> Checked:
    operations = sum(fixed + rows for library in libraries for fixed, rows in library.flops.values())
    with job.progress.step("compare with the file") as report:
        subgraphs = [(subgraph, library.file) for library in libraries for subgraph in library.subgraphs]
        checked = check(device, subgraphs, operations, report)
    if not job.rounded_here or checked.skipped is not None:
        return checked
    return replace(checked, on=f"{checked.on}, with the float16 of the GPU computed by this CPU")


def _publish(libraries: Sequence[_Library], draft: Path | None, job: BuildJob) -> list[ModelVersion]:
    """Move the subgraphs and the device bundle, if any, to their places. On an error new versions are removed again."""
    destination = job.destination
    written: list[ModelVersion] = []
    new: list[Path] = []
    try:
        for library in libraries:
            first: Path | None = None  # of which the others of the library are links
            for subgraph in library.subgraphs:
                place = destination.repository.path(subgraph.model, destination.number(subgraph.model))
                if not place.exists():
                    new.append(place)
                written.append(_add_version(subgraph, library, first, job))
                first = first or place / SUBGRAPH
        if draft is not None:
            put_in_place(draft, destination.device)
    except BaseException:
        for place in new:
            shutil.rmtree(place, ignore_errors=True)
            with contextlib.suppress(OSError):  # the model has other versions
                place.parent.rmdir()
        raise
    return written


def _add_version(subgraph: Subgraph, library: _Library, first: Path | None, job: BuildJob) -> ModelVersion:
    destination = job.destination
    number = destination.number(subgraph.model)

    def fill(folder: Path) -> ModelVersion:
        if first is None:
            shutil.move(library.file, folder / SUBGRAPH)
        else:
            _link(first, folder / SUBGRAPH)
        return ModelVersion(
            subgraph.model,
            number,
            subgraph.inputs,
            subgraph.outputs,
            target_json(job.target),
            tvm.__version__,
            checksum="",
            cpu=cpu_needs(job.target),
            gpu=gpu_needs(job.target),
            batching=destination.options.batching,
            extra={"flops": library.flops} if library.flops else {},
            entry=subgraph.entry,
        )

    return destination.repository.write(subgraph.model, number, fill, force=destination.options.force)


def _link(file: Path, place: Path) -> None:
    """Give a file a second place; a copy where its file system has no links."""
    try:
        place.hardlink_to(file)
    except OSError:
        shutil.copy(file, place)
