"""What the server does with a request: find the version, check, run. Each connection has a process with one service."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from pathlib import Path

from zmq_offload.artifacts.repository import LIBRARY, ModelVersion, Repository
from zmq_offload.errors import Internal, OffloadError, ProtocolError, ResourceExhausted, one_line
from zmq_offload.protocol import limits, messages
from zmq_offload.protocol.payload import decode_tensors, encode_body, encode_tensors
from zmq_offload.protocol.tensors import check_tensors, datatype_of
from zmq_offload.runtime.machine import Machine, check_tvm_version, load_library
from zmq_offload.transports.tvmrpc import parcel
from zmq_offload.transports.tvmrpc.loaded import Loaded

log = logging.getLogger("RPCServer")

_EXPECTED: frozenset[type[messages.Request | messages.Query]] = frozenset((messages.Request, messages.Query))


class Service:
    """Answers parcels from a model repository. Versions are loaded when they are first asked for."""

    def __init__(self, repository: Repository) -> None:
        self._repository = repository
        self._loaded: Loaded[Machine] = Loaded(repository)

    def answer(self, data: bytes | bytearray | memoryview) -> list[parcel.Frame]:
        """The buffers of the parcel that answers one. An error is an answer, too."""
        try:
            head, *frames = parcel.unpack(data)
            message = messages.decode(bytes(head), _EXPECTED)
            if isinstance(message, messages.Query):
                answer = messages.Answer(parcel.SESSION, message.id)
                return parcel.pack([messages.encode(answer), encode_body(self._models())])
            return parcel.pack(self._run(message, frames))
        except OffloadError as error:
            return _refused(error)
        except Exception as error:
            log.exception("a request failed")
            return _refused(Internal(f"{type(error).__name__}: {one_line(error)}"))

    def _run(self, request: messages.Request, frames: Sequence[memoryview]) -> list[parcel.Frame]:
        if not frames:
            raise ProtocolError("a request has no tensors")
        inputs = decode_tensors([memoryview(bytes(frames[0])), *frames[1:]])
        model, machine = self._loaded.find(request.model, request.version or None, _machine)
        what = f"model {model.name!r} version {model.version}"
        given = {name: (datatype_of(array.dtype), array.shape) for name, array in inputs.items()}
        check_tensors(model.inputs, given, what=what)
        began = time.monotonic()
        try:
            results = machine.run([inputs[spec.name] for spec in model.inputs])
        except OffloadError as error:
            raise type(error)(f"{what}: {error.message}") from None
        except Exception as error:
            raise Internal(f"{what} failed: {one_line(error)}") from error
        took = int((time.monotonic() - began) * 1e6)
        outputs = encode_tensors(list(zip([spec.name for spec in model.outputs], results, strict=True)))
        if (size := sum(map(len, outputs))) > request.max_frame_bytes:
            raise ResourceExhausted(
                f"{what}: the outputs have {size} bytes; the client's max_frame_bytes allows {request.max_frame_bytes}"
            )
        envelope = messages.Result(parcel.SESSION, request.id, model.version, 0, took, took)
        return [messages.encode(envelope), *outputs]

    def _models(self) -> list[dict[str, object]]:
        found: list[dict[str, object]] = []
        for name in self._repository.models():
            for version in self._repository.versions(name):
                try:
                    model = self._repository.read(name, version)
                except OffloadError as error:
                    log.warning("model %s version %d cannot be served: %s", name, version, error)
                    continue
                inputs, outputs = ([spec.to_json() for spec in specs] for specs in (model.inputs, model.outputs))
                found.append({"name": name, "version": version, "inputs": inputs, "outputs": outputs})
        return found


def _machine(model: ModelVersion, folder: Path) -> Machine:
    check_tvm_version(folder, model.tvm_version)
    if model.cpu is not None:
        model.cpu.check(str(folder / LIBRARY))
    return Machine(load_library(folder / LIBRARY), model.inputs, entry=model.entry)


def _refused(error: OffloadError) -> list[parcel.Frame]:
    text = error.message[: limits.MESSAGE_CHARS]
    return parcel.pack([messages.encode(messages.Error(parcel.SESSION, 0, error.code.value, text))])
