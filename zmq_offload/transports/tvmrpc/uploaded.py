"""Requests to TVM's RPC server as it is: libraries of a local repository are uploaded, and run there by TVM's VM.

A library travels once in a session, with the weights in it. A request is two round trips: inputs there, with the calls
that run the model; then outputs back.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from zmq_offload.artifacts.cpu import CpuNeeds
from zmq_offload.artifacts.repository import LIBRARY, ModelVersion, Repository
from zmq_offload.errors import FailedPrecondition, NotFound, ProtocolError, one_line
from zmq_offload.protocol.tensors import check_tensors, datatype_of
from zmq_offload.transports.transport import Attempt, Reply, Request, Served
from zmq_offload.transports.tvmrpc import wire
from zmq_offload.transports.tvmrpc.asking import Asking
from zmq_offload.transports.tvmrpc.loaded import Loaded
from zmq_offload.transports.tvmrpc.machine import METHODS, RemoteMachine
from zmq_offload.transports.tvmrpc.session import Session
from zmq_offload.transports.tvmrpc.values import Handle, Module, Reference
from zmq_offload.transports.tvmrpc.ways import holding, owned

_UPLOAD, _LOAD, _REMOVE, _METHOD = (
    f"tvm.rpc.server.{name}" for name in ("upload", "load_module", "remove", "ModuleGetFunction")
)
_CPU, _TRIPLE, _TARGET, _HAS = (
    "target.llvm_get_system_cpu",
    "target.llvm_get_system_triple",
    "target.Target",
    "target.llvm_cpu_has_feature",
)


class Uploaded:
    """The models of a folder here, on a server there."""

    def __init__(self, session: Session, repository: Repository, address: str, most: int) -> None:
        self._session, self._repository, self._most = session, repository, most
        self._what = f"the TVM RPC server at {address}"
        self._loaded: Loaded[RemoteMachine] = Loaded(repository)
        self._loading = threading.Lock()
        self._functions: dict[str, int] = {}

    def infer(self, request: Request, attempt: Attempt) -> Reply:
        """Run a model on the server, which gets its library first."""
        with holding(self._loading, attempt.seconds):
            model, machine = self._loaded.find(
                request.model, request.version, lambda model, folder: self._load(model, folder / LIBRARY, attempt)
            )
        what = f"model {model.name!r} version {model.version}"
        given = {name: (datatype_of(array.dtype), array.shape) for name, array in request.inputs.items()}
        check_tensors(model.inputs, given, what=what)
        results = machine.run([request.inputs[spec.name] for spec in model.inputs], what, self._most, attempt)
        if len(results) != len(model.outputs):
            raise ProtocolError(f"{what} gives {len(results)} outputs; its description has {len(model.outputs)}")
        names = [spec.name for spec in model.outputs]
        outputs = {name: owned(view, request.outputs, name) for name, view in zip(names, results, strict=True)}
        return Reply(outputs, model.version)

    def served(self, model: str, attempt: Attempt) -> Iterable[Served]:
        """The versions in the folder, the latest first."""
        attempt.seconds()
        versions = self._repository.versions(model)
        if not versions:
            raise NotFound(f"model {model!r} is not in the repository {self._repository.root}")
        read = (self._repository.read(model, version) for version in reversed(versions))
        return (Served(found.version, found.inputs, found.outputs) for found in read)

    def _load(self, model: ModelVersion, library: Path, attempt: Attempt) -> RemoteMachine:
        """Upload a library and begin a virtual machine on it."""
        ask = Asking(self._session, attempt, self._what)
        self._find_functions(ask)
        if model.cpu is not None:
            self._check_cpu(ask, model.cpu, library)
        try:
            content = library.read_bytes()
        except OSError as error:
            raise FailedPrecondition(f"{library}: {one_line(error)}") from None
        name = f"{model.checksum.removeprefix('sha256:')[:32]}.so"
        ask.value(self._call(_UPLOAD, name, content))
        # The system's loader keeps the file as long as it needs it.
        loaded, _ = ask.values(self._call(_LOAD, name), self._call(_REMOVE, name), failing=FailedPrecondition)
        begin = ask.handle(self._method(ask.a_handle(loaded), "vm_load_executable"))
        vm = ask.handle(wire.call(begin.number))
        found = ask.values(*(self._method(vm, method) for method in METHODS))
        functions = {method: ask.a_handle(one).number for method, one in zip(METHODS, found, strict=True)}
        return RemoteMachine(self._session, functions, model.inputs, model.entry, ask)

    def _find_functions(self, ask: Asking) -> None:
        names = (_UPLOAD, _LOAD, _REMOVE, _METHOD, _CPU, _TRIPLE, _TARGET, _HAS)
        if not self._functions:
            found = ask.values(*map(wire.get_function, names))
            self._functions = {name: ask.a_handle(one).number for name, one in zip(names, found, strict=True)}
        for name in (_UPLOAD, _LOAD, _REMOVE, _METHOD):
            if not self._functions[name]:
                raise FailedPrecondition(f"{self._what} has no function {name!r}, so that no library can be uploaded")

    def _check_cpu(self, ask: Asking, needs: CpuNeeds, library: Path) -> None:
        """Raises FailedPrecondition if the server's CPU lacks what the library needs, which would end the server. A
        server without TVM's compiler cannot be asked."""
        if not all(self._functions[name] for name in (_CPU, _TRIPLE, _TARGET, _HAS)):
            return
        cpu, triple = (_text(one) for one in ask.values(self._call(_CPU), self._call(_TRIPLE)))
        architecture = CpuNeeds.of(triple, ()).architecture
        if architecture != needs.architecture:
            raise FailedPrecondition(
                f"{library} was built for {needs.architecture}, the CPU of {self._what} is {architecture}; compile it "
                "with --target for that CPU"
            )
        described = json.dumps({"kind": "llvm", "mcpu": cpu})
        target = Reference(ask.handle(self._call(_TARGET, described)).number)
        has = ask.values(*(self._call(_HAS, feature, target) for feature in needs.features))
        missing = [feature for feature, found in zip(needs.features, has, strict=True) if not found]
        if missing:
            raise FailedPrecondition(
                f"{library} was built for a CPU with {', '.join(missing)}, which the {cpu} of {self._what} lacks; "
                "compile it with --target for that CPU"
            )

    def _call(self, name: str, *arguments: Any) -> bytes:
        return wire.call(self._functions[name], *arguments)

    def _method(self, module: Handle, name: str) -> bytes:
        return wire.call(self._functions[_METHOD], Module(module.number), name, True)


def _text(value: object) -> str:
    """A string, which some functions return as bytes."""
    return bytes(value).decode(errors="replace") if isinstance(value, memoryview) else str(value)
