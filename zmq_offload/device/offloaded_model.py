"""A model whose regions run on workers, called like a function. `zmq_offload.load` makes it."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Literal, NoReturn, TypeAlias, cast, overload

from zmq_offload.artifacts.manifest import LIBRARY, Manifest
from zmq_offload.common.lifetime import made_before_fork, refuse_pickling, tell_of_forks, warn_unclosed
from zmq_offload.device.adaptive import AUTO, Adaptive, Options
from zmq_offload.device.controller import Objective
from zmq_offload.device.inputs import Inputs
from zmq_offload.device.machine import TURNS, Machines
from zmq_offload.device.offload import Mode, Offload, Statistics
from zmq_offload.device.pipeline import check_depth, in_order, in_order_async
from zmq_offload.device.remote import InferenceClient, InFlight, RemoteModule
from zmq_offload.device.runs import OUTSTANDING, Results, Run, next_number
from zmq_offload.device.traced import Traced, TracingClient
from zmq_offload.errors import FailedPrecondition, Internal, InvalidArgument, OffloadError, ResourceExhausted, one_line
from zmq_offload.protocol.payload import Array
from zmq_offload.protocol.tensors import TensorSpec
from zmq_offload.runtime.ending import ENDING
from zmq_offload.runtime.forks import THREADS
from zmq_offload.runtime.tvm_library import tvm_ffi

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

Item: TypeAlias = "ArrayLike | tuple[ArrayLike, ...]"
"""One input of a stream: the model's only input, or all its inputs in order."""


