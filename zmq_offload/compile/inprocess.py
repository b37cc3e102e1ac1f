"""Run a compiled model in this process, without a broker: the device's library and those of the workers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from zmq_offload.artifacts.manifest import Manifest
from zmq_offload.byoc.encoding import Wire
from zmq_offload.device.inputs import Inputs
from zmq_offload.device.model import load
from zmq_offload.device.remote import InFlight, RemoteModule, registered
from zmq_offload.protocol.payload import Array
from zmq_offload.protocol.tensors import TensorSpec
from zmq_offload.runtime.forks import THREADS
from zmq_offload.runtime.machine import Machine, load_library, loading
from zmq_offload.runtime.tvm_library import tvm_ffi

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from zmq_offload.client.options import InferOptions


WHOLE = "the whole model on the device"
"""The name of the way without workers."""


class Signed(Protocol):
    """Anything with the signature of a subgraph, and with its entry in the library."""

    @property
    def inputs(self) -> Sequence[TensorSpec]: ...

    @property
    def outputs(self) -> Sequence[TensorSpec]: ...

    @property
    def entry(self) -> str: ...


class InProcess:
    """A client that runs subgraphs in this process, from libraries by model name. Not safe for concurrent calls."""

    def __init__(self, libraries: Mapping[str, tuple[Signed, Path]]) -> None:
        loaded = {}
        for file in {file for _, file in libraries.values()}:
            with loading(file):
                loaded[file] = load_library(file)
        self._models = {
            name: (signed, Machine(loaded[file], entry=signed.entry)) for name, (signed, file) in libraries.items()
        }

    def infer(self, model: str, inputs: Mapping[str, Array], **options: Unpack[InferOptions]) -> dict[str, Array]:
        described, machine = self._models[model]
        results = machine.run([inputs[spec.name] for spec in described.inputs])
        return {spec.name: array for spec, array in zip(described.outputs, results, strict=True)}


@dataclass(frozen=True)
class Way:
    """One way to run a model: by a split, or all of it on the device. `name` is "" where there is only one. `run` takes
    the inputs by name."""

    name: str
    wires: Sequence[Wire]
    run: Callable[[Mapping[str, Array]], list[Array]]

    def __str__(self) -> str:
        return self.name if self.name == WHOLE else f"the split {self.name!r}"


@contextmanager
def running(
    device: Path, libraries: Mapping[str, tuple[Signed, Path]], wires: Sequence[Wire] = ()
) -> Iterator[list[Way]]:
    """While the body runs, the ways to run a device bundle, with the libraries of the models that it calls.

    Splits whose models are not among the libraries are left out. `wires` has the encodings of a bundle without splits.
    """
    manifest, client = Manifest.read(device), InProcess(libraries)
    if not manifest.splits:
        with load(device, client=client) as model:
            yield [Way("", wires, lambda sample: _listed(model(**sample)))]
        return
    splits = [split for split in manifest.splits if split.region.model in libraries]
    file = manifest.check_library(device)
    THREADS.use()
    with loading(file):
        library = load_library(file)
        # All regions, since a virtual machine looks up all symbols of the library.
        regions = {s.region.symbol: RemoteModule(s.region, client, None, InFlight()) for s in manifest.splits}
        with registered(regions):
            ways = [Way(split.name, (split.wire,), _entry(library, split.entry, manifest)) for split in splits]
            if manifest.local:
                ways.append(Way(WHOLE, (), _entry(library, manifest.local, manifest)))
    yield ways


def _entry(library: tvm_ffi.Module, entry: str, manifest: Manifest) -> Callable[[Mapping[str, Array]], list[Array]]:
    machine, inputs = Machine(library, entry=entry, calls_back=True), Inputs(manifest.inputs)
    return lambda sample: machine.run(inputs.arranged((), sample))


def _listed(results: Array | tuple[Array, ...]) -> list[Array]:
    return list(results) if isinstance(results, tuple) else [results]
