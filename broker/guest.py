"""A broker in the event loop of another program, which is one of its clients.

Between the two, messages are handed over as they are: no socket, no bytes, and nobody is woken. All others connect to
the broker's ports, as to any broker's.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Callable, Sequence
from typing import Any

from broker.config import Config
from broker.core import Core
from broker.events import Action, FromClient, Tick
from broker.ports.streams import StreamPorts
from broker.security import check_exposure
from zmq_offload.errors import InvalidArgument
from zmq_offload.net import transport
from zmq_offload.net.sharedmemory.sharing import Sharing
from zmq_offload.protocol import messages as wire

log = logging.getLogger("broker")

_HOST = b"\0host"
"""The client in this process, as the core knows it. The ids of connections are longer."""

_ROUNDING = 0.0005
"""uvloop rounds delays to milliseconds. A timer that is early would be set again and again until its time has come."""


class Guest:
    """A broker of the running event loop. The constructor binds, so that `endpoint` and `backend` have the real ports.

    Implements `zmq_offload.client.locallink.LocalBroker`. `sharing` is that of the process. Raises InvalidArgument for
    a broker with keys: libzmq encrypts, in threads of its own, so that nothing would be gained.
    """

    def __init__(
        self, config: Config, sharing: Sharing | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        if config.server_key is not None:
            raise InvalidArgument(
                "a broker in the process of its gateway has no keys, and --server-key is given; run it as a process of "
                "its own: zmq-offload broker"
            )
        check_exposure((config.frontend, config.backend), secured=False, insecure=config.insecure)
        self._clock = clock
        self._core = Core(config.policy, clock(), config.max_frame_bytes, config.queue_limits)
        self._notes = self._core.ledger.notes
        self._wake = transport.Wake()
        try:
            self._ports = StreamPorts(config, self._wake, self._notes, clock, sharing)
        except BaseException:
            self._wake.close()
            raise
        self.endpoint, self.backend = self._ports.frontend, self._ports.backend
        self._deliver: Callable[[list[tuple[wire.ToClient, Sequence[Any]]]], None] | None = None
        self._replies: list[tuple[wire.ToClient, Sequence[Any]]] = []
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._ports.fileno(), self._turn)
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = math.inf
        self._again = False  # whether the loop is to call `_turn` or `_hand_over` soon
        self._ended = asyncio.Event()
        self._closed = False
        self._keep_time()

    # --- the client in this process ---------------------------------------------------------------------------

    def attach(self, deliver: Callable[[list[tuple[wire.ToClient, Sequence[Any]]]], None] | None) -> None:
        """Hand messages for the client in this process to `deliver`; with None, drop them."""
        self._deliver = deliver
        self._replies = []

    def take(self, messages: Sequence[tuple[wire.FromClient, Sequence[Any]]]) -> None:
        """Take messages of the client in this process. What they are answered with is delivered later."""
        now, handle = self._clock(), self._core.handle
        actions: list[Action] = []
        for message, payload in messages:
            actions += handle(FromClient(_HOST, message, payload), now)
        self._perform(actions)
        if self._replies:
            self._loop.call_soon(self._hand_over)

    def _hand_over(self) -> None:
        replies, self._replies = self._replies, []
        if replies and self._deliver is not None:
            self._deliver(replies)

    # --- turns ------------------------------------------------------------------------------------------------

    def _turn(self) -> None:
        """Do what there is to do at the ports, and what is due."""
        core, clock = self._core, self._clock
        now = clock()
        due = core.next_deadline()
        actions = core.handle(Tick(), now) if due is not None and due <= now else []
        for event in self._ports.wait(0):
            actions = actions + core.handle(event, clock())
        self._perform(actions)
        # Last: the client may hand over the next requests at once.
        self._hand_over()

    def _perform(self, actions: Sequence[Action]) -> None:
        """Send messages, and see to it that the next turn comes in time."""
        others = []
        for action in actions:
            if action.peer != _HOST:
                others.append(action)
            elif self._deliver is not None:
                self._replies.append((action.message, action.payload))  # type: ignore[arg-type]  # it is a client
        if others:
            self._ports.send(others)
        if self._notes:
            for level, text in self._notes.take():
                log.log(level, "%s", text)
        if self._core.finished:
            self._ended.set()
        if self._ports.has_more and not self._again:
            self._again = True
            self._loop.call_soon(self._turn_again)
        self._keep_time()

    def _turn_again(self) -> None:
        self._again = False
        if not self._ended.is_set():
            self._turn()

    def _keep_time(self) -> None:
        """Set the timer for what is due next. One that is early stays, to save a new one for each request."""
        due = self._core.next_deadline()
        at = self._ports.due if due is None else min(due, self._ports.due)
        if at < self._timer_at:
            if self._timer is not None:
                self._timer.cancel()
            self._timer_at = at
            self._timer = self._loop.call_later(max(0.0, at - self._clock()) + _ROUNDING, self._due)

    def _due(self) -> None:
        self._timer, self._timer_at = None, math.inf
        if not self._ended.is_set():
            self._turn()

    # --- the end ----------------------------------------------------------------------------------------------

    async def end(self) -> None:
        """Take no more requests, finish the accepted ones in the time that there is for that, and close the ports."""
        self._wake.set()
        await self._ended.wait()
        self.close()

    def close(self) -> None:
        """Close the ports at once. Queued messages still go out, if their peers read them within a second."""
        if self._closed:
            return
        self._closed = True
        self._ended.set()
        if self._timer is not None:
            self._timer.cancel()
        self._loop.remove_reader(self._ports.fileno())
        self._ports.close()
        self._wake.close()
