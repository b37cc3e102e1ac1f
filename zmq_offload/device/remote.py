"""The functions that a device library calls for its regions: one request to the workers and one reply each."""

from __future__ import annotations

import itertools
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError, Future
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol, TypeAlias

from zmq_offload.artifacts.manifest import RECEIVE, SEND, OffloadedRegion
from zmq_offload.errors import Cancelled, FailedPrecondition, Internal
from zmq_offload.protocol.payload import Array
from zmq_offload.protocol.tensors import Latest, signature_of
from zmq_offload.runtime.tvm_library import tensor, tvm_ffi
from zmq_offload.runtime.views import view_of

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from zmq_offload.client.options import InferOptions, SubmitOptions

Reply: TypeAlias = Mapping[str, Array]

_registry = threading.Lock()


def _forget() -> None:
    global _registry
    _registry = threading.Lock()


os.register_at_fork(after_in_child=_forget)


class InferenceClient(Protocol):
    """What a model needs of a client. `zmq_offload.Client` has it; a test can bring its own.

    With a method `submit`, requests can be in flight together. It takes the arguments of `infer` without `outputs` and
    returns at once: a Future of the reply, or an object with a Future's `result` and `cancel`. The inputs are lent
    until it is done.
    """

    def infer(self, model: str, inputs: Mapping[str, Array], **options: Unpack[InferOptions]) -> Reply:
        """Run `model` on a worker. Results may be written to the arrays in `outputs`, or other arrays returned. After
        the return, the client must not use inputs and outputs: their memory is the virtual machine's."""


class PendingReply(Protocol):
    """What a client's `submit` returns."""

    def result(self) -> Reply: ...

    def cancel(self) -> bool: ...


def _future(request: PendingReply) -> Future[Reply] | None:
    """The future that fails if the request fails: the request itself, or its attribute `fails_with`."""
    return request if isinstance(request, Future) else getattr(request, "fails_with", None)


class InFlight(threading.local):
    """The requests in flight of the calling thread's virtual machine, and the error that ended its run.

    TVM turns an exception that a function raises into a RuntimeError with its text. So the exception itself is kept in
    `error`, and the caller of the virtual machine raises it.
    """

    def __init__(self) -> None:
        self.error: BaseException | None = None
        self.requests: dict[int, PendingReply] = {}
        self._numbers = itertools.count(1)

    def add(self, request: PendingReply) -> int:
        """Keep a request, and return its number. If one request fails, the others are canceled at once: the run has
        failed, whichever request it waits for."""
        number = next(self._numbers)
        requests = self.requests
        requests[number] = request
        future = _future(request)
        if future is not None:
            future.add_done_callback(lambda done: _cancel(requests) if _failed(done) else None)
        if _failure_of(requests) is not None:  # an earlier request failed before this one could be canceled with it
            _cancel(requests)
        return number

    def reply(self, number: int) -> Reply:
        """Wait for a reply. Raises the request's error, or that of the request for which it was canceled."""
        try:
            return self.requests[number].result()
        except (CancelledError, Cancelled):
            raise _failure_of(self.requests) or Cancelled("the request was canceled") from None
        finally:
            del self.requests[number]

    def cancel(self) -> None:
        """At the end of a run: cancel the requests that nothing will receive."""
        if self.requests:
            _cancel(self.requests)
            self.requests = {}


def _failed(request: Future[Reply]) -> bool:
    return request.done() and not request.cancelled() and request.exception() is not None


def _failure_of(requests: Mapping[int, PendingReply]) -> BaseException | None:
    futures = [_future(request) for request in list(requests.values())]
    failed = next((f for f in futures if f is not None and _failed(f)), None)
    return None if failed is None else failed.exception()


def _cancel(requests: Mapping[int, PendingReply]) -> None:
    for request in list(requests.values()):
        request.cancel()


