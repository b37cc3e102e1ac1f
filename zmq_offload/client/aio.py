"""The asyncio client: what a program calls. `zmq_offload.client.aiodriver` does the rest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from zmq_offload.client.aiodriver import AsyncDriver
from zmq_offload.client.arguments import check_timeout
from zmq_offload.client.connection import DEFAULT_TIMEOUT, Connection, answer_of, outputs_of
from zmq_offload.client.places import Signatures, check_places, fill
from zmq_offload.client.results import Outputs
from zmq_offload.client.session import RetryPolicy
from zmq_offload.common.lifetime import hold, refuse_pickling, shown, warn_unclosed
from zmq_offload.errors import InvalidArgument, OffloadError
from zmq_offload.protocol import limits
from zmq_offload.protocol.payload import Array
from zmq_offload.protocol.tensors import Latest


class AsyncClient:
    """Calls models through a broker, from one event loop. The arguments are those of `zmq_offload.Client`.

    Any number of calls may be awaited at once (`asyncio.gather`); cancelling one takes the request back. Close it in
    its loop, or use it in an `async with` statement. One that is dropped gives a ResourceWarning and disconnects. In a
    forked child the parent's raises FailedPrecondition; make another there.
    """

    def __init__(
        self,
        broker: str | Sequence[str],
        *,
        timeout: float = DEFAULT_TIMEOUT,
        max_frame_bytes: int = limits.MESSAGE_BYTES,
        policy: RetryPolicy | None = None,
        key: str | None = None,
        broker_key: str | None = None,
    ) -> None:
        self._timeout = check_timeout(timeout)
        self._connection = Connection(broker, policy, max_frame_bytes, key, broker_key)
        self._session = self._connection.session
        self._driver = AsyncDriver(self._connection)
        self._signatures = Signatures()
        self._release = hold(self, self._driver.reader)
        self._warns = True

    async def infer(
        self,
        model: str,
        inputs: Mapping[str, Any],
        *,
        version: int | Latest | None = None,
        timeout: float | None = None,
        priority: int = 0,
        outputs: Mapping[str, Array] | None = None,
    ) -> Outputs:
        """As `Client.infer`."""
        timeout = self._timeout if timeout is None else timeout
        arguments = self._connection.request(model, inputs, version, timeout, priority)
        if outputs is not None:
            check_places(outputs)
            await self._check_fit(model, version, outputs, timeout)
        loop = self._driver.attach()
        started = loop.time()
        done = await self._driver.call(loop, self._session.request, *arguments)
        result = outputs_of(done, loop.time() - started, model)
        if isinstance(result, OffloadError):
            raise result
        if outputs is not None:
            self._signatures.answered(result, version)
            fill(result, outputs)
        return result

    async def models(self, *, timeout: float | None = None) -> list[dict[str, Any]]:
        """As `Client.models`."""
        return await self._query("models", timeout)  # type: ignore[no-any-return]

    async def status(self, *, timeout: float | None = None) -> dict[str, Any]:
        """As `Client.status`."""
        return await self._query("status", timeout)  # type: ignore[no-any-return]

    async def close(self) -> None:
        """Take back what is outstanding (those calls raise Cancelled) and disconnect. Closing again does nothing, nor
        does closing the parent's in a forked child."""
        self._warns = False
        self._driver.close()

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def __del__(self) -> None:
        if getattr(self, "_warns", False) and not self._driver.reader.forgotten:
            warn_unclosed(self, self._release)

    def __repr__(self) -> str:
        reader, endpoints = self._driver.reader, self._connection.endpoints
        return shown(self, endpoints, self._driver.outstanding, closed=reader.closed, forgotten=reader.forgotten)

    def __reduce__(self) -> Any:
        raise refuse_pickling("an AsyncClient")

    # --- details --------------------------------------------------------------------------------------------

    async def _check_fit(
        self, model: str, version: int | Latest | None, outputs: Mapping[str, Array], timeout: float
    ) -> None:
        """Raises InvalidArgument for arrays that the outputs are known not to fit."""
        if self._signatures.complaint(model, version, outputs) is not None:
            self._signatures.announced(await self.models(timeout=timeout))
            if (why := self._signatures.complaint(model, version, outputs)) is not None:
                raise InvalidArgument(why)

    async def _query(self, what: str, timeout: float | None) -> Any:
        timeout = self._timeout if timeout is None else check_timeout(timeout)
        loop = self._driver.attach()
        body = answer_of(await self._driver.call(loop, self._session.query, what, timeout))
        if isinstance(body, OffloadError):
            raise body
        return body
