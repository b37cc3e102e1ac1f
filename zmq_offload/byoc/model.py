"""The device's side: load a device bundle and call it like a function."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import tvm
from tvm.runtime import vm

from zmq_offload.byoc import sorting  # noqa: F401  (for what importing it does)
from zmq_offload.byoc.manifest import LIBRARY, Manifest
from zmq_offload.byoc.remote import Array, InferenceClient, RemoteModule, Underway, registered
from zmq_offload.client import Client
from zmq_offload.connection import check_timeout
from zmq_offload.errors import FailedPrecondition, Internal, InvalidArgument
from zmq_offload.protocol.tensors import ANY, TensorSpec, check_tensors, datatype_of


def load(
    bundle: str | os.PathLike[str],
    broker: str | Sequence[str] | None = None,
    *,
    client: InferenceClient | None = None,
    timeout: float | None = None,
) -> OffloadedModel:
    """Load a device bundle (the folder that `zmq-offload compile` writes as `device`).

    `broker` is the endpoint, or several for failover, at which to ask for the offloaded parts; the connection is made
    here and closed with the model. Or bring a `client`, which stays yours and can serve several models. `timeout`, in
    seconds, is for each offloaded part of each call; None leaves it to the client.

    Raises FailedPrecondition for a bundle that is missing, damaged or built by another version of TVM, and
    InvalidArgument without a broker or client.
    """
    folder = Path(bundle)
    manifest = Manifest.read(folder)
    if manifest.tvm_version != tvm.__version__:
        raise FailedPrecondition(
            f"{folder} was built by TVM {manifest.tvm_version}, this is TVM {tvm.__version__}; compile it again"
        )
    library = manifest.check_library(folder)
    manifest.cpu.check(str(library))
    if (broker is None) == (client is None):
        raise InvalidArgument("give load() either the endpoint of a broker or a client")
    if timeout is not None:
        check_timeout(timeout)
    try:
        module = tvm.runtime.load_module(str(library))
        module["vm_load_executable"]
    except (tvm.error.InternalError, AttributeError, RuntimeError) as error:
        raise FailedPrecondition(f"{library} cannot be loaded: {_one_line(error)}") from None
    if client is not None:
        return OffloadedModel(manifest, module, client, timeout=timeout)
    assert broker is not None  # as checked above
    own = Client(broker)
    return OffloadedModel(manifest, module, own, timeout=timeout, close=own.close)


class OffloadedModel:
    """A model whose device part runs here and whose offloaded parts run on workers.

    Call it with the inputs in order, or by name. Safe to share between threads: each has a VM of its own on the one
    library. Use it as a context manager, or `close` it.
    """

    def __init__(
        self,
        manifest: Manifest,
        library: tvm.runtime.Module,
        client: InferenceClient,
        *,
        timeout: float | None = None,
        close: Any = None,
    ) -> None:
        self.manifest = manifest
        self._library = library
        self._close = close
        self._closed = False
        self._failure = Underway()
        self._local = threading.local()
        self._remote = {p.symbol: RemoteModule(p, client, timeout, self._failure) for p in manifest.offloaded}

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        return self.manifest.inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        return self.manifest.outputs

    def __call__(self, *args: Any, **kwargs: Any) -> Array | tuple[Array, ...]:
        """Run the model: inputs as arrays, in order or by name; one output as an array, several as a tuple in order.

        The results are yours: a later call does not touch them.

        Raises InvalidArgument, naming the tensor, for inputs that do not fit the model, and whatever the client raises
        for an offloaded part (see `zmq_offload.errors`).
        """
        if self._closed:
            raise FailedPrecondition("the model is closed")
        arrays = self._arranged(args, kwargs)
        device = self._device()
        self._failure.error = None
        try:
            results = device.run(arrays)
        except BaseException as error:
            cause: BaseException | None = self._failure.error
            self._failure.error = None
            if cause is not None:
                raise cause from None
            if isinstance(error, Exception):
                raise Internal(f"{LIBRARY} failed: {_one_line(error)}") from error
            raise
        finally:
            self._failure.take_back()
        return results[0] if len(results) == 1 else tuple(results)

    def map(self, frames: Iterable[Any], *, depth: int = 4) -> Iterator[Array | tuple[Array, ...]]:
        """Run the model on one frame after the other, up to `depth` at a time; the results come in order.

        While workers compute one frame, the device computes the next. A frame is the model's one input, or a tuple of
        its inputs in order. Frames are taken as they are needed, at most `depth` ahead. The first error ends it.
        """
        if type(depth) is not int or depth < 1:
            raise InvalidArgument(f"depth {depth!r} is not a whole number from 1")
        return self._map(frames, depth)

    def _map(self, frames: Iterable[Any], depth: int) -> Iterator[Array | tuple[Array, ...]]:
        running: deque[Future[Array | tuple[Array, ...]]] = deque()
        with ThreadPoolExecutor(depth, thread_name_prefix="zmq-offload-map") as pool:
            try:
                for frame in frames:
                    running.append(pool.submit(self, *(frame if isinstance(frame, tuple) else (frame,))))
                    if len(running) == depth:
                        yield running.popleft().result()
                while running:
                    yield running.popleft().result()
            finally:
                for future in running:
                    future.cancel()

    def close(self) -> None:
        """Let go of the library, and of the client if `load` made it. Idempotent."""
        if not self._closed:
            self._closed = True
            self._local = threading.local()
            if self._close is not None:
                self._close()

    def __enter__(self) -> OffloadedModel:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _arranged(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Array]:
        names = [spec.name for spec in self.inputs]
        if len(args) > len(names):
            raise InvalidArgument(
                f"the model takes {len(names)} inputs, not {len(args)}: {'; '.join(map(str, self.inputs))}"
            )
        given = dict(zip(names, args, strict=False))
        for name, value in kwargs.items():
            if name in given:
                raise InvalidArgument(f"the model: input {name!r} is given twice, in order and by name")
            given[name] = value
        arrays = {name: _array(name, value) for name, value in given.items()}
        check_tensors(self.inputs, {n: (datatype_of(a.dtype), a.shape) for n, a in arrays.items()}, what="the model")
        return [arrays[name] for name in names]

    def _device(self) -> _Device:
        device: _Device | None = getattr(self._local, "device", None)
        if device is None:
            with registered(self._remote):
                device = _Device(self._library, self.inputs)
            self._local.device = device
        return device


class _Device:
    """One VM on the device's library, for one thread."""

    def __init__(self, library: tvm.runtime.Module, inputs: Sequence[TensorSpec]) -> None:
        self._main = vm.VirtualMachine(library, tvm.cpu())["main"]
        # TVM assumes aligned memory, which a caller's array need not have: copied into tensors of its own, made once.
        self._tensors = [_tensor(spec.shape, spec.dtype) if ANY not in spec.shape else None for spec in inputs]

    def run(self, arrays: Sequence[Array]) -> list[Array]:
        tensors = [
            tensor if tensor is not None else _tensor(array.shape, array.dtype)
            for tensor, array in zip(self._tensors, arrays, strict=True)
        ]
        for tensor, array in zip(tensors, arrays, strict=True):
            np.from_dlpack(tensor)[...] = array
        result = self._main(*tensors)
        results = [np.from_dlpack(t) for t in ([result] if isinstance(result, tvm.runtime.Tensor) else result)]
        # The memory of a result lives as long as the array, except where the model hands an input through, perhaps
        # under another shape: that memory is ours, and the next call writes to it.
        ours = [np.from_dlpack(t) for t in tensors]
        return [r.copy() if any(np.may_share_memory(r, own) for own in ours) else r for r in results]


def _array(name: str, value: Any) -> Array:
    try:
        array = np.asarray(value)
        datatype_of(array.dtype)
    except ValueError as error:  # of NumPy for lists of lists of different lengths, of ours for text and objects
        raise InvalidArgument(f"the model: input {name!r} is no tensor: {_one_line(error)}") from None
    return array


def _tensor(shape: Sequence[int], dtype: np.dtype[Any]) -> tvm.runtime.Tensor:
    return tvm.runtime.empty(tuple(shape), str(dtype), tvm.cpu())


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:500]
