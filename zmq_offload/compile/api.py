"""The public functions: compile an ONNX file, cut at its tensors, or a Relax module that is partitioned already."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import tvm
from tvm import relax

from zmq_offload.byoc.codegen import input_specs, offloaded_functions, result_types, tensor_spec
from zmq_offload.byoc.encoding import Wire, check_wire
from zmq_offload.byoc.outline import outline_regions
from zmq_offload.byoc.region import Region, check_distinct
from zmq_offload.byoc.wire import encode_boundary
from zmq_offload.compile.adaptive import divide_at
from zmq_offload.compile.bundle import BuildJob, Compiled, Signature, divide, write
from zmq_offload.compile.check import Check
from zmq_offload.compile.cuda.names import NAMES, is_gpu
from zmq_offload.compile.cuts import CutPoint, CutPoints, frontiers, left_out
from zmq_offload.compile.destination import Destination
from zmq_offload.compile.held import ways_to_divide, weights_on_device
from zmq_offload.compile.interrupt import interruptible
from zmq_offload.compile.models.base import Model
from zmq_offload.compile.models.modules import located, outermost
from zmq_offload.compile.models.onnx_model import OnnxModel
from zmq_offload.compile.models.read import read_model
from zmq_offload.compile.onnx.shapes import Dim
from zmq_offload.compile.options import BuildKeywords, BuildOptions, PathLike, merged, with_build_keywords
from zmq_offload.compile.picture import draw_cuts
from zmq_offload.compile.quantization.quantize import Kind, Quantized, quantize_model
from zmq_offload.compile.splits import Cut, CutLike, Split, check_different, named_splits
from zmq_offload.compile.target import host_target, resolve_target, resolve_workers_target, runs_here
from zmq_offload.compile.tuning.plan import MOST_TRIALS, Tuning
from zmq_offload.compile.typical import Typical
from zmq_offload.console.progress import Progress
from zmq_offload.errors import InvalidArgument
from zmq_offload.protocol.payload import Array

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["BuildOptions", "Compiled", "Cut", "CutPoint", "Region", "compile_model", "compile_module", "list_cuts"]


@with_build_keywords
@interruptible()
def compile_model(
    model: PathLike | tvm.IRModule,
    *,
    cut: str | Sequence[str] | None = None,
    cuts: Sequence[CutLike] | None = None,
    name: str | None = None,
    inputs: Mapping[str, Sequence[Dim]] | None = None,
    until: str | Sequence[str] | None = None,
    regions: Sequence[Region] | None = None,
    seal: Sequence[str] = (),
    wire: Wire = "float32",
    check: bool | Sequence[Mapping[str, Array] | Array] = False,
    quantize: Kind | None = None,
    calibrate: Sequence[Mapping[str, Array] | Array] = (),
    options: BuildOptions | None = None,
    **keywords: Unpack[BuildKeywords],
) -> Compiled:
    """Split a model and compile a device bundle and its subgraphs.

    The results are ``<output>/device`` and, for each region, ``<repository>/<name>/<version>``.

    Parameters
    ----------
    model : path or tvm.IRModule
        An ONNX file of opset 7 or later, with its external data next to it; a file of ``torch.export.save`` (``.pt2``);
        a TFLite file; or a Relax module whose ``main`` is not partitioned, with the weights as constants.
    cut : str or sequence of str
        Tensors at which the offloaded region begins, by their names in the file. Where the file knows the modules of
        the PyTorch program, the path of a module (``"backbone.layer4"``) stands for the tensor that leaves it.
    cuts : sequence of str, of sequences of str or of Cut, optional
        Several cuts, in place of `cut` and `until`: an adaptive bundle, which chooses among them as it runs. The bundle
        and the workers' library have each kernel and each weight once. Each cut becomes a model, ``<name>.<cut>``.
        ``with_fallback`` lets the device run the whole model, too.
    name : str
        Name of the model that the region becomes.
    inputs : mapping of str to sequence of int or str, optional
        Shape of each input whose shape the file leaves open. A dimension is a number from 1, or symbolic: a name (one
        name is one extent everywhere), a multiple of one (``"8*H"``), a sum (``"P+S"``) or ``"?"``.
    until : str or sequence of str, optional
        Tensors at which the region ends. Default: the model's outputs that depend on `cut`.
    regions : sequence of Region, optional
        Several regions, in place of `cut`, `until` and `name`. Each becomes a model and one request; regions that do
        not need each other's results run at the same time.
    seal : sequence of str
        Weights that must stay off the device, by their names in the file. A cut that leaves one there is an error.
    wire : {"float32", "float16", "int8"}
        Encoding of float32 tensors on the wire, in both directions. A region may have its own.
    check : bool or sequence of samples
        Compare the result with another runtime before anything is written: ONNX Runtime (``onnx.reference`` where that
        is not installed), PyTorch or LiteRT. A Relax module has none; its check is skipped. True checks on random
        inputs; a sample is a NumPy array for a model with one input, or arrays by input name, with the inputs'
        datatypes and shapes.
    quantize : {"int8"}, optional
        Make an int8 model of a float32 one first, and compile that. It becomes ``<output>/<model>.int8.onnx``.
    calibrate : sequence of samples
        What the int8 model is made with: inputs as the model will see them, at least 2, better 100.
    options : BuildOptions, optional
        How to build and where to write.
    **keywords
        Fields of `BuildOptions`, which override `options`: ``output="dist"``, ``version=2``, ``force=True``, ...

    Returns
    -------
    Compiled
        Folders, manifest, and the results of tuning, of the check and of quantization.

    Raises
    ------
    InvalidArgument
        A model, shape, region, encoding, name or target that cannot be used; `tune` for a target that this machine
        cannot run.
    AlreadyExists
        The version or the device bundle exists, and `force` is not set.
    FailedPrecondition
        The output cannot be written, fails the check, does not fit the device bundle (`only_subgraph`), or differs in
        its signature from the highest version in the repository (without `new_signature`).
    Internal
        TVM fails to compile.

    Examples
    --------
    >>> from zmq_offload.compile import compile_model
    >>> compiled = compile_model(  # doctest: +SKIP
    ...     "detection.onnx", inputs={"x": (1, 3, 320, 320)}, cut="features", name="detection", output="dist"
    ... )
    >>> compiled.subgraphs  # doctest: +SKIP
    (PosixPath('dist/repository/detection/1'),)
    """
    wire = check_wire(wire)
    splits = [] if cuts is None else _splits(cuts, name, wire, cut, until, regions)
    chosen = [split.region for split in splits] or _regions(cut, until, name, regions)
    job = _job(merged(options, keywords), [region.name for region in chosen])
    if splits:
        job = replace(job, destination=job.destination.together(job.models))
    job.expect(import_steps=1 + (quantize is not None), checks=check is not False, adaptive=bool(splits))
    quantized = None
    original = source = read_model(model)
    asked = chosen
    if quantize is not None or calibrate:
        if not isinstance(source, OnnxModel):
            raise InvalidArgument(f"--quantize takes ONNX files, and {source.name} is not one; export it to ONNX")
        job.destination.check(job.models)  # now, since calibration takes long
        checks = check is not False
        file, chosen, quantized = _quantized(source, chosen, quantize, calibrate, inputs or {}, job, checks)
        source = read_model(file)
    with job.progress.step("import and split the model"):
        chosen = [_by_modules(region, source) for region in chosen]
        tensors = [tensor for region in chosen for tensor in (*region.cut, *(region.until or ()))]
        imported, whole = source.imported(inputs or {}, tensors), job.destination.options.with_fallback
        if splits:
            check_different(chosen)
            splits = [replace(split, region=region) for split, region in zip(splits, chosen, strict=True)]
            divided = divide_at(imported, splits, local=whole)
        else:
            mod, chosen = outline_regions(imported.mod, imported.graph, chosen)
        models = tuple(region.name for region in chosen)
        wires = [check_wire(region.wire or wire) for region in chosen]
        if not splits:
            divided = divide(encode_boundary(mod, wires), models)
        if splits or seal:
            asked = [_by_modules(region, original) for region in asked]
            ways = ways_to_divide(asked, [split.name for split in splits], whole)
            held = weights_on_device(original.origins(), ways, [spec.name for spec in imported.outputs], seal)
            divided = replace(divided, weights=held)
    # Last, so that a user does not add --force only to find out then that --cut is wrong.
    job = replace(job, models=models)
    job.destination.check(job.models)
    checking = None
    if check is not False:
        samples = () if check is True else check
        targets = (host_target() if job.rounded_here else job.target, job.device_target)
        allowed: list[Wire] = [*wires, "float16"] if job.rounded_here else wires
        checking = Check(source, inputs or {}, allowed, samples, targets)
    signature = Signature(imported.inputs, imported.outputs)
    return replace(write(divided, signature, job, checking), quantized=quantized)


def _splits(
    cuts: Sequence[CutLike], name: str | None, wire: Wire, *others: str | Sequence[str] | Sequence[Region] | None
) -> list[Split]:
    """The splits to compile, where no other argument says what is cut."""
    if any(other is not None for other in others):
        raise InvalidArgument("cuts cannot be combined with cut, until or regions; give one or the other")
    return named_splits(cuts, name, wire)


def _quantized(
    source: OnnxModel,
    regions: Sequence[Region],
    kind: Kind | None,
    samples: Sequence[Mapping[str, Array] | Array],
    inputs: Mapping[str, Sequence[Dim]],
    job: BuildJob,
    check: bool,
) -> tuple[Path, list[Region], Quantized]:
    """The file of the int8 model, its regions, which begin and end at quantized tensors, and its accuracy."""
    if kind != "int8":
        raise InvalidArgument(f"--quantize: {kind!r} cannot be made; --calibrate needs --quantize int8")
    names = [name for region in regions for name in (*region.cut, *(region.until or ()))]
    tensors = located(names, source.tensors(), source.modules())
    file = job.destination.output / f"{Path(source.file).stem}.int8.onnx"
    with job.progress.step("quantize to int8") as report:
        file.parent.mkdir(parents=True, exist_ok=True)
        done = quantize_model(source.file, samples, file, inputs=inputs, keep=tensors, check=check, report=report)
    forms = {name: done.tensors[tensor] for name, tensor in zip(names, tensors, strict=True)}
    chosen = [
        replace(
            region,
            cut=[forms[t] for t in region.cut],
            until=None if region.until is None else [forms[t] for t in region.until],
        )
        for region in regions
    ]
    return file, chosen, replace(done, tensors={**done.tensors, **forms})


@with_build_keywords
@interruptible()
def compile_module(
    mod: tvm.IRModule,
    *,
    name: str | Sequence[str],
    outputs: Sequence[str] | None = None,
    wire: Wire = "float32",
    options: BuildOptions | None = None,
    **keywords: Unpack[BuildKeywords],
) -> Compiled:
    """Compile a partitioned Relax module into a device bundle and its subgraphs.

    The model's inputs are named after the parameters of ``main``.

    Parameters
    ----------
    mod : tvm.IRModule
        Module from `partition_for_zmq_offload` or `cut_module`.
    name : str or sequence of str
        Name of the model that the offloaded function becomes. With several functions, a name for each in the order in
        which ``main`` calls them; one name becomes ``<name>_1``, ``<name>_2`` and so on.
    outputs : sequence of str, optional
        Names of the model's outputs. Default: ``output_0``, ``output_1``, ...
    wire : {"float32", "float16", "int8"}
        Encoding of float32 tensors on the wire, in both directions.
    options : BuildOptions, optional
        How to build and where to write.
    **keywords
        Fields of `BuildOptions`, which override `options`: ``output="dist"``, ``version=2``, ``force=True``, ...

    Returns
    -------
    Compiled
        Folders, manifest, and the result of tuning.

    Raises
    ------
    InvalidArgument
        A module without offloaded functions; names, an encoding or a target that cannot be used.
    AlreadyExists, FailedPrecondition, Internal
        As for `compile_model`.

    Examples
    --------
    >>> from zmq_offload.compile import compile_module, partition_for_zmq_offload
    >>> partitioned = partition_for_zmq_offload(mod, patterns)  # doctest: +SKIP
    >>> compile_module(partitioned, name="head", output="dist")  # doctest: +SKIP
    """
    functions = offloaded_functions(mod)
    if not functions:
        raise InvalidArgument("the module has no offloaded function; partition it with partition_for_zmq_offload")
    job = _job(merged(options, keywords), _model_names(name, len(functions)))
    signature = _signature(mod["main"], outputs)
    wire = check_wire(wire)
    job.destination.check(job.models)
    job.expect()
    return write(divide(encode_boundary(mod, [wire] * len(functions)), job.models), signature, job)


@interruptible()
def list_cuts(
    model: PathLike | tvm.IRModule,
    *,
    inputs: Mapping[str, Sequence[Dim]] | None = None,
    picture: PathLike | None = None,
) -> CutPoints:
    """List the cuts of a model: the tensors that alone, or with cheap functions of its inputs, separate its inputs from
    its outputs, and cuts at two to four tensors that send less than their neighbors.

    Parameters
    ----------
    model : path or tvm.IRModule
        A model, as for `compile_model`.
    inputs : mapping of str to sequence of int or str, optional
        Input shapes, as for `compile_model`.
    picture : path, optional
        File for a picture of the graph, with the cuts, the work and the bytes along it: SVG if its name ends in .svg,
        else PNG. It needs the extra ``compile``.

    Returns
    -------
    list of CutPoint
        In graph order. The `names` of each can be given to `compile_model` as `cut`. Its attribute `left_out` counts
        the other tensors by the reason; `inputs` has the shapes that stand for symbolic ones.

    Raises
    ------
    InvalidArgument
        A file or a shape that cannot be used.
    FailedPrecondition
        The picture cannot be written.

    Examples
    --------
    >>> for point in list_cuts("detection.onnx", inputs={"x": (1, 3, 320, 320)}):  # doctest: +SKIP
    ...     print(point.names, point.nbytes, point.share)
    """
    source = read_model(model)
    modules = outermost(source.modules())
    imported = source.imported(inputs or {})
    if picture is not None:
        draw_cuts(imported, Path(picture), str(model) if isinstance(model, str | Path) else "model")
    points = frontiers(imported.graph)
    named = [replace(point, module=None if point.others else modules.get(point.name)) for point in points]
    return CutPoints(named, left_out(imported.graph, named), Typical(imported.graph).inputs)


def _regions(
    cut: str | Sequence[str] | None,
    until: str | Sequence[str] | None,
    name: str | None,
    regions: Sequence[Region] | None,
) -> list[Region]:
    """The regions to offload, given in one of two ways."""
    if regions is not None:
        if cut is not None or until is not None or name is not None:
            raise InvalidArgument("regions cannot be combined with cut, until or name; give one or the other")
        check_distinct(regions)
        return [replace(r, cut=_names(r.cut), until=None if r.until is None else _names(r.until)) for r in regions]
    if cut is None or name is None:
        raise InvalidArgument("cut or name is missing; give cut and name for one region, or regions for several")
    return [Region(name, _names(cut), None if until is None else _names(until))]


def _by_modules(region: Region, source: Model) -> Region:
    """The region with paths of modules replaced by the tensors that leave them."""
    tensors, modules = source.tensors(), source.modules()
    until = None if region.until is None else located(region.until, tensors, modules)
    return replace(region, cut=located(region.cut, tensors, modules), until=until)


def _names(tensors: str | Sequence[str]) -> list[str]:
    return [tensors] if isinstance(tensors, str) else list(tensors)


def _model_names(name: str | Sequence[str], functions: int) -> list[str]:
    """A model name for each offloaded function."""
    if not isinstance(name, str):
        return list(name)
    return [name] if functions == 1 else [f"{name}_{i}" for i in range(1, functions + 1)]


def _signature(main: relax.Function, outputs: Sequence[str] | None) -> Signature:
    """The signature of a module's `main`, with the given names for its outputs."""
    types = result_types(main)
    names = list(outputs) if outputs is not None else [f"output_{i}" for i in range(len(types))]
    if len(names) != len(types):
        raise InvalidArgument(f"{len(names)} output names are given, but the model has {len(types)} outputs")
    return Signature(
        tuple(input_specs([p.name for p in main.params], [p.ty for p in main.params])),
        tuple(tensor_spec(n, ty) for n, ty in zip(names, types, strict=True)),
    )


