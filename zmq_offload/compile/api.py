"""Compile from Python: an ONNX file by its tensors, a Relax module by its partition."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias

import tvm
from tvm import relax

from zmq_offload.artifacts.manifest import VersionPolicy
from zmq_offload.artifacts.repository import Batching, Repository
from zmq_offload.byoc.codegen import input_specs, offloaded_functions, tensor_spec
from zmq_offload.byoc.encoding import Wire, check_wire
from zmq_offload.byoc.outline import outline_regions
from zmq_offload.byoc.region import Region, check_distinct
from zmq_offload.byoc.wire import encode_boundary
from zmq_offload.compile.accuracy import Array
from zmq_offload.compile.bundle import Compiled, write
from zmq_offload.compile.check import Check
from zmq_offload.compile.cuts import CutPoint, cut_points
from zmq_offload.compile.destination import Destination
from zmq_offload.compile.importer import Dim, import_onnx
from zmq_offload.compile.interrupt import interruptible
from zmq_offload.compile.target import resolve_target, runs_here
from zmq_offload.compile.tuning.plan import MOST_TRIALS, Tuning
from zmq_offload.console.progress import Progress
from zmq_offload.errors import InvalidArgument

__all__ = ["Compiled", "CutPoint", "Region", "compile_model", "compile_module", "list_cuts"]

Target: TypeAlias = str | dict[str, Any] | tvm.target.Target | None
PathLike: TypeAlias = str | os.PathLike[str]


@interruptible()
def compile_model(
    model: PathLike,
    *,
    cut: str | Sequence[str] | None = None,
    name: str | None = None,
    inputs: Mapping[str, Sequence[Dim]] | None = None,
    until: str | Sequence[str] | None = None,
    regions: Sequence[Region] | None = None,
    wire: Wire = "float32",
    version: int | None = None,
    policy: VersionPolicy = "latest",
    target: Target = None,
    device_target: Target = None,
    repository: PathLike | None = None,
    output: PathLike = "dist",
    force: bool = False,
    only_subgraph: bool = False,
    with_fallback: bool = False,
    new_signature: bool = False,
    batching: Batching | None = None,
    tune: int = 0,
    tuning_db: PathLike | None = None,
    check: bool | Sequence[Mapping[str, Array] | Array] = False,
    progress: Progress | None = None,
) -> Compiled:
    """Split an ONNX model and compile both parts: `<output>/device` and `<repository>/<name>/<version>`.

    `cut` names the tensors at which the offloaded part begins, `until` those at which it ends (default: the model's
    outputs that depend on `cut`), `name` the model that it becomes. Several parts are `regions`, in the place of these
    three: each becomes a model of its own and is one request, and those that do not need each other's results are under
    way at the same time. `inputs` maps input names to shapes, for inputs whose shape the file leaves open; a dimension
    may be symbolic: a name, or "?". `target` is the workers' TVM target and `device_target` the device's, by default
    this machine's CPU. `wire` is how float32 tensors travel, both ways (`zmq_offload.byoc.encoding`). `version`,
    `only_subgraph`, `with_fallback`, `new_signature` and `batching`: see `Destination`. `policy` is the version that
    the device asks for, "latest" or a number. `progress` shows the steps (default: nothing is shown).

    `tune` candidates (0: none) are compiled and measured here on top of the schedule rules, and the faster ones are
    used; what is found is kept in the folder `tuning_db` (default with `tune`: `<output>/tuning`), from which later
    builds for the same target take it without tuning. Ctrl-C ends tuning and builds with what was found by then.

    `check` compares both parts, before they are written, with what the file means in ONNX Runtime, or in
    `onnx.reference` where that is not installed: on random inputs, or on those that are given, each an array, or arrays
    by name. What it found, or why it was skipped, is the result's `check` (`zmq_offload.compile.check`).

    Raises InvalidArgument for a model, shape, region, encoding, name or target that cannot be used (for tuning: also a
    target that this machine cannot run), AlreadyExists for a version or device bundle that is there without `force`,
    FailedPrecondition if the output cannot be written, fails the `check`, does not fit the device bundle
    (`only_subgraph`) or has another signature than the highest version in the repository (without `new_signature`),
    Internal if TVM fails.
    """
    wire = check_wire(wire)
    parts = _regions(cut, until, name, regions)
    destination = _destination(
        output, repository, version, policy, force, only_subgraph, batching, with_fallback, new_signature
    )
    destination.check_names([part.name for part in parts])
    targets = resolve_target(target), resolve_target(device_target)
    tuning = _tuning(tune, tuning_db, destination.output, targets[0])
    progress = progress or Progress(quiet=True)
    progress.expect(len(parts) * (1 + with_fallback) + (2 if only_subgraph else 3) + bool(tune) + (check is not False))
    with progress.step("import and split the model"):
        tensors = [tensor for part in parts for tensor in (*part.cut, *(part.until or ()))]
        imported = import_onnx(model, inputs or {}, tensors)
        mod, parts = outline_regions(imported.mod, imported.graph, parts)
        mod = encode_boundary(mod, [check_wire(part.wire or wire) for part in parts])
    # After all that may be wrong with the arguments: whoever adds --force must not find out then that --cut is wrong.
    destination.check([part.name for part in parts])
    names = [part.name for part in parts]
    wires = [check_wire(part.wire or wire) for part in parts]
    checking = None
    if check is not False:
        checking = Check(model, inputs or {}, wires, () if check is True else check, targets)
    signature = (imported.inputs, imported.outputs)
    return write(mod, names, signature, destination, *targets, progress, tuning, checking)


@interruptible()
def compile_module(
    mod: tvm.IRModule,
    *,
    name: str | Sequence[str],
    outputs: Sequence[str] | None = None,
    wire: Wire = "float32",
    version: int | None = None,
    policy: VersionPolicy = "latest",
    target: Target = None,
    device_target: Target = None,
    repository: PathLike | None = None,
    output: PathLike = "dist",
    force: bool = False,
    only_subgraph: bool = False,
    with_fallback: bool = False,
    new_signature: bool = False,
    batching: Batching | None = None,
    tune: int = 0,
    tuning_db: PathLike | None = None,
    progress: Progress | None = None,
) -> Compiled:
    """Compile a Relax module that `partition_for_zmq_offload` has partitioned.

    `name` is the offloaded model's name. With several offloaded functions, give a name for each, in the order in which
    `main` calls them; one name becomes `<name>_1`, `<name>_2` and so on. The model's inputs are named after the
    parameters of `main`, its outputs by `outputs` (default: output_0, ...). The rest is as for `compile_model`.
    """
    functions = offloaded_functions(mod)
    if not functions:
        raise InvalidArgument("nothing in the module is to be offloaded; partition it with partition_for_zmq_offload")
    if not isinstance(name, str):
        models = list(name)
    elif len(functions) == 1:
        models = [name]
    else:
        models = [f"{name}_{i}" for i in range(1, len(functions) + 1)]
    destination = _destination(
        output, repository, version, policy, force, only_subgraph, batching, with_fallback, new_signature
    )
    destination.check_names(models)
    targets = resolve_target(target), resolve_target(device_target)
    tuning = _tuning(tune, tuning_db, destination.output, targets[0])
    main = mod["main"]
    types = list(main.ret_ty.fields) if isinstance(main.ret_ty, relax.TupleType) else [main.ret_ty]
    names = list(outputs) if outputs is not None else [f"output_{i}" for i in range(len(types))]
    if len(names) != len(types):
        raise InvalidArgument(f"the model has {len(types)} outputs, {len(names)} names are given for them")
    signature = (
        input_specs([p.name for p in main.params], [p.ty for p in main.params]),
        [tensor_spec(n, ty) for n, ty in zip(names, types, strict=True)],
    )
    wire = check_wire(wire)
    destination.check(models)
    progress = progress or Progress(quiet=True)
    progress.expect(len(models) * (1 + with_fallback) + (1 if only_subgraph else 2) + bool(tune))
    mod = encode_boundary(mod, [wire] * len(functions))
    return write(mod, models, signature, destination, *targets, progress, tuning)


@interruptible()
def list_cuts(model: PathLike, *, inputs: Mapping[str, Sequence[Dim]] | None = None) -> list[CutPoint]:
    """The tensors of an ONNX model at which one cut separates its inputs from its outputs, in graph order.

    Each can be given to `compile_model` as `cut`. Raises InvalidArgument as that does.
    """
    return cut_points(import_onnx(model, inputs or {}).graph)


def _regions(
    cut: str | Sequence[str] | None,
    until: str | Sequence[str] | None,
    name: str | None,
    regions: Sequence[Region] | None,
) -> list[Region]:
    """What is to be offloaded, by whichever of the two ways it is given."""
    if regions is not None:
        if cut is not None or until is not None or name is not None:
            raise InvalidArgument("give either cut, until and name of one region, or regions")
        check_distinct(regions)
        return [replace(r, cut=_names(r.cut), until=None if r.until is None else _names(r.until)) for r in regions]
    if cut is None or name is None:
        raise InvalidArgument("cut and name are needed for one region, regions for several")
    return [Region(name, _names(cut), None if until is None else _names(until))]


def _names(tensors: str | Sequence[str]) -> list[str]:
    return [tensors] if isinstance(tensors, str) else list(tensors)


def _tuning(trials: int, folder: PathLike | None, output: Path, target: tvm.target.Target) -> Tuning | None:
    if type(trials) is not int or not 0 <= trials <= MOST_TRIALS:
        raise InvalidArgument(f"--tune: the number of trials is a whole number from 0 to {MOST_TRIALS:,}")
    if trials and not runs_here(target):
        raise InvalidArgument(
            f"--tune measures on this machine, which cannot run code for the target {target}; tune on one that can, "
            "and build here with its --tuning-db"
        )
    if folder is not None and not trials and not Path(folder).is_dir():
        raise InvalidArgument(f"--tuning-db: there is no folder {folder}; --tune TRIALS makes one")
    if folder is None and not trials:
        return None
    return Tuning(Path(folder) if folder is not None else output / "tuning", trials)


def _destination(
    output: PathLike,
    repository: PathLike | None,
    version: int | None,
    policy: VersionPolicy,
    force: bool,
    only_subgraph: bool,
    batching: Batching | None,
    with_fallback: bool,
    new_signature: bool,
) -> Destination:
    root = Path(repository) if repository is not None else Path(output) / "repository"
    return Destination(
        Path(output), Repository(root), version, policy, force, only_subgraph, batching, with_fallback, new_signature
    )
