"""The asyncio client: the same session and socket as `zmq_offload.client`, driven by the event loop.

The loop watches the socket's own file descriptor; `zmq.asyncio` adds a future and a task switch to every frame.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from zmq_offload.connection import (
    DEFAULT_TIMEOUT,
    Connection,
    answer_of,
    check_timeout,
    copy_into,
    outputs_of,
)
from zmq_offload.errors import Cancelled, OffloadError
from zmq_offload.protocol import limits
from zmq_offload.protocol.payload import Array
from zmq_offload.results import Outputs
from zmq_offload.session import Action, Complete, Fail, Policy, Reconnect, Send


class AsyncClient:
    """Calls models through a broker, from one event loop. The arguments are those of `zmq_offload.Client`.

    Any number of calls may be awaited at once (`asyncio.gather`); cancelling one takes the request back.
    """

    def __init__(
        self,
        broker: str | Sequence[str],
        *,
        timeout: float = DEFAULT_TIMEOUT,
        max_frame_bytes: int = limits.MESSAGE_BYTES,
        policy: Policy | None = None,
        key: str | None = None,
        broker_key: str | None = None,
    ) -> None:
        self._timeout = check_timeout(timeout)
        self._connection = Connection(broker, policy or Policy(), max_frame_bytes, key, broker_key)
        self._session = self._connection.session
        self._futures: dict[int, asyncio.Future[Complete]] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = 0.0
        self._closed = False

    async def infer(
        self,
        model: str,
        inputs: Mapping[str, Any],
        *,
        version: int | None = None,
        timeout: float | None = None,
        priority: int = 0,
        outputs: Mapping[str, Array] | None = None,
    ) -> Outputs:
        """As `Client.infer`."""
        timeout = self._timeout if timeout is None else timeout
        arguments = self._connection.request(model, inputs, version, timeout, priority)
        loop = self._attach()
        started = loop.time()
        done = await self._call(loop, self._session.request, *arguments)
        result = outputs_of(done, loop.time() - started, model)
        if isinstance(result, OffloadError):
            raise result
        if outputs is not None:
            copy_into(result, outputs)
        return result

    async def models(self, *, timeout: float | None = None) -> list[dict[str, Any]]:
        """As `Client.models`."""
        return await self._query("models", timeout)  # type: ignore[no-any-return]

    async def status(self, *, timeout: float | None = None) -> dict[str, Any]:
        """As `Client.status`."""
        return await self._query("status", timeout)  # type: ignore[no-any-return]

    async def close(self) -> None:
        """Take back what is outstanding (those calls raise Cancelled) and disconnect. Closing again does nothing."""
        if self._closed:
            return
        self._closed = True
        self._perform(self._session.close())
        if self._timer is not None:
            self._timer.cancel()
        if self._loop is not None:
            self._loop.remove_reader(self._connection.socket.fileno())
        self._connection.close()

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    # --- details --------------------------------------------------------------------------------------------

    async def _query(self, what: str, timeout: float | None) -> Any:
        timeout = self._timeout if timeout is None else check_timeout(timeout)
        body = answer_of(await self._call(self._attach(), self._session.query, what, timeout))
        if isinstance(body, OffloadError):
            raise body
        return body

    def _attach(self) -> asyncio.AbstractEventLoop:
        if self._closed:
            raise Cancelled("the client is closed")
        loop = asyncio.get_running_loop()
        if self._loop is None:
            self._loop = loop
            loop.add_reader(self._connection.socket.fileno(), self._ready)
        elif self._loop is not loop:
            raise RuntimeError("an AsyncClient belongs to the event loop that it was first used in")
        return loop

    async def _call(
        self, loop: asyncio.AbstractEventLoop, start: Callable[..., tuple[int, list[Action]]], *args: Any
    ) -> Complete:
        number, actions = start(*args, now=loop.time())
        future: asyncio.Future[Complete] = loop.create_future()
        self._futures[number] = future
        self._perform(actions)
        try:
            return await future
        except asyncio.CancelledError:
            if not self._closed:
                self._perform(self._session.cancel(number))
            raise

    def _ready(self) -> None:
        if self._closed or self._loop is None:
            return
        # Until none waits: the descriptor tells only of what comes after that.
        while self._connection.waiting():
            socket = self._connection.socket
            for message in self._connection.receive():
                self._perform(self._session.received(*message, self._loop.time()))
                if self._connection.socket is not socket:
                    break  # what a broker that was left said besides is void
        self._keep_time()

    def _keep_time(self) -> None:
        """See to it that the session is told when its next deadline comes. A timer that is early is left to fire, so
        that a call does not cost a new one."""
        assert self._loop is not None
        now = self._loop.time()
        deadline = self._session.next_deadline()
        if deadline is not None and deadline <= now:
            if (why := self._connection.refusal()) is not None:
                self._perform(self._session.refused(why, now))
            self._perform(self._session.tick(now))
            deadline = self._session.next_deadline()
        if self._timer is not None and (self._timer_at <= now or (deadline is not None and deadline < self._timer_at)):
            self._timer.cancel()
            self._timer = None
        if self._timer is None and deadline is not None:
            self._timer_at = deadline
            self._timer = self._loop.call_at(deadline, self._ready)

    def _perform(self, actions: Sequence[Action]) -> None:
        sent = False
        for action in actions:
            if isinstance(action, Send):
                self._connection.send(action)
                sent = True
            elif isinstance(action, Reconnect):
                self._exchange(functools.partial(self._connection.reconnect, action.endpoint))
                sent = True
            else:
                self._end(action)
        if sent and self._loop is not None:
            # The descriptor is edge-triggered: sending may have taken note of what came in, and then it stays silent.
            self._loop.call_soon(self._ready)

    def _end(self, action: Complete | Fail) -> None:
        lent = self._connection.still_lent(action.id)
        if lent:
            self._exchange(functools.partial(self._connection.regain, lent))
            assert self._loop is not None
            self._perform(self._session.reconnected(self._loop.time()))
        future = self._futures.pop(action.id, None)
        if future is None or future.done():
            return
        if isinstance(action, Fail):
            future.set_exception(action.error)
        else:
            future.set_result(action)

    def _exchange(self, connect: Callable[[], None]) -> None:
        """Have the connection make a new socket, whose descriptor may well be the number of the old one."""
        assert self._loop is not None
        self._loop.remove_reader(self._connection.socket.fileno())
        connect()
        self._loop.add_reader(self._connection.socket.fileno(), self._ready)
