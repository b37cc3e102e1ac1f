"""The asyncio client, as programs see it. `zmq_offload.client.aiodriver` moves its messages."""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

from zmq_offload.client.aioreturning import AsyncDrivers
from zmq_offload.client.arguments import check_arena_bytes, check_timeout
from zmq_offload.client.connection import connect_to
from zmq_offload.client.link import DEFAULT_TIMEOUT, answer_of, outputs_of
from zmq_offload.client.output_arrays import Signatures, check_output_arrays, fill
from zmq_offload.client.results import Outputs
from zmq_offload.client.returning import in_given_order
from zmq_offload.client.session import RetryPolicy
from zmq_offload.client.tracing import Trace, begin
from zmq_offload.client.watchedlink import WatchedLink
from zmq_offload.common.lifetime import hold, refuse_pickling, shown, warn_unclosed
from zmq_offload.errors import InvalidArgument, OffloadError
from zmq_offload.protocol import limits
from zmq_offload.protocol.payload import Array
from zmq_offload.protocol.tensors import Latest

if TYPE_CHECKING:
    from numpy.typing import ArrayLike


class AsyncClient:
    """Call models through a broker from one asyncio event loop.

    Any number of calls may be awaited at once (`asyncio.gather`); canceling one cancels its request. Close the client
    in its loop, or use it in an `async with` statement. A client that is dropped unclosed gives a ResourceWarning and
    disconnects. After a fork the child needs a client of its own: the parent's raises FailedPrecondition there.

    Parameters
    ----------
    broker : str or sequence of str
        Endpoint of a broker's frontend, such as ``"tcp://edge:5555"`` or ``"ipc:///run/broker"``, or several. Each
        client takes one of several brokers by chance (`RetryPolicy.spread`). While that does not answer, the client
        tries the next one and sends outstanding calls there. It goes back later (`RetryPolicy.come_back`).
    timeout : float, default 10.0
        Seconds for calls that give no timeout of their own. No call waits forever.
    max_frame_bytes : int, default 256 MiB
        Largest input or output in bytes. The broker and the workers have limits of their own.
    policy : RetryPolicy, optional
        Which broker is tried first, and times that decide when a silent one is left for the next one
        (`zmq_offload.client.session.RetryPolicy`).
    key : path, optional
        This client's key pair, a file ``NAME.key_secret``. Default: the variable ``ZMQ_OFFLOAD_CLIENT_KEY``.
    broker_key : path, optional
        The broker's public key, a file ``NAME.key``. Default: the variable ``ZMQ_OFFLOAD_BROKER_KEY``. With both keys
        the connection is encrypted and authenticated (docs/security.md).
    arena_bytes : int, optional
        Memory for inputs of 64 KiB and more that brokers and workers on this host read in place, without keys
        (docs/security.md); all clients of a process with the same value share it, and 0 turns it off. Default: the
        variable ``ZMQ_OFFLOAD_ARENA_BYTES``, or 512 MiB.

    Raises
    ------
    InvalidArgument
        An argument cannot be used, or only one of the two keys is given.
    FailedPrecondition
        A key file cannot be read.
    Unavailable
        The system has no files or sockets left.

    Examples
    --------
    >>> async def main():
    ...     async with AsyncClient("tcp://edge:5555") as client:
    ...         calls = [client.infer("ocr", {"image": image}) for image in images]
    ...         return await asyncio.gather(*calls)
    >>> asyncio.run(main())
    """

    def __init__(
        self,
        broker: str | Sequence[str],
        *,
        timeout: float = DEFAULT_TIMEOUT,
        max_frame_bytes: int = limits.MESSAGE_BYTES,
        policy: RetryPolicy | None = None,
        key: str | os.PathLike[str] | None = None,
        broker_key: str | os.PathLike[str] | None = None,
        arena_bytes: int | None = None,
    ) -> None:
        self._timeout = check_timeout(timeout)
        arena_bytes = check_arena_bytes(arena_bytes)
        connect = functools.partial(
            connect_to,
            WatchedLink,
            max_frame_bytes=max_frame_bytes,
            key=key,
            broker_key=broker_key,
            arena_bytes=arena_bytes,
        )
        connection = connect(broker, policy)
        self._drivers = AsyncDrivers(connection, functools.partial(connect, policy=in_given_order(connection.policy)))
        self._signatures = Signatures()
        self._release = hold(self, self._drivers.readers)
        self._warns = True

    async def infer(
        self,
        model: str,
        inputs: Mapping[str, ArrayLike],
        *,
        version: int | Latest | None = None,
        label: str | None = None,
        timeout: float | None = None,
        priority: int = 0,
        outputs: Mapping[str, Array] | None = None,
        trace: Trace = None,
    ) -> Outputs:
        """Run a model on named arrays and await its named outputs.

        Parameters
        ----------
        model : str
            Name of the model.
        inputs : mapping of str to array
            The model's inputs by name, each of the shape and datatype of the model's signature. Arrays must not change
            before the call returns. Anything that `numpy.asarray` accepts will do; an array is sent from its own
            memory, without a copy.
        version : int or Latest, optional
            Version of the model. Default: the latest that is served (docs/operations.md says which that is).
            ``Latest(signature)`` is the latest version with that signature.
        label : str, optional
            Name that stands for a version, as the model's configuration says (docs/operations.md). It goes with no
            version but ``Latest(signature)``, which the labeled version must then have.
        timeout : float, optional
            Seconds until the call fails. Default: the client's.
        priority : int, default 0
            From -100 to 100. Requests of a higher priority leave the broker's queue first.
        outputs : mapping of str to numpy.ndarray, optional
            Arrays that receive the results, by name, of the model's shapes and datatypes. They may be inputs, too. An
            array that is known not to fit is refused before the model runs; to make sure, the client may first ask the
            broker for the model's signature.
        trace : str, True or opentelemetry.trace.SpanContext, optional
            The trace that the call belongs to: a W3C ``traceparent``, True for OpenTelemetry's current span, or a
            SpanContext (docs/traces.md).

        Returns
        -------
        Outputs
            A dict of the output arrays by name, with `model`, `version` and `timings`. Where `outputs` were given,
            it holds those arrays.

        Raises
        ------
        InvalidArgument
            An argument, or an input that does not fit the model's signature.
        NotFound
            No worker serves the model or version, or the model has no such label.
        DeadlineExceeded
            No reply within the timeout.
        Unavailable
            No broker answered, or no worker serves the model now.
        FailedPrecondition
            The client was first used in another event loop, or before a fork; or the version that the label stands for
            has another signature than ``Latest(signature)``.
        OffloadError
            All other errors of `zmq_offload.errors`; docs/errors.md says when each occurs and what to do.

        Examples
        --------
        >>> outputs = await client.infer("ocr", {"image": image}, timeout=0.5)
        """
        timeout = self._timeout if timeout is None else timeout
        arguments = self._drivers.driver.connection.request(model, inputs, version, timeout, priority, label)
        if outputs is not None:
            check_output_arrays(outputs)
            await self._check_fit(model, version, outputs, timeout)
        loop = self._drivers.driver.attach()
        driver = self._drivers.current()
        started = loop.time()
        if trace is None:
            done = await driver.call(loop, driver.session.request, *arguments)
            result = outputs_of(done, loop.time() - started, model)
            if isinstance(result, OffloadError):
                raise result
        else:
            with begin(trace, model) as span:
                done = await driver.call(loop, driver.session.request, *arguments, span.trace)
                result = outputs_of(done, loop.time() - started, model)
                if isinstance(result, OffloadError):
                    raise result
                span.succeeded(result)
        if outputs is not None:
            self._signatures.answered(result, version)
            fill(result, outputs)
        return result

    async def models(self, *, timeout: float | None = None) -> list[dict[str, Any]]:
        """List the models that are served now.

        Parameters
        ----------
        timeout : float, optional
            Seconds until the call fails. Default: the client's.

        Returns
        -------
        list of dict
            For each model and version: `name`, `version`, `inputs` and `outputs` (each a list of dicts with `name`,
            `datatype` and `shape`; an extent of -1 may be any), the number of `workers` that serve it, whether it is
            the `latest`, to which requests without a version go, and the `labels` that stand for it.

        Raises
        ------
        Unavailable
            No broker answered within the timeout.

        Examples
        --------
        >>> [(model["name"], model["version"]) for model in await client.models()]
        """
        return await self._query("models", timeout)  # type: ignore[no-any-return]

    async def status(self, *, timeout: float | None = None) -> dict[str, Any]:
        """Describe the broker: its workers, models, queues, and the numbers of requests served and failed.

        Parameters
        ----------
        timeout : float, optional
            Seconds until the call fails. Default: the client's.

        Returns
        -------
        dict
            docs/operations.md explains the keys.

        Raises
        ------
        Unavailable
            No broker answered within the timeout.

        Examples
        --------
        >>> [worker["name"] for worker in (await client.status())["workers"]]
        """
        return await self._query("status", timeout)  # type: ignore[no-any-return]

    async def close(self) -> None:
        """Cancel outstanding calls (they raise Cancelled) and disconnect.

        A second `close` does nothing. In a forked child, to close the parent's client does nothing.
        """
        self._warns = False
        self._drivers.close()

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def __del__(self) -> None:
        if getattr(self, "_warns", False) and not self._drivers.readers.forgotten:
            warn_unclosed(self, self._release)

    def __repr__(self) -> str:
        driver = self._drivers.driver
        reader, endpoints = driver.reader, driver.connection.endpoints
        return shown(self, endpoints, driver.outstanding, closed=reader.closed, forgotten=reader.forgotten)

    def __reduce__(self) -> NoReturn:
        raise refuse_pickling("an AsyncClient")

    # --- private --------------------------------------------------------------------------------------------

    async def _check_fit(
        self, model: str, version: int | Latest | None, outputs: Mapping[str, Array], timeout: float
    ) -> None:
        """Raise InvalidArgument for arrays that the outputs are known not to fit."""
        if self._signatures.mismatch(model, version, outputs) is not None:
            self._signatures.announced(await self.models(timeout=timeout))
            if (why := self._signatures.mismatch(model, version, outputs)) is not None:
                raise InvalidArgument(why)

    async def _query(self, kind: str, timeout: float | None) -> Any:
        timeout = self._timeout if timeout is None else check_timeout(timeout)
        driver = self._drivers.driver
        body = answer_of(await driver.call(driver.attach(), driver.session.query, kind, timeout))
        if isinstance(body, OffloadError):
            raise body
        return body
