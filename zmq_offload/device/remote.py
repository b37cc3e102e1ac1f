"""What the symbols in a device library do when the VM calls them: one request to the workers and one reply."""

from __future__ import annotations

import itertools
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import CancelledError, Future
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import numpy as np
import tvm_ffi

from zmq_offload.artifacts.manifest import RECEIVE, SEND, OffloadedRegion
from zmq_offload.errors import Cancelled, Internal
from zmq_offload.protocol.payload import Array
from zmq_offload.protocol.tensors import Latest, signature_of

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from zmq_offload.client.options import InferOptions

Answer: TypeAlias = Mapping[str, Array]

_registry = threading.Lock()


def _forget() -> None:
    global _registry
    _registry = threading.Lock()


os.register_at_fork(after_in_child=_forget)


class InferenceClient(Protocol):
    """What is needed of a client; `zmq_offload.Client` is one, and a test can bring its own.

    Requests that may be under way together are, if it also has `submit`: as `infer` without `outputs`, but it returns
    at once a Future of the answer, or what has a Future's `result` and `cancel`. The inputs are lent until it is done.
    """

    def infer(self, model: str, inputs: Mapping[str, Array], **options: Unpack[InferOptions]) -> Answer:
        """Run `model` on a worker. `outputs` are arrays to receive into; they may be filled, or left and others
        returned. Neither inputs nor outputs may be touched after the return: the memory is the VM's."""


class PendingReply(Protocol):
    """What a client's `submit` returns: a Future has it."""

    def result(self) -> Answer: ...

    def cancel(self) -> bool: ...


def _future(request: PendingReply) -> Future[Any] | None:
    """What tells that a request has failed: itself, or what it says `fails_with` it."""
    return request if isinstance(request, Future) else getattr(request, "fails_with", None)


class Underway(threading.local):
    """What the calling thread's VM has begun and not yet received, and the error that ended its run.

    An error of the client cannot cross the VM as the object it is (TVM makes a RuntimeError of its text), so it is left
    in `error`, for the caller of the VM to raise.
    """

    def __init__(self) -> None:
        self.error: BaseException | None = None
        self._requests: dict[int, PendingReply] = {}
        self._numbers = itertools.count(1)

    def add(self, request: PendingReply) -> int:
        """The number by which it is to be had. If it fails, the others are taken back at once: the run has failed,
        whichever of them it waits for."""
        number = next(self._numbers)
        requests = self._requests
        requests[number] = request
        future = _future(request)
        if future is not None:
            future.add_done_callback(lambda done: _take_back(requests) if _failed(done) else None)
        if _failure_of(requests) is not None:  # of one that failed before this was among those to be taken back
            _take_back(requests)
        return number

    def answer(self, number: int) -> Answer:
        """Wait for it. Raises its error, or that of another one for which it was taken back."""
        try:
            return self._requests[number].result()
        except (CancelledError, Cancelled):
            raise _failure_of(self._requests) or Cancelled("the request was taken back") from None
        finally:
            del self._requests[number]

    def take_back(self) -> None:
        """At the end of a run: cancel what nobody will receive any more."""
        if self._requests:
            _take_back(self._requests)
            self._requests = {}


def _failed(request: Future[Any]) -> bool:
    return request.done() and not request.cancelled() and request.exception() is not None


def _failure_of(requests: Mapping[int, PendingReply]) -> BaseException | None:
    futures = [_future(request) for request in list(requests.values())]
    failed = next((f for f in futures if f is not None and _failed(f)), None)
    return None if failed is None else failed.exception()


def _take_back(requests: Mapping[int, PendingReply]) -> None:
    for request in list(requests.values()):
        request.cancel()


class RemoteModule:
    """One offloaded part of a device library, as the packed functions that stand in for it: called itself, it makes a
    request and waits; `send` and `receive` are the two halves of that, for graphs that have something to do between."""

    def __init__(
        self, region: OffloadedRegion, client: InferenceClient, timeout: float | None, underway: Underway
    ) -> None:
        self.region = region
        self._client = client
        # A version that this device was not built for must not be chosen for it.
        self._version = (
            Latest(signature_of(region.inputs, region.outputs)) if region.version == "latest" else region.version
        )
        self._timeout = timeout
        self._underway = underway

    def __call__(self, *tensors: Any) -> None:
        """(inputs, outputs)."""
        try:  # not `_noting`, which a call of a hundred microseconds notices
            self._call(*self._named([np.from_dlpack(t) for t in tensors]))
        except BaseException as error:
            self._underway.error = error
            raise

    def send(self, *tensors: Any) -> None:
        """(inputs, token): begin a request; its number is left in the token, 0 where it is made when it is received."""
        with self._noting():
            *views, token = (np.from_dlpack(t) for t in tensors)
            inputs, _ = self._named(views)
            submit: Callable[..., PendingReply] | None = getattr(self._client, "submit", None)
            if submit is None:
                token[...] = 0
            else:
                request = submit(self.region.model, inputs, version=self._version, timeout=self._timeout)
                token[...] = self._underway.add(request)

    def receive(self, *tensors: Any) -> None:
        """(token, inputs, outputs): wait for a request. Its inputs are here because their memory was lent to it."""
        with self._noting():
            token, *views = (np.from_dlpack(t) for t in tensors)
            inputs, outputs = self._named(views)
            if token == 0:
                self._call(inputs, outputs)
            else:
                self._fill(outputs, self._underway.answer(int(token)))

    @contextmanager
    def _noting(self) -> Iterator[None]:
        try:
            yield
        except BaseException as error:
            self._underway.error = error
            raise

    def _named(self, views: list[Array]) -> tuple[dict[str, Array], dict[str, Array]]:
        """Inputs, and outputs where there are any."""
        inputs = {spec.name: view for spec, view in zip(self.region.inputs, views, strict=False)}
        rest = views[len(inputs) :]
        return inputs, {spec.name: view for spec, view in zip(self.region.outputs, rest, strict=bool(rest))}

    def _call(self, inputs: dict[str, Array], outputs: dict[str, Array]) -> None:
        region = self.region
        answer = self._client.infer(region.model, inputs, version=self._version, timeout=self._timeout, outputs=outputs)
        self._fill(outputs, answer)

    def _fill(self, outputs: Mapping[str, Array], answer: Answer) -> None:
        for name, view in outputs.items():
            array = answer.get(name)
            if array is view:
                continue
            if array is None or array.dtype != view.dtype or array.shape != view.shape:
                got = "nothing" if array is None else f"{array.dtype}{list(array.shape)}"
                raise Internal(
                    f"model {self.region.model!r} answered output {name!r} with {got}, "
                    f"the device needs {view.dtype}{list(view.shape)}"
                )
            view[...] = array


@contextmanager
def registered(functions: Mapping[str, Callable[..., None]]) -> Iterator[None]:
    """Have TVM resolve symbols to these functions while the body creates a VM; those of a RemoteModule's halves, too.

    The registry belongs to the whole process, and two loads of one bundle have the same symbols. A VM resolves them
    when it is created and keeps what it found, so they are registered for that long only, one VM at a time.
    """
    symbols = dict(functions)
    for symbol, function in functions.items():
        if isinstance(function, RemoteModule):
            symbols |= {symbol + SEND: function.send, symbol + RECEIVE: function.receive}
    with _registry:
        for symbol, called in symbols.items():
            tvm_ffi.register_global_func(symbol, called, override=True)
        try:
            yield
        finally:
            for symbol in symbols:
                tvm_ffi.registry.remove_global_func(symbol)
