"""One deployed version: its library in a virtual machine. The only module of the workers that uses TVM.

TVM's runtime is enough (see `zmq_offload.runtime`), so nothing of the compiler is imported.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

from workers.aside import run_aside
from workers.serving import DeviceLost
from workers.warmup import usual_inputs, wanted_inputs
from zmq_offload.artifacts.config import WarmUp
from zmq_offload.artifacts.repository import LIBRARY, ModelVersion, Repository
from zmq_offload.common.cudaerrors import gpu_lost, out_of_memory
from zmq_offload.errors import FailedPrecondition, Internal, InvalidArgument, ResourceExhausted, one_line
from zmq_offload.protocol.payload import Array
from zmq_offload.runtime.gpu import Gpu, GpuMachine
from zmq_offload.runtime.machine import Machine, check_tvm_version, loading, release_memory
from zmq_offload.runtime.shared import shared_library
from zmq_offload.runtime.threads import bind_pool


def bind_threads(cores: Sequence[int]) -> None:
    """Give each thread of the calling thread's pool one of these cores."""
    bind_pool(int(os.environ["TVM_NUM_THREADS"]), cores)


class GraphExecutor:
    """Runs one version of one model, for one thread at a time. When it is dropped, the library is unloaded, unless
    another version has the same; outputs that are still held stay valid.

    A version that was built for a GPU runs on `gpu`, and any other on the CPU.

    Raises FailedPrecondition, naming the file, if the version is missing or damaged, was built by another version of
    TVM, for another CPU or another GPU, or if its library is not one of TVM's.
    """

    def __init__(
        self, repository: Repository, name: str, version: int, gpu: Gpu | None = None, model: ModelVersion | None = None
    ) -> None:
        self.model = model or repository.read(name, version)
        folder = repository.path(name, version)
        self._folder = folder.parent
        check_tvm_version(folder, self.model.tvm_version)
        if self.model.cpu is not None:
            self.model.cpu.check(str(folder / LIBRARY))
        gpu = self._gpu(folder, gpu)
        self._library = shared_library(self.model.checksum)
        with loading(folder / LIBRARY):
            library, inputs, entry = self._library.load(folder / LIBRARY), self.model.inputs, self.model.entry
            self._machine = (
                Machine(library, inputs, entry=entry) if gpu is None else GpuMachine(library, inputs, gpu, entry=entry)
            )

    def _gpu(self, folder: Path, gpu: Gpu | None) -> Gpu | None:
        """The GPU that runs this version; None: the CPU runs it."""
        needs = self.model.gpu
        if needs is None:
            return None
        if gpu is None:
            raise FailedPrecondition(
                f"{folder / LIBRARY} was built for a GPU ({needs.architecture}), and this worker has none; start it "
                "with --device cuda:0, or compile for its CPU"
            )
        needs.check(str(folder / LIBRARY), gpu.name, gpu.capability)
        return gpu

    def warm_up(self, cores: Sequence[int] = (), wanted: WarmUp | None = None) -> None:
        """Run before the first request, so that memory and code are ready for it.

        Another thread may be running another executor, so this runs in a thread of its own, on any one of `cores` at a
        time: it leaves the others to the requests, and takes time of that one when no request wants it. Without a
        `wanted` warm-up, a model of float inputs runs once, and errors are left to the requests. With one,
        FailedPrecondition is raised if it fails.
        """
        inputs = usual_inputs(self.model) if wanted is None else wanted_inputs(self.model, wanted, self._folder)
        if inputs is None:
            return
        try:
            run_aside(lambda: self.run([inputs]), 1 if wanted is None else wanted.runs, cores)
        except Exception as error:
            if wanted is not None:
                raise FailedPrecondition(f"its warm-up failed: {one_line(error)}") from error

    def run(self, requests: Sequence[Sequence[Array]]) -> list[list[Array]]:
        """Run requests together. Each has its inputs in the order of `model.inputs`, checked against the signature.
        The inputs are copied. Several requests differ in dimension 0 only, which is the batch.

        Returns the outputs of each request, in the order of `model.outputs`. Their memory stays theirs until they are
        dropped. Raises InvalidArgument for inputs that do not fit each other, ResourceExhausted if the GPU's memory
        does not suffice, DeviceLost if it is lost, and Internal, with TVM's message, if the subgraph fails.
        """
        try:
            if len(requests) == 1:
                return [self._machine.run(requests[0])]
            results = self._machine.run_together(requests)
        except Exception as error:
            self._fail(error)
        return self._split(results, [request[0].shape[0] for request in requests])

    def _fail(self, error: Exception) -> NoReturn:
        """Raise what an error of the machine's means."""
        if isinstance(error, InvalidArgument):
            raise InvalidArgument(f"{self._name}: {error.message}") from None
        if out_of_memory(error):
            release_memory()
            raise ResourceExhausted(
                f"{self._name}: the GPU has too little memory for the request; send fewer rows at once"
            ) from error
        if (fault := gpu_lost(error)) is not None:
            raise DeviceLost(f"{self._name}: the GPU is lost to this process ({fault})") from error
        raise Internal(f"{self._name} failed: {one_line(error)}") from error

    def _split(self, results: list[Array], rows: Sequence[int]) -> list[list[Array]]:
        """The outputs of each request, which has so many rows of the `results`."""
        if any(r.ndim == 0 or r.shape[0] != sum(rows) for r in results):
            raise Internal(f"{self._name} mixes the rows of a batch; serve it without batching")
        ends = list(itertools.accumulate(rows))
        return [[r[end - own : end] for r in results] for own, end in zip(rows, ends, strict=True)]

    @property
    def _name(self) -> str:
        return f"model {self.model.name!r} version {self.model.version}"


class GpuExecutor(GraphExecutor):
    """A `GraphExecutor` of a version that was built for a GPU."""

    _machine: GpuMachine

    def begin(self, requests: Sequence[Sequence[Array]]) -> Callable[[], list[list[Array]]]:
        """Begin what `run` does, for at most two runs at a time. What this returns waits for the end, once, and raises
        as `run` does. The inputs are read by now."""
        try:
            flight = self._machine.begin(requests)
        except Exception as error:
            self._fail(error)
        rows = [request[0].shape[0] for request in requests] if len(requests) > 1 else []

        def end() -> list[list[Array]]:
            try:
                results = flight.end()
            except Exception as error:
                self._fail(error)
            return self._split(results, rows) if rows else [results]

        return end


def executor_of(repository: Repository, name: str, version: int, gpu: Gpu | None = None) -> GraphExecutor:
    """The executor of a version, which runs on `gpu` if it was built for one. Raises as `GraphExecutor` does."""
    model = repository.read(name, version)
    return (GraphExecutor if model.gpu is None else GpuExecutor)(repository, name, version, gpu, model)