class RemoteModule:
    """One region of a device library, as the packed functions that the library calls for it.

    Called itself, it makes a request and waits for the reply. `send` and `receive` are the two halves, for graphs that
    have other work in between.
    """

    def __init__(
        self, region: OffloadedRegion, client: InferenceClient, timeout: float | None, in_flight: InFlight
    ) -> None:
        self.region = region
        self._inputs = [spec.name for spec in region.inputs]
        self._outputs = [spec.name for spec in region.outputs]
        self._first = len(self._inputs)  # of the outputs, among a call's arguments
        self._client = client
        # The broker must not choose a version that this device was not built for.
        self._options: SubmitOptions = {
            "version": region.pinned or Latest(signature_of(region.inputs, region.outputs)),
            "timeout": timeout,
        }
        if region.label is not None:
            self._options["label"] = region.label
        self._in_flight = in_flight
        self._direct: Callable[..., bool] | None = getattr(client, "direct", None)

    def __call__(self, *tensors: tvm_ffi.Tensor) -> tvm_ffi.Tensor | list[tvm_ffi.Tensor] | None:
        """Arguments: inputs, outputs. Without outputs, the results are returned: their shapes were not known."""
        try:  # not `_noting`, which would add to a call of a hundred microseconds
            views = list(map(view_of, tensors))
            inputs = dict(zip(self._inputs, views))  # noqa: B905  (outputs follow)
            outputs = views[self._first :]
            if not outputs:
                return self._returned(inputs)
            if self._direct is None or not self._direct(self.region, inputs, outputs, self._options):
                self._call(inputs, outputs)
            return None
        except BaseException as error:
            self._in_flight.error = error
            raise

    def send(self, *tensors: tvm_ffi.Tensor) -> None:
        """Arguments: inputs, token. Begin a request and write its number to the token, or 0 if `receive` makes it."""
        with self._noting():
            *views, token = (view_of(t) for t in tensors)
            inputs = dict(zip(self._inputs, views, strict=True))
            submit: Callable[..., PendingReply] | None = getattr(self._client, "submit", None)
            if submit is None:
                token[...] = 0
            else:
                request = submit(self.region.model, inputs, **self._options)
                token[...] = self._in_flight.add(request)

    def receive(self, *tensors: tvm_ffi.Tensor) -> None:
        """Arguments: token, inputs, outputs. Wait for a request. Passing the inputs keeps their memory until then."""
        with self._noting():
            token, *views = (view_of(t) for t in tensors)
            inputs = dict(zip(self._inputs, views, strict=False))
            outputs = views[self._first :]
            if token == 0:
                self._call(inputs, outputs)
            else:
                fill(self.region, outputs, self._in_flight.reply(int(token)))

    @contextmanager
    def _noting(self) -> Iterator[None]:
        try:
            yield
        except BaseException as error:
            self._in_flight.error = error
            raise

    def _returned(self, inputs: dict[str, Array]) -> tvm_ffi.Tensor | list[tvm_ffi.Tensor]:
        region = self.region
        reply = self._client.infer(region.model, inputs, **self._options)
        results = []
        for spec in region.outputs:
            array = reply.get(spec.name)
            if array is None or array.dtype != spec.dtype or not spec.fits(array.shape):
                got = "nothing" if array is None else f"{array.dtype}{list(array.shape)}"
                raise Internal(
                    f"model {region.model!r} replied output {spec.name!r} with {got}; the device needs {spec}"
                )
            results.append(tensor(array))
        return results[0] if len(results) == 1 else results

    def _call(self, inputs: dict[str, Array], outputs: Sequence[Array]) -> None:
        region = self.region
        named = dict(zip(self._outputs, outputs, strict=True))
        fill(region, outputs, self._client.infer(region.model, inputs, **self._options, outputs=named))


def fill(region: OffloadedRegion, outputs: Sequence[Array], reply: Reply) -> None:
    """Copy a reply into the memory of the outputs. Raises FailedPrecondition or Internal if it does not fit."""
    for spec, view in zip(region.outputs, outputs):  # noqa: B905  (the library passes as many as the region has)
        array = reply.get(spec.name)
        if array is view:
            continue
        if array is None or array.shape != view.shape or (array.dtype is not view.dtype and array.dtype != view.dtype):
            check_fits(region, reply)
            got = "nothing" if array is None else f"{array.dtype}{list(array.shape)}"
            raise Internal(
                f"model {region.model!r} replied output {spec.name!r} with {got}; "
                f"the device needs {view.dtype}{list(view.shape)}"
            )
        view[...] = array


def check_fits(region: OffloadedRegion, reply: Reply) -> None:
    """Raise FailedPrecondition for a reply that does not have the region's signature."""
    for spec in region.outputs:
        array = reply.get(spec.name)
        if array is None or array.dtype != spec.dtype or not spec.fits(array.shape):
            got = "nothing" if array is None else f"{array.dtype}{list(array.shape)}"
            version = getattr(reply, "version", None)
            served = f"model {region.model!r}" + (f" version {version}" if version else "")
            raise FailedPrecondition(
                f"the served version does not fit this device bundle: {served} replies output {spec.name!r} with "
                f"{got}; the device needs {spec}"
            )


@contextmanager
def registered(functions: Mapping[str, Callable[..., object]]) -> Iterator[None]:
    """While the body creates a virtual machine, TVM resolves symbols to these functions, and to a RemoteModule's
    halves.

    TVM's registry belongs to the process, and two loads of one bundle have the same symbols. A virtual machine resolves
    symbols when it is created and keeps the functions. So they are registered for that time only, for one virtual
    machine at a time.
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
