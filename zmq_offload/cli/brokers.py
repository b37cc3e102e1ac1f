"""The status of one broker or of several, for commands that show it."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from zmq_offload.client.sync import Client


class Brokers:
    """A client of each broker; use it in a `with` statement. `status` asks all of them."""

    def __init__(self, endpoints: Sequence[str], timeout: float) -> None:
        from zmq_offload.client.sync import Client
        from zmq_offload.dashboard.together import Together

        self.endpoint = ", ".join(endpoints)
        self._stack = ExitStack()
        # Clients are closed before the threads are waited for, which ends their calls.
        self._pool = self._stack.enter_context(ThreadPoolExecutor(len(endpoints)))
        self._clients = [self._stack.enter_context(Client(endpoint, timeout=timeout)) for endpoint in endpoints]
        self._together = Together(endpoints)

    def __enter__(self) -> Brokers:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def status(self) -> dict[str, Any]:
        """The status of the broker, or of all together. Raises what the first raised if none answers."""
        from zmq_offload.errors import OffloadError

        if len(self._clients) == 1:
            return self._clients[0].status()

        def ask(client: Client) -> Mapping[str, Any] | OffloadError:
            try:
                return client.status()
            except OffloadError as error:
                return error

        answers = list(self._pool.map(ask, self._clients))
        errors = [answer for answer in answers if isinstance(answer, OffloadError)]
        if len(errors) == len(answers):
            raise errors[0]
        now = time.monotonic()
        self._together.add([a.message if isinstance(a, OffloadError) else a for a in answers], now)
        return self._together.status(now)
