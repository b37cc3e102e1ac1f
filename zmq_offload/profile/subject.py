"""Opens a model to profile: a model file, a version in a model repository, or a device bundle."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from zmq_offload.artifacts.manifest import LIBRARY, MANIFEST, RECEIVE, SEND, Manifest
from zmq_offload.artifacts.repository import DESCRIPTION, Repository
from zmq_offload.artifacts.repository import LIBRARY as SUBGRAPH
from zmq_offload.common.suggest import did_you_mean
from zmq_offload.device.adaptive import AUTO, usable_splits
from zmq_offload.device.remote import InferenceClient, InFlight, RemoteModule, registered
from zmq_offload.errors import FailedPrecondition, InvalidArgument
from zmq_offload.profile.result import flops_of
from zmq_offload.protocol.payload import Array
from zmq_offload.protocol.tensors import ANY, TensorSpec
from zmq_offload.runtime.forks import THREADS
from zmq_offload.runtime.machine import MAIN, check_tvm_version, load_library, loading
from zmq_offload.runtime.tvm_library import tvm_ffi, virtual_machine

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from zmq_offload.client.options import InferOptions
    from zmq_offload.compile.onnx.shapes import Dim


class Zeros:
    """A client that asks no workers: all outputs are zeros."""

    def infer(self, model: str, inputs: Mapping[str, Array], **options: Unpack[InferOptions]) -> Mapping[str, Array]:
        outputs = options.get("outputs") or {}
        for array in outputs.values():
            array[...] = 0
        return outputs


@dataclass
class Subject:
    """A compiled model: the function `entry` of a module.

    `flops` are the operations that were counted at compile time. `offloaded` has the name of the served model by each
    symbol that calls a worker, sends to it or receives from it, and `remote` has the functions for these symbols.
    """

    title: str
    kind: str
    module: Any
    inputs: tuple[TensorSpec, ...]
    target: Any
    flops: Mapping[str, Any]
    onnx: Path | None = None
    offloaded: dict[str, str] = field(default_factory=dict)
    remote: dict[str, RemoteModule] = field(default_factory=dict)
    failure: InFlight = field(default_factory=InFlight)
    entry: str = MAIN

    def machine(self) -> tvm_ffi.Module:
        """A VM of its own on the library. Raises FailedPrecondition if it cannot be loaded."""
        THREADS.use()
        with loading(self.title), registered(self.remote) if self.remote else nullcontext():
            return virtual_machine(self.module)

    def arrays(self, given: Mapping[str, Sequence[Dim]]) -> list[Array]:
        """Inputs to run with: random floats, and zeros for integers, which may be indices."""
        names = [spec.name for spec in self.inputs]
        for name in given:
            if name not in names:
                raise InvalidArgument(
                    f"--input: the model has no input {name!r}; it has {'; '.join(map(str, self.inputs))}"
                    f"{did_you_mean(name, names)}"
                )
        rng = np.random.default_rng(0)
        found = []
        for spec in self.inputs:
            shape = _shape(spec, given.get(spec.name))
            if spec.dtype.kind == "f":
                found.append(rng.standard_normal(shape).astype(spec.dtype))
            else:
                found.append(np.zeros(shape, spec.dtype))
        return found

    def flops_of(self, function: str, arrays: Sequence[Array]) -> int | None:
        """The operations of one call of a function, if they were counted at compile time."""
        batches = {
            array.shape[0] if axis == 0 else None
            for spec, array in zip(self.inputs, arrays, strict=True)
            for axis, extent in enumerate(spec.shape)
            if extent == ANY
        }
        return flops_of(self.flops, function, batches.pop() if len(batches) == 1 else None)


def open_subject(
    path: Path,
    inputs: Mapping[str, Sequence[Dim]],
    target: Any,
    client: InferenceClient | None,
    split: str | None = None,
) -> Subject:
    """Compile the model file `path`, or load the version or device bundle there.

    `target` is for a model file, `client` calls the workers of a device bundle, and `split` is for an adaptive one.
    Raises InvalidArgument for options that do not fit `path`, and FailedPrecondition if nothing there can be profiled.
    """
    for name, dims in inputs.items():
        if not all(isinstance(dim, int) for dim in dims):
            raise InvalidArgument(f"--input {name} has a symbolic dimension; give numbers, because the model runs")
    if split is not None and not (path / MANIFEST).is_file():
        raise InvalidArgument(f"--split is for device bundles, and {path} is not one; leave it out")
    if path.is_file():
        return _model(path, inputs, target)
    if target is not None:
        raise InvalidArgument("--target is for model files; leave it out for a compiled library")
    if (path / MANIFEST).is_file():
        return _bundle(path, client or Zeros(), split)
    if (path / DESCRIPTION).is_file():
        return _version(path)
    if not path.exists():
        raise FailedPrecondition(
            f"{path} does not exist; name a model file, repository/MODEL/VERSION or a device bundle"
        )
    raise FailedPrecondition(
        f"{path} is neither a model file nor a folder with {DESCRIPTION} (repository/MODEL/VERSION) or {MANIFEST} "
        "(a device bundle)"
    )


def _model(path: Path, inputs: Mapping[str, Sequence[Dim]], target: Any) -> Subject:
    # What is compiled elsewhere needs none of these.
    from zmq_offload.compile.build import build
    from zmq_offload.compile.flops import counting
    from zmq_offload.compile.models.onnx_model import OnnxModel
    from zmq_offload.compile.models.read import read_model
    from zmq_offload.compile.target import cpu_needs, resolve_target, target_json

    chosen = resolve_target(target)
    cpu_needs(chosen).check(f"code for target {target}")
    model = read_model(path)
    signature = model.inputs(inputs)
    with counting() as flops:
        module = build(model.uncut(inputs), chosen).jit()
    onnx = path if isinstance(model, OnnxModel) else None
    kind = f"{model.format} file, compiled here"
    return Subject(path.name, kind, module, signature, target_json(chosen), flops, onnx=onnx)


def _version(folder: Path) -> Subject:
    place = folder.resolve()
    if not place.name.isdigit():
        raise FailedPrecondition(f"{folder} does not look like repository/MODEL/VERSION")
    model = Repository(place.parent.parent).read(place.parent.name, int(place.name))
    check_tvm_version(folder, model.tvm_version)
    if model.cpu is not None:
        model.cpu.check(str(folder / SUBGRAPH))
    title = f"{model.name} version {model.version}"
    module = load_library(folder / SUBGRAPH)
    flops = model.extra.get("flops")
    counts = flops if isinstance(flops, dict) else {}
    return Subject(title, "subgraph", module, model.inputs, model.target, counts, entry=model.entry)


def _bundle(folder: Path, client: InferenceClient, split: str | None) -> Subject:
    manifest = Manifest.read(folder)
    check_tvm_version(folder, manifest.tvm_version)
    library = manifest.check_library(folder)
    manifest.cpu.check(str(library))
    entry = _entry(manifest, folder, split)
    subject = Subject(
        str(folder), "device part", load_library(folder / LIBRARY), manifest.inputs, manifest.target, manifest.flops
    )
    for part in manifest.offloaded:
        subject.offloaded |= {part.symbol + half: part.model for half in ("", SEND, RECEIVE)}
        subject.remote[part.symbol] = RemoteModule(part, client, None, subject.failure)
    subject.entry = entry
    return subject


def _entry(manifest: Manifest, folder: Path, split: str | None) -> str:
    """The function of a bundle's library that `--split` means."""
    if split is not None and split != AUTO:
        return usable_splits(manifest, split)[0].entry
    if manifest.splits:
        names = ", ".join(repr(one.name) for one in manifest.splits)
        raise InvalidArgument(f"{folder} has the splits {names}; name one with --split")
    return MAIN


def _shape(spec: TensorSpec, given: Sequence[Dim] | None) -> tuple[int, ...]:
    if given is None:
        if ANY in spec.shape:
            raise InvalidArgument(f"input {spec} has symbolic dimensions; give numbers with --input {spec.name}=...")
        return spec.shape
    shape = tuple(int(dim) for dim in given)
    if len(shape) != len(spec.shape) or any(
        want not in (ANY, got) for want, got in zip(spec.shape, shape, strict=True)
    ):
        raise InvalidArgument(f"--input {spec.name}={','.join(map(str, shape))} does not fit {spec}")
    return shape
