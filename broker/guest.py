"""A broker in the event loop of another program, which is one of its clients.

Between the two, messages are handed over as they are: no socket, no bytes, and nobody is woken. All others connect to
the broker's ports, as to any broker's.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeAlias

from broker import metrics
from broker.config import Config
from broker.events import Action, Event, FromClient, Stop
from broker.loop import Broker
from broker.ports.streams import StreamPorts
from broker.security import check_exposure
from zmq_offload.common.notes import Notes
from zmq_offload.errors import InvalidArgument
from zmq_offload.net import transport
from zmq_offload.net.sharedmemory.sharing import Sharing
from zmq_offload.net.timers import ROUNDING
from zmq_offload.protocol import messages as wire
from zmq_offload.telemetry.exposition import Family

_HOST = b"\0host"
"""The client in this process, as the core knows it. The ids of connections are longer."""

_Replies: TypeAlias = "list[tuple[wire.ToClient, Sequence[Any]]]"
"""Messages to that client, with their payloads."""


class _Ports(StreamPorts):
    """Ports with the client in this process beside those at the other ends of sockets."""

    def __init__(
        self, config: Config, wake: transport.Wake, notes: Notes, clock: Callable[[], float], sharing: Sharing | None
    ) -> None:
        super().__init__(config, wake, notes, clock, sharing)
        self.deliver: Callable[[_Replies], None] | None = None
        self.replies: _Replies = []

    def send(self, actions: Sequence[Action]) -> None:
        others = []
        for action in actions:
            if action.peer != _HOST:
                others.append(action)
            elif self.deliver is not None:
                self.replies.append((action.message, action.payload))  # type: ignore[arg-type]  # it is a client
        if others:
            super().send(others)


class Guest:
    """A broker of the running event loop. The constructor binds, so that `endpoint` and `backend` have the real ports.

    Implements `zmq_offload.client.aiocalls.LocalBroker`. `sharing` is that of the process. `failed` is called if the
    broker breaks; `error` says why then. Raises InvalidArgument for a broker with keys: libzmq encrypts, in threads of
    its own, so that nothing would be gained.
    """

    error: Exception | None = None

    def __init__(
        self,
        config: Config,
        sharing: Sharing | None,
        failed: Callable[[], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if config.server_key is not None:
            raise InvalidArgument(
                "a broker in the process of its gateway has no keys, and --server-key is given; run it as a process of "
                "its own: zmq-offload broker"
            )
        check_exposure(
            (config.frontend, config.backend),
            secured=False,
            insecure=config.insecure,
            remedy="run a broker with keys as a process of its own (zmq-offload broker)",
        )
        self._clock, self._failed = clock, failed

        def open_ports(given: Config, wake: transport.Wake, notes: Notes, clock: Callable[[], float]) -> _Ports:
            self._ports = _Ports(given, wake, notes, clock, sharing)
            return self._ports

        self._broker = Broker(config, clock, open_ports)
        self.endpoint, self.backend = self._broker.frontend, self._broker.backend
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._ports.fileno(), self._look)
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = math.inf
        self._again = self._telling = False  # whether the loop is to call `_look` and `_hand_over` soon
        self._ended = asyncio.Event()
        self._runs, self._closed = True, False
        self._turn(())

    # --- the client in this process ---------------------------------------------------------------------------

    def attach(self, deliver: Callable[[_Replies], None] | None) -> None:
        """Hand messages for the client in this process to `deliver`; with None, drop them."""
        self._ports.deliver = deliver
        self._ports.replies = []

    def take(self, messages: Sequence[tuple[wire.FromClient, Sequence[Any]]]) -> None:
        """Take messages of the client in this process. What they are answered with is delivered later."""
        self._turn([FromClient(_HOST, message, payload) for message, payload in messages])
        if self._ports.replies and not self._telling:
            self._telling = True
            self._loop.call_soon(self._hand_over)

    def _hand_over(self) -> None:
        self._telling = False
        ports = self._ports
        replies, ports.replies = ports.replies, []
        if replies and ports.deliver is not None:
            ports.deliver(replies)

    def families(self) -> Iterator[Family]:
        """The broker's metrics. Any thread may call this."""
        return metrics.families(self._broker.core.ledger)

    # --- turns ------------------------------------------------------------------------------------------------

    def _look(self) -> None:
        """Something has come to the ports, or something is due."""
        self._again = False
        if not self._runs:
            return
        try:
            events = self._ports.wait(0)
        except Exception as error:
            self._fail(error)
            return
        self._turn(events)
        # Last: the client may hand over the next requests at once.
        self._hand_over()

    def _turn(self, events: Sequence[Event]) -> None:
        """Do what these events ask for and what is due, and see to it that the next turn comes in time."""
        if not self._runs:
            return
        try:
            self._broker.handle(events)
            due = self._broker.pass_time()
        except Exception as error:
            self._fail(error)
            return
        if self._broker.core.finished:
            self._ended.set()
        if self._ports.has_more and not self._again:
            self._again = True
            self._loop.call_soon(self._look)
        if due < self._timer_at:  # one that is early stays, to save a new one for each request
            if self._timer is not None:
                self._timer.cancel()
            self._timer_at = due
            self._timer = self._loop.call_later(max(0.0, due - self._clock()) + ROUNDING, self._due)

    def _due(self) -> None:
        self._timer, self._timer_at = None, math.inf
        self._look()

    # --- the end ----------------------------------------------------------------------------------------------

    def _fail(self, error: Exception) -> None:
        """A broker that breaks ends its process, as it would its own: nobody must wait for it."""
        self._rest()
        self.error = error
        self._failed()

    async def end(self, grace: float) -> None:
        """Take no more requests, finish the accepted ones within `grace` seconds, and close the ports."""
        self._turn((Stop(grace),))
        await self._ended.wait()
        self.close()

    def close(self) -> None:
        """Close the ports at once. Queued messages still go out, if their peers read them within a second."""
        if not self._closed:
            self._closed = True
            self._rest()
            self._broker.close()

    def _rest(self) -> None:
        self._runs = False
        self._ended.set()
        if self._timer is not None:
            self._timer.cancel()
        self._loop.remove_reader(self._ports.fileno())