def _job(options: BuildOptions, models: Sequence[str]) -> BuildJob:
    """Check all options that need no import of the model."""
    destination = Destination(options)
    destination.check_names(models)
    target, device_target = resolve_workers_target(options.target), resolve_target(options.device_target)
    if options.precision not in ("float32", "float16"):
        raise InvalidArgument(f"--precision: {options.precision!r} is not known; use float32 or float16")
    if options.precision == "float16" and not is_gpu(target):
        raise InvalidArgument(
            "--precision float16 is for GPUs, and the target of the workers is a CPU; leave it out, or name a GPU "
            f"(--target {NAMES[0]})"
        )
    progress = options.progress or Progress(quiet=True)
    return BuildJob(tuple(models), destination, target, device_target, progress, _tuning(options, target))


def _tuning(options: BuildOptions, target: tvm.target.Target) -> Tuning | None:
    trials, folder = options.tune, options.tuning_db
    if type(trials) is not int or not 0 <= trials <= MOST_TRIALS:
        raise InvalidArgument(f"--tune: {trials!r} is not a number of trials; use 0 to {MOST_TRIALS:,}")
    if trials and not runs_here(target):
        raise InvalidArgument(
            f"--tune: this machine cannot run code for the target {target}; tune on a machine that can, and build here "
            "with its --tuning-db"
        )
    if folder is not None and not trials and not Path(folder).is_dir():
        raise InvalidArgument(f"--tuning-db: the folder {folder} does not exist; create it with --tune TRIALS")
    if folder is None and not trials:
        return None
    return Tuning(Path(folder) if folder is not None else Path(options.output) / "tuning", trials)