class OffloadedModel:
    """A model that runs on this device, and whose offloaded regions run on workers. `load` makes it.

    Call it with the inputs in order, or by name. Threads may share it: each call has a virtual machine of its own, and
    as many calls compute at a time as there are cores for. Use it in a `with` statement, or `close` it. If it is
    dropped unclosed and `load` made its client, it gives a ResourceWarning. In a forked child, the parent's model
    raises FailedPrecondition, unless its `offload` is "never" and the parent had run no model. Load it in the child
    instead.

    Examples
    --------
    >>> model = load("dist/device", "tcp://edge:5555")
    >>> y = model(image)  # one call
    >>> for y in model.map(camera):  # a stream: device, network and workers are busy at the same time
    ...     show(y)
    >>> model.close()
    """

    def __init__(
        self,
        manifest: Manifest,
        library: tvm_ffi.Module,
        client: InferenceClient,
        *,
        timeout: float | None = None,
        close: Callable[[], None] | None = None,
        fallbacks: Mapping[str, Machines] | None = None,
        offload: Mode = "always",
        traced: bool = False,
        split: str = AUTO,
        objective: Objective = "latency",
    ) -> None:
        self.manifest = manifest
        self._inputs = Inputs(manifest.inputs)
        self._close = close
        self._forgotten = False
        self._traced = traced
        self._in_flight = InFlight()
        if traced:
            client = Traced(cast("TracingClient", client))
        self._offload: Offload | Adaptive
        self._machines: Machines | Adaptive | None
        if manifest.splits:
            options = Options(timeout, offload, split, objective)
            self._offload = self._machines = Adaptive(manifest, library, client, self._in_flight, TURNS, options)
        else:
            self._offload = Offload(client, manifest.offloaded, fallbacks or {}, TURNS, offload)
            remote = {r.symbol: RemoteModule(r, self._offload, timeout, self._in_flight) for r in manifest.offloaded}
            self._machines = Machines(library, manifest.inputs, remote)
        self._submitted = 0
        self._lock = threading.Lock()
        tell_of_forks(self)
        ENDING.waiting.add(self)

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """The inputs of the whole model, in order.

        Returns
        -------
        tuple of TensorSpec
            Name, datatype and shape of each; an extent of -1 may have any size.
        """
        return self.manifest.inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """The outputs of the whole model, as `inputs`."""
        return self.manifest.outputs

    def __call__(self, *args: ArrayLike, **kwargs: ArrayLike) -> Results:
        """Run the model and wait for its results.

        Parameters
        ----------
        *args : array
            The inputs in the model's order. Each fits the datatype and shape of its `TensorSpec`. Anything that
            `numpy.asarray` accepts will do.
        **kwargs : array
            The inputs by name, alone or after some in order.

        Returns
        -------
        ndarray or tuple of ndarray
            The output, or a tuple of several outputs in the model's order. Later calls do not change them.

        Raises
        ------
        InvalidArgument
            An input does not fit the model; the message names it.
        FailedPrecondition
            The model is closed or belongs to the parent process, or the served version does not fit the bundle.
        OffloadError
            Any other error of the client's, as it is: Unavailable, DeadlineExceeded, ... (see `zmq_offload.errors`).

        Examples
        --------
        >>> y = model(x)
        >>> boxes, scores = model(image=image, size=size)
        """
        if self._forgotten:
            self._check_process()
        arrays = self._inputs.arranged(args, kwargs)
        try:
            try:
                TURNS.take(next_number)
                return self._execute(arrays)
            finally:
                TURNS.end()
        except BaseException:  # Ctrl-C may have come in `end`
            TURNS.end()
            raise

    def submit(self, *args: ArrayLike, **kwargs: ArrayLike) -> Run:
        """Start a run and return a future of its results.

        Runs begin in the order of their submission, as there are cores for them, and may end in any order. Calls, `map`
        and `submit` may be mixed.

        Parameters
        ----------
        *args, **kwargs : array
            The inputs, as in a call. They must not change before the future is done.

        Returns
        -------
        Future of ndarray or of tuple of ndarray
            Its `cancel` also cancels a request in flight.

        Raises
        ------
        InvalidArgument
            An input does not fit the model; the message names it.
        ResourceExhausted
            256 submitted runs are outstanding.

        Examples
        --------
        >>> future = model.submit(x)
        >>> y = future.result()
        """
        self._check_process()
        arrays = self._inputs.arranged(args, kwargs)
        with self._lock:
            if self._submitted >= OUTSTANDING:
                raise ResourceExhausted(f"{OUTSTANDING} submitted runs are outstanding; wait for one of them")
            self._submitted += 1
        run = Run()
        run.add_done_callback(self._less)
        run.begin(self._job(arrays), TURNS)
        return run

    async def acall(self, *args: ArrayLike, **kwargs: ArrayLike) -> Results:
        """Run the model without blocking the event loop.

        Parameters
        ----------
        *args, **kwargs : array
            The inputs, as in a call. They must not change before it is done.

        Returns
        -------
        ndarray or tuple of ndarray

        Raises
        ------
        OffloadError
            As a call and `submit`. Canceling the task cancels a request in flight.
        """
        return await asyncio.wrap_future(self.submit(*args, **kwargs))

    @overload
    def map(
        self, frames: Iterable[Item], *, depth: int = 4, return_exceptions: Literal[False] = False
    ) -> Iterator[Results]: ...

    @overload
    def map(
        self, frames: Iterable[Item], *, depth: int = 4, return_exceptions: bool
    ) -> Iterator[Results | OffloadError]: ...

    def map(
        self, frames: Iterable[Item], *, depth: int = 4, return_exceptions: bool = False
    ) -> Iterator[Results | OffloadError]:
        """Run the model on a stream of items, several at a time, and yield the results in order.

        While workers compute one item, the device computes the next. Items are taken in the consumer's thread when they
        are needed, at most `depth` ahead of the results, so `frames` may be endless. If the consumer stops (the
        iterator is closed or no longer referenced), requests in flight are canceled and nothing keeps running.

        Parameters
        ----------
        frames : iterable
            The items. An item is the model's only input, or a tuple of its inputs in order. It must not change before
            its result is yielded.
        depth : int, default 4
            The most items in flight, from 1 to 256.
        return_exceptions : bool, default False
            Yield an OffloadError as the result of its item and continue, instead of raising it.

        Returns
        -------
        iterator of ndarray or of tuple of ndarray
            With `return_exceptions`, of OffloadError, too.

        Raises
        ------
        InvalidArgument
            `depth` is out of range; or, from the iterator, an item does not fit the model: the message names its index,
            from 0.
        OffloadError
            From the iterator, in place of an item's result, after the results of the items before it. Runs in flight
            are canceled. An error of `frames` itself is raised after all results.

        Examples
        --------
        >>> for y in model.map(camera, depth=4):
        ...     show(y)
        """
        self._check_process()
        return in_order(frames, self._begin, check_depth(depth), return_exceptions)

    @overload
    def amap(
        self,
        frames: Iterable[Item] | AsyncIterable[Item],
        *,
        depth: int = 4,
        return_exceptions: Literal[False] = False,
    ) -> AsyncIterator[Results]: ...

    @overload
    def amap(
        self, frames: Iterable[Item] | AsyncIterable[Item], *, depth: int = 4, return_exceptions: bool
    ) -> AsyncIterator[Results | OffloadError]: ...

    def amap(
        self, frames: Iterable[Item] | AsyncIterable[Item], *, depth: int = 4, return_exceptions: bool = False
    ) -> AsyncIterator[Results | OffloadError]:
        """As `map`, for asyncio.

        Results are yielded as soon as they are ready, even while the next item is waited for.

        Parameters
        ----------
        frames : iterable or asynchronous iterable
            The items. A plain iterable may block; it runs in a thread.
        depth, return_exceptions
            As for `map`.

        Returns
        -------
        asynchronous iterator of ndarray or of tuple of ndarray

        Raises
        ------
        InvalidArgument, OffloadError
            As `map`.

        Examples
        --------
        >>> async for y in model.amap(camera):
        ...     show(y)
        """
        self._check_process()
        return in_order_async(frames, self._begin, check_depth(depth), return_exceptions)

    @property
    def offload(self) -> Mode:
        """Where the offloaded regions run. It may be set at any time, for the calls from then on.

        Returns
        -------
        {"always", "never", "auto"}
            "always": on workers. "never": on this device, by the fallbacks of `zmq-offload compile --with-fallback`.
            "auto": where it was faster lately. The place changes when the other is clearly faster for a while. If a
            worker does not reply in time, this device computes the call.

        Raises
        ------
        InvalidArgument
            When it is set to another value.
        FailedPrecondition
            When it is set, if a region has no fallback and the value is not "always", or if the model is closed.
        """
        return self._offload.mode

    @offload.setter
    def offload(self, mode: Mode) -> None:
        if self._machines is None:
            raise FailedPrecondition("the model is closed")
        self._offload.set_mode(mode)

    @property
    def statistics(self) -> Statistics:
        """How often the regions ran where, since the model was loaded.

        Returns
        -------
        Statistics
            A named tuple of `offloaded`, `local`, `fell_back`, `failed` and `ways`; of an adaptive bundle also of
            `splits` and `choice`.

        Examples
        --------
        >>> model.statistics.ways
        {'ocr': 'remote'}
        """
        return self._offload.statistics()

    def close(self) -> None:
        """Release the libraries and their memory, and close the client if `load` made it. It may be called repeatedly.

        Calls that are running can finish; the memory is released after the last of them. Results stay valid.
        """
        if self._machines is not None:
            self._machines = None
            self._offload.close()
            if self._close is not None:
                self._close()

    def __enter__(self) -> OffloadedModel:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        if getattr(self, "_machines", None) is not None and self._close is not None and not self._forgotten:
            warn_unclosed(self, lambda: None)  # its client has its own finalizer

    def __repr__(self) -> str:
        takes, returns = ("; ".join(map(str, specs)) for specs in (self.inputs, self.outputs))
        regions = ", ".join(f"{region.model!r} version {region.version}" for region in self.manifest.offloaded)
        state = f"offload {self.offload!r}"
        if self._forgotten or self._machines is None:
            state = "made before a fork" if self._forgotten else "closed"
        return f"<OffloadedModel ({takes}) -> ({returns}), offloads {regions or 'nothing'}: {state}>"

    def __reduce__(self) -> NoReturn:
        raise refuse_pickling("an OffloadedModel")

    def forget(self) -> None:
        """This process is a forked child, and the model is the parent's."""
        self._forgotten = True
        self._submitted = 0
        self._lock = threading.Lock()
        self._offload.forget()

    def leave(self) -> None:
        """The interpreter ends: end the calls that threads wait for in TVM."""
        leave = getattr(self._offload.client, "leave", None)
        if leave is not None and not self._forgotten:
            leave()

    def _check_process(self) -> None:
        """Raises FailedPrecondition in a forked child, which has no threads of the client or of TVM."""
        if self._forgotten and (THREADS.lost or self._offload.mode != "never"):
            raise made_before_fork("model")

    def _execute(self, arrays: Sequence[Array]) -> Results:
        machines = self._machines
        if machines is None:
            raise FailedPrecondition("the model is closed")
        in_flight = self._in_flight
        in_flight.error = None
        try:
            results = machines.run(arrays)
        except BaseException as error:
            ENDING.stay()
            cause: BaseException | None = in_flight.error
            in_flight.error = None
            if cause is not None:
                raise cause from None
            if isinstance(error, InvalidArgument):
                raise InvalidArgument(f"the model: {error.message}") from None
            if isinstance(error, OffloadError) or not isinstance(error, Exception):
                raise
            raise Internal(f"{LIBRARY} failed: {one_line(error)}") from error
        finally:
            if in_flight.requests:
                in_flight.cancel()
        return results[0] if len(results) == 1 else tuple(results)

    def _begin(self, index: int, item: Item) -> Run:
        """Start the run of an item of a stream. If the item does not fit the model, the run's future fails."""
        run = Run()
        try:
            self._check_process()
            arrays = self._inputs.arranged(item if isinstance(item, tuple) else (item,), {})
        except InvalidArgument as error:
            run.set_exception(InvalidArgument(f"item {index}: {error.message}"))
        except FailedPrecondition as error:
            run.set_exception(error)
        else:
            run.begin(self._job(arrays), TURNS)
        return run

    def _job(self, arrays: Sequence[Array]) -> Callable[[], Results]:
        """A run, for another thread. The current span of a trace is that of this thread."""
        if not self._traced:
            return lambda: self._execute(arrays)
        context = contextvars.copy_context()
        return lambda: context.run(self._execute, arrays)

    def _less(self, _: object) -> None:
        with self._lock:
            self._submitted -= 1
