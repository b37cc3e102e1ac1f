"""How a client of an event loop goes back to a broker that it had to leave: as `zmq_offload.client.returning` has it,
without a thread."""

from __future__ import annotations

import asyncio
import functools
import random
import time
from collections.abc import Callable, Sequence
from typing import TypeAlias

from zmq_offload.client.aiodriver import AsyncDriver, Reader
from zmq_offload.client.link import Watched, answer_of
from zmq_offload.client.returning import preferring
from zmq_offload.client.session import Complete, Fail
from zmq_offload.client.spread import Return, is_back, served
from zmq_offload.errors import OffloadError

Models: TypeAlias = "set[tuple[object, object]]"

_LOOK = 0.1
"""Seconds between two looks whether the calls of a connection that is left have ended."""


class Readers:
    """The connections of a client. A `lifetime.Resource`, so it does not refer to the client."""

    def __init__(self, reader: Reader) -> None:
        self.all = [reader]

    @property
    def forgotten(self) -> bool:
        return self.all[0].forgotten

    def release(self) -> None:
        for reader in self.all:
            reader.release()

    def leave(self) -> None:
        for reader in self.all:
            reader.leave()

    def forget(self) -> None:
        for reader in self.all:
            reader.forget()


class AsyncDrivers:
    """The driver of a client, in whose place another one comes when the client goes back.

    `make` makes a connection that prefers the first of the brokers. Without it, the client never goes back.
    """

    def __init__(self, connection: Watched, make: Callable[[Sequence[str]], Watched] | None = None) -> None:
        self.driver = AsyncDriver(connection)
        self.readers = Readers(self.driver.reader)
        self._make = make
        self._order, policy = connection.endpoints, connection.policy
        self._probe_seconds = policy.probe_seconds
        returns = make is not None and len(self._order) > 1
        self._return = Return(self._order, policy.come_back, random.random) if returns else None
        self._others: list[AsyncDriver] = []  # one that is tried, and those with calls that finish
        self._tried: AsyncDriver | None = None
        self._closed = False

    def current(self) -> AsyncDriver:
        """The driver of the next call. Begins to go back when it is time."""
        if self._return is not None and not (self._tried or self._closed or self.readers.forgotten):
            candidate = self._return.look(self.driver.connection.endpoint, time.monotonic())
            if candidate is not None:
                self._try(candidate)
        return self.driver

    def cancel(self, number: int) -> None:
        """Cancel a call, unless it has ended. No two drivers have a call of the same number, but for the question to a
        broker that is tried."""
        for driver in (self.driver, *self._others):
            if driver is not self._tried:
                driver.cancel(number)

    def close(self) -> None:
        """Cancel what is outstanding and disconnect."""
        self._closed = True
        for driver in (self.driver, *self._others):
            driver.close()

    def _try(self, candidate: str) -> None:
        assert self._make is not None
        try:
            connection = self._make(preferring(candidate, self._order))
        except OffloadError:
            return  # no socket or no file is left; it looks again later
        driver = AsyncDriver(connection)
        self._tried = driver
        self._others.append(driver)
        self.readers.all.append(driver.reader)
        ended = functools.partial(self._answered, driver, candidate)
        driver.start(driver.attach(), ended, connection.session.query, "models", self._probe_seconds)

    def _answered(self, driver: AsyncDriver, candidate: str, action: Complete | Fail) -> None:
        if driver.reader.forgotten:
            return  # this is a forked child
        # The driver goes on when this returns.
        asyncio.get_running_loop().call_soon(self._compare, driver, candidate, _models(action))

    def _compare(self, driver: AsyncDriver, candidate: str, there: Models) -> None:
        """Ask the present broker, too, if the other one serves anything."""
        present = self.driver
        if not there or present.reader.closed or present.reader.forgotten:
            self._decide(driver, candidate, there, set())
            return
        ended = functools.partial(self._told, driver, candidate, there)
        present.start(present.attach(), ended, present.session.query, "models", self._probe_seconds)

    def _told(self, driver: AsyncDriver, candidate: str, there: Models, action: Complete | Fail) -> None:
        if not driver.reader.forgotten:
            asyncio.get_running_loop().call_soon(self._decide, driver, candidate, there, _models(action))

    def _decide(self, driver: AsyncDriver, candidate: str, there: Models, here: Models) -> None:
        self._tried = None
        left = driver
        if is_back(there, here) and driver.connection.endpoint == candidate and not self._closed:
            assert self._return is not None
            self._return.came(candidate, time.monotonic())
            left, self.driver = self.driver, driver
            self._others[self._others.index(driver)] = left
            driver.session.number_after(left.session)
        self._finish(left)

    def _finish(self, left: AsyncDriver) -> None:
        """Close a connection when its calls have ended."""
        if left.outstanding and not self._closed:
            asyncio.get_running_loop().call_later(_LOOK, self._finish, left)
            return
        left.close()
        self._others.remove(left)
        self.readers.all.remove(left.reader)


def _models(action: Complete | Fail) -> Models:
    """What a broker serves. Empty if it did not answer."""
    return served(answer_of(action)) if isinstance(action, Complete) else set()
