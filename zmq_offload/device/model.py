"""The device's side: load a device bundle and call it like a function."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, overload

import numpy as np
import tvm

from zmq_offload.artifacts.manifest import LIBRARY, Manifest
from zmq_offload.client.arguments import check_timeout
from zmq_offload.client.sync import Client
from zmq_offload.common.lifetime import made_before_fork, refuse_pickling, tell_of_forks, warn_unclosed
from zmq_offload.device.machine import TURNS, Machines
from zmq_offload.device.offload import Mode, Offload, Statistics
from zmq_offload.device.pipeline import check_depth, in_order, in_order_async
from zmq_offload.device.remote import InferenceClient, RemoteModule, Underway
from zmq_offload.device.runs import OUTSTANDING, CancelScope, Results, Run
from zmq_offload.errors import FailedPrecondition, Internal, InvalidArgument, OffloadError, ResourceExhausted, one_line
from zmq_offload.protocol.payload import Array
from zmq_offload.protocol.tensors import TensorSpec, array_of, check_tensors, datatype_of
from zmq_offload.runtime.forks import THREADS
from zmq_offload.runtime.machine import check_tvm_version, load_library


def load(
    bundle: str | os.PathLike[str],
    broker: str | Sequence[str] | None = None,
    *,
    client: InferenceClient | None = None,
    timeout: float | None = None,
    offload: Mode = "always",
) -> OffloadedModel:
    """Load a device bundle (the folder that `zmq-offload compile` writes as `device`).

    `broker` is the endpoint, or several for failover, at which to ask for the offloaded parts; the connection is made
    here and closed with the model. Or bring a `client`, which stays yours and can serve several models. `timeout`, in
    seconds, is for each offloaded part of each call; None leaves it to the client. `offload`: see
    `OffloadedModel.offload`.

    Raises FailedPrecondition for a bundle that is missing, damaged, built by another version of TVM or whose local
    copies do not fit what is offloaded, for `offload` other than "always" without local copies, and in a forked child
    of a process that has run a model; InvalidArgument without a path, or without a broker or client.
    """
    THREADS.check()
    if not isinstance(bundle, (str, os.PathLike)):
        raise InvalidArgument(f"bundle {bundle!r} is not a path")
    folder = Path(bundle)
    manifest = Manifest.read(folder)
    check_tvm_version(folder, manifest.tvm_version)
    library = manifest.check_library(folder)
    manifest.cpu.check(str(library))
    if (broker is None) == (client is None):
        raise InvalidArgument("give load() either the endpoint of a broker or a client")
    if timeout is not None:
        timeout = check_timeout(timeout)
    module = load_library(library)
    fallbacks = {
        fallback.model: Machines(load_library(path), fallback.inputs)
        for fallback, path in manifest.check_fallback(folder).items()
    }
    if client is not None:
        return OffloadedModel(manifest, module, client, timeout=timeout, fallbacks=fallbacks, offload=offload)
    assert broker is not None  # as checked above
    own = Client(broker)
    try:
        model = OffloadedModel(
            manifest, module, own, timeout=timeout, close=own.close, fallbacks=fallbacks, offload=offload
        )
        own.belongs_to_another()
        return model
    except BaseException:
        own.close()
        raise


class OffloadedModel:
    """A model whose device part runs here and whose offloaded parts run on workers.

    Call it with the inputs in order, or by name. Safe to share between threads: each call has a VM of its own on the
    one library, and as many compute at a time as there are cores for. Use it as a context manager, or `close` it; one
    that is dropped gives a ResourceWarning if `load` made its client. In a forked child the parent's raises
    FailedPrecondition, but for `offload` "never" where the parent had run no model; load it there.
    """

    def __init__(
        self,
        manifest: Manifest,
        library: tvm.runtime.Module,
        client: InferenceClient,
        *,
        timeout: float | None = None,
        close: Any = None,
        fallbacks: Mapping[str, Machines] | None = None,
        offload: Mode = "always",
    ) -> None:
        self.manifest = manifest
        self._close = close
        self._forgotten = False
        self._failure = Underway()
        self._offload = Offload(client, manifest.offloaded, fallbacks or {}, TURNS, offload)
        remote = {r.symbol: RemoteModule(r, self._offload, timeout, self._failure) for r in manifest.offloaded}
        self._machines: Machines | None = Machines(library, manifest.inputs, remote)
        self._submitted = 0
        self._lock = threading.Lock()
        tell_of_forks(self)

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        return self.manifest.inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        return self.manifest.outputs

    def __call__(self, *args: Any, **kwargs: Any) -> Results:
        """Run the model: inputs as arrays, in order or by name; one output as an array, several as a tuple in order.

        The results are yours: a later call does not touch them.

        Raises InvalidArgument, naming the tensor, for inputs that do not fit the model, and whatever the client raises
        for an offloaded part (see `zmq_offload.errors`).
        """
        self._check_process()
        arrays = self._arranged(args, kwargs)
        with TURNS.turn(CancelScope().number):
            return self._execute(arrays)

    def submit(self, *args: Any, **kwargs: Any) -> Run:
        """As a call, but return a future at once; its `cancel` takes the frame's request back.

        Up to 256 submitted frames may be outstanding. They are begun in their order, as there are cores for them, but
        may end in any. The arrays must not change before the future is done. Calls, `map` and `submit` may be mixed.

        Raises InvalidArgument for inputs that do not fit the model, ResourceExhausted if too many are outstanding.
        """
        self._check_process()
        arrays = self._arranged(args, kwargs)
        with self._lock:
            if self._submitted >= OUTSTANDING:
                raise ResourceExhausted(f"{OUTSTANDING} submitted frames are outstanding; wait for one of them")
            self._submitted += 1
        frame = Run()
        frame.add_done_callback(self._less)
        frame.begin(lambda: self._execute(arrays), TURNS)
        return frame

    async def acall(self, *args: Any, **kwargs: Any) -> Results:
        """As a call, for asyncio: the event loop goes on meanwhile. Cancelling takes the request back; see `submit`."""
        return await asyncio.wrap_future(self.submit(*args, **kwargs))

    @overload
    def map(
        self, frames: Iterable[Any], *, depth: int = 4, return_exceptions: Literal[False] = False
    ) -> Iterator[Results]: ...

    @overload
    def map(
        self, frames: Iterable[Any], *, depth: int = 4, return_exceptions: bool
    ) -> Iterator[Results | OffloadError]: ...

    def map(
        self, frames: Iterable[Any], *, depth: int = 4, return_exceptions: bool = False
    ) -> Iterator[Results | OffloadError]:
        """Run the model on one frame after the other, up to `depth` (1 to 256) at a time; the results come in order.

        While workers compute one frame, the device computes the next. A frame is the model's one input, or a tuple of
        its inputs in order; it must not change before its result is there. Frames are taken in the consumer's thread,
        as they are needed, never more than `depth` ahead of the results, so that `frames` need not end.

        An error comes out in place of its frame's result, behind the results of the frames before it; that of a frame
        which does not fit the model is InvalidArgument and names the frame's index, from 0. It ends the iteration:
        frames under way are taken back. With `return_exceptions`, errors of this project are handed out as results, and
        the frames behind them go on. An error of `frames` itself is raised behind all results.

        When the consumer leaves (the iterator is closed, or nobody refers to it any more), requests under way are taken
        back and nothing of it runs on. Raises InvalidArgument for a depth that is none.
        """
        self._check_process()
        return in_order(frames, self._begin, check_depth(depth), return_exceptions)

    @overload
    def amap(
        self,
        frames: Iterable[Any] | AsyncIterable[Any],
        *,
        depth: int = 4,
        return_exceptions: Literal[False] = False,
    ) -> AsyncIterator[Results]: ...

    @overload
    def amap(
        self, frames: Iterable[Any] | AsyncIterable[Any], *, depth: int = 4, return_exceptions: bool
    ) -> AsyncIterator[Results | OffloadError]: ...

    def amap(
        self, frames: Iterable[Any] | AsyncIterable[Any], *, depth: int = 4, return_exceptions: bool = False
    ) -> AsyncIterator[Results | OffloadError]:
        """As `map`, for asyncio: `async for y in model.amap(frames)`.

        `frames` may be asynchronous; an iterator that is not runs in a thread, since it may wait. Results are handed
        out as soon as they are there, also while a frame is waited for.
        """
        self._check_process()
        return in_order_async(frames, self._begin, check_depth(depth), return_exceptions)

    @property
    def offload(self) -> Mode:
        """Where the offloaded parts run: "always" on workers, "never" (here, by the local copies of
        `zmq-offload compile --with-fallback`), or "auto".

        "auto" follows the measured latencies of both ways and changes when the other is clearly better for a while;
        what a worker does not answer in time, or not at all, is computed here. It may be set at any time and holds for
        the calls from then on. Setting it raises InvalidArgument for another value and FailedPrecondition without a
        local copy of each offloaded part.
        """
        return self._offload.mode

    @offload.setter
    def offload(self, mode: Mode) -> None:
        if self._machines is None:
            raise FailedPrecondition("the model is closed")
        self._offload.set_mode(mode)

    @property
    def statistics(self) -> Statistics:
        """How many offloaded parts ran where, since the model was loaded."""
        return self._offload.statistics()

    def close(self) -> None:
        """Give back the libraries and their memory, and close the client if `load` made it. Idempotent.

        Calls that run now end first: what they use goes when the last of them ends. Results stay valid.
        """
        if self._machines is not None:
            self._machines = None
            self._offload.fallbacks = {}
            if self._close is not None:
                self._close()

    def __enter__(self) -> OffloadedModel:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        if getattr(self, "_machines", None) is not None and self._close is not None and not self._forgotten:
            warn_unclosed(self, lambda: None)  # its client is released by itself

    def __repr__(self) -> str:
        takes, returns = ("; ".join(map(str, specs)) for specs in (self.inputs, self.outputs))
        regions = ", ".join(f"{region.model!r} version {region.version}" for region in self.manifest.offloaded)
        state = f"offload {self.offload!r}"
        if self._forgotten or self._machines is None:
            state = "made before a fork" if self._forgotten else "closed"
        return f"<OffloadedModel ({takes}) -> ({returns}), offloads {regions or 'nothing'}: {state}>"

    def __reduce__(self) -> Any:
        raise refuse_pickling("an OffloadedModel")

    def forget(self) -> None:
        """This process was forked, and the model is the parent's."""
        self._forgotten = True
        self._submitted = 0
        self._lock = threading.Lock()
        self._offload.forget()

    def _check_process(self) -> None:
        """Raises FailedPrecondition in a forked child, which has neither the client's threads nor TVM's."""
        if self._forgotten and (THREADS.lost or self._offload.mode != "never"):
            raise made_before_fork("model")

    def _arranged(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Sequence[Array]:
        if not kwargs and len(args) == len(self.inputs) and all(map(_is_exactly, args, self.inputs)):
            return args
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

    def _execute(self, arrays: Sequence[Array]) -> Results:
        machines = self._machines
        if machines is None:
            raise FailedPrecondition("the model is closed")
        self._failure.error = None
        try:
            results = machines.run(arrays)
        except BaseException as error:
            cause: BaseException | None = self._failure.error
            self._failure.error = None
            if cause is not None:
                raise cause from None
            if isinstance(error, OffloadError) or not isinstance(error, Exception):
                raise
            raise Internal(f"{LIBRARY} failed: {one_line(error)}") from error
        finally:
            self._failure.take_back()
        return results[0] if len(results) == 1 else tuple(results)

    def _begin(self, index: int, frame: Any) -> Run:
        """Start a frame of a stream; if it does not fit the model, its future says so."""
        started = Run()
        try:
            self._check_process()
            arrays = self._arranged(frame if isinstance(frame, tuple) else (frame,), {})
        except InvalidArgument as error:
            started.set_exception(InvalidArgument(f"frame {index}: {error.message}"))
        except FailedPrecondition as error:
            started.set_exception(error)
        else:
            started.begin(lambda: self._execute(arrays), TURNS)
        return started

    def _less(self, _: object) -> None:
        with self._lock:
            self._submitted -= 1


def _is_exactly(value: Any, spec: TensorSpec) -> bool:
    """Whether it needs no closer look, which an array of the right datatype and of a fixed shape does not."""
    return type(value) is np.ndarray and value.shape == spec.shape and value.dtype is spec.dtype


def _array(name: str, value: Any) -> Array:
    try:
        array = array_of(value)
        datatype_of(array.dtype)
    except ValueError as error:  # text and objects are InvalidArgument, which is one
        raise InvalidArgument(f"the model: input {name!r} is not a tensor: {one_line(error)}") from None
    return array
