"""What the symbols in a device library do when the VM calls them: one request to the workers and one reply."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol

import numpy as np
import tvm_ffi

from zmq_offload.byoc.manifest import Offloaded
from zmq_offload.errors import Internal

Array = np.ndarray[Any, Any]

_registry = threading.Lock()


class InferenceClient(Protocol):
    """What is needed of a client; `zmq_offload.Client` is one, and a test can bring its own."""

    def infer(
        self,
        model: str,
        inputs: Mapping[str, Array],
        *,
        version: int | None = None,
        timeout: float | None = None,
        outputs: Mapping[str, Array] | None = None,
    ) -> Mapping[str, Array]:
        """Run `model` on a worker. `outputs` are arrays to receive into; they may be filled, or left and others
        returned. Neither inputs nor outputs may be touched after the return: the memory is the VM's."""


class RemoteModule:
    """One offloaded part of a device library, as the packed function that stands in for it.

    An error of the client cannot cross the VM as the object it is (TVM makes a RuntimeError of its text), so it is left
    in `failure.error`, of the calling thread, for the caller of the VM to raise.
    """

    def __init__(
        self, part: Offloaded, client: InferenceClient, timeout: float | None, failure: threading.local
    ) -> None:
        self.part = part
        self._client = client
        self._version = None if part.version == "latest" else part.version
        self._timeout = timeout
        self._failure = failure

    def __call__(self, *tensors: Any) -> None:
        try:
            self._call([np.from_dlpack(t) for t in tensors])
        except BaseException as error:
            self._failure.error = error
            raise

    def _call(self, views: list[Array]) -> None:
        part = self.part
        inputs = {spec.name: view for spec, view in zip(part.inputs, views, strict=False)}
        outputs = {spec.name: view for spec, view in zip(part.outputs, views[len(inputs) :], strict=True)}
        answer = self._client.infer(part.model, inputs, version=self._version, timeout=self._timeout, outputs=outputs)
        for name, view in outputs.items():
            array = answer.get(name)
            if array is view:
                continue
            if array is None or array.dtype != view.dtype or array.shape != view.shape:
                got = "nothing" if array is None else f"{array.dtype}{list(array.shape)}"
                raise Internal(
                    f"model {part.model!r} answered output {name!r} with {got}, "
                    f"the device needs {view.dtype}{list(view.shape)}"
                )
            view[...] = array


@contextmanager
def registered(functions: Mapping[str, Callable[..., None]]) -> Iterator[None]:
    """Have TVM resolve symbols to these functions while the body creates a VM.

    The registry belongs to the whole process, and two loads of one bundle have the same symbols. A VM resolves them
    when it is created and keeps what it found, so they are registered for that long only, one VM at a time.
    """
    with _registry:
        for symbol, function in functions.items():
            tvm_ffi.register_global_func(symbol, function, override=True)
        try:
            yield
        finally:
            for symbol in functions:
                tvm_ffi.registry.remove_global_func(symbol)
