"""How a synchronous client goes back to a broker that it had to leave.

A second connection to that broker is made, by a thread that is there only meanwhile. If the broker answers and serves
all that the present one serves, new calls go there, and those that are outstanding finish where they are.
`zmq_offload.client.spread` decides when.
"""

from __future__ import annotations

import contextlib
import dataclasses
import random
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from zmq_offload.client.calls import Call
from zmq_offload.client.driver import Driver
from zmq_offload.client.link import Polled, answer_of
from zmq_offload.client.session import RetryPolicy
from zmq_offload.client.spread import Return, is_back, served
from zmq_offload.errors import Cancelled, OffloadError

_LOOK = 0.1
"""Seconds between two looks whether the calls of a connection that is left have ended."""


class Drivers:
    """The driver of a client, in whose place another one comes when the client goes back. A `lifetime.Resource`.

    `make` makes a connection that prefers the first of the brokers.
    """

    def __init__(self, connection: Polled, make: Callable[[Sequence[str]], Polled]) -> None:
        self.driver = Driver(connection)
        self._make = make
        self._order, policy = connection.endpoints, connection.policy
        self._probe_seconds = policy.probe_seconds
        self._return = Return(self._order, policy.come_back, random.random) if len(self._order) > 1 else None
        self._lock = threading.Lock()
        self._others: list[Driver] = []  # one that is tried, and those with calls that finish
        self._tries: threading.Thread | None = None  # what tries to go back
        self._closed = False

    def current(self) -> Driver:
        """The driver of the next call. Begins to go back when it is time."""
        if self._return is not None:
            thread = None
            with self._lock:  # Ctrl-C cannot come between, as it can after `acquire`
                if not (self._closed or (self._tries is not None and self._tries.is_alive())):
                    candidate = self._return.look(self.driver.connection.endpoint, time.monotonic())
                    if candidate is not None:
                        thread = self._tries = self._thread(candidate)
            if thread is not None:
                with contextlib.suppress(RuntimeError):  # no threads are left; the client looks again later
                    thread.start()
        return self.driver

    def begin(self, call: Call[Any], *arguments: object, query: bool = False) -> Driver:
        """Begin a request or a query. Returns its driver."""
        while True:
            driver = self.driver
            try:
                driver.begin(call, driver.session.query if query else driver.session.request, *arguments)
            except Cancelled:
                if driver is self.driver:
                    raise
            else:
                return driver

    def close(self) -> None:
        """Cancel what is outstanding and disconnect."""
        for driver in self._end():
            driver.close()

    @property
    def forgotten(self) -> bool:
        return self.driver.forgotten

    def release(self) -> None:
        self._end()
        self.driver.release()  # the thread closes the others

    def leave(self) -> None:
        for driver in (self.driver, *self._others):
            driver.leave()

    def cut_off(self) -> None:
        """End all calls without waiting for long."""
        for driver in (self.driver, *self._others):
            driver.cut_off()

    def refuse_callback(self, method: str) -> None:
        """See `Driver.refuse_callback`. A call that finishes where it is may have a callback, too."""
        for driver in (self.driver, *self._others):
            driver.refuse_callback(method)

    def forget(self) -> None:
        self._lock, self._closed = threading.Lock(), True
        for driver in (self.driver, *self._others):
            driver.forget()

    def _end(self) -> list[Driver]:
        with self._lock:
            self._closed = True
            return [self.driver, *self._others]

    # --- the thread -----------------------------------------------------------------------------------------

    def _thread(self, candidate: str) -> threading.Thread:
        return threading.Thread(target=self._go_back, args=(candidate,), name="zmq-offload-return", daemon=True)

    def _go_back(self, candidate: str) -> None:
        try:
            driver = self._connected(candidate)
            if driver is None:
                return
            left = driver
            there = self._models(driver)
            back = bool(there) and is_back(there, self._models(self.driver))
            with self._lock:
                if back and driver.connection.endpoint == candidate and not self._closed:
                    assert self._return is not None
                    self._return.came(candidate, time.monotonic())
                    left, self.driver = self.driver, driver
                    self._others[self._others.index(driver)] = left
        finally:
            self._tries = None
        while not left.retire():
            time.sleep(_LOOK)
        with self._lock:
            self._others.remove(left)

    def _connected(self, candidate: str) -> Driver | None:
        """A driver for that broker. None if there is no socket or no file for it."""
        try:
            connection = self._make(preferring(candidate, self._order))
        except OffloadError:
            return None
        try:
            driver = Driver(connection)
        except OffloadError:
            connection.close()
            return None
        with self._lock:
            self._others.append(driver)
        return driver

    def _models(self, driver: Driver) -> set[tuple[object, object]]:
        """What the broker serves. Empty if it does not answer."""
        call: Call[Any] = Call(answer_of)
        try:
            driver.begin(call, driver.session.query, "models", self._probe_seconds)
            driver.run(call)
            return served(call.result())
        except OffloadError:
            return set()


def in_given_order(policy: RetryPolicy) -> RetryPolicy:
    """The policy of a connection that tries the brokers as they are given."""
    return dataclasses.replace(policy, spread=False)


def preferring(first: str, endpoints: Sequence[str]) -> list[str]:
    """The endpoints, beginning with this one."""
    return [first, *(endpoint for endpoint in endpoints if endpoint != first)]
