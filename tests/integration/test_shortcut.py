"""Real processes of one host that bind and connect to TCP come to Unix sockets, and back again when a broker dies."""

from __future__ import annotations

import asyncio
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import pytest

from tests.integration.test_shared_memory import calling, until
from tests.support.processes import Fabric, eventually, running_broker, running_workers, wait_for_workers
from zmq_offload import AsyncClient, Client
from zmq_offload.gateway.calls import Outputs
from zmq_offload.net.sharedmemory import segment

pytestmark = pytest.mark.skipif(not segment.SUPPORTED, reason="this system has no memory to share")

X = np.arange(5)


@contextmanager
def relay(endpoint: str) -> Iterator[str]:
    """Something on this host that connections pass through, for a reason."""
    host, _, port = endpoint.removeprefix("tcp://").rpartition(":")
    ends: list[socket.socket] = []

    def pump(one: socket.socket, other: socket.socket) -> None:
        try:
            while data := one.recv(65536):
                other.sendall(data)
        except OSError:
            pass  # the test is over

    def serve() -> None:
        try:
            near = listening.accept()[0]
        except OSError:
            return
        far = socket.create_connection((host, int(port)))
        ends.extend((near, far))
        for pair in ((near, far), (far, near)):
            threads.append(threading.Thread(target=pump, args=pair))
            threads[-1].start()

    with socket.create_server(("127.0.0.1", 0)) as listening:
        threads = [threading.Thread(target=serve)]
        threads[0].start()
        yield f"tcp://127.0.0.1:{listening.getsockname()[1]}"
    for end in ends:
        end.shutdown(socket.SHUT_RDWR)
    for thread in threads:
        thread.join()
    for end in ends:
        end.close()


def transports(status: dict[str, Any]) -> tuple[list[str], list[tuple[str, str]]]:
    """Those of the workers; those of the clients, and why they share nothing."""
    clients = status["clients"]["listed"]
    found = sorted((client["transport"], client["shared_memory"].get("why", "")) for client in clients)
    return [worker["transport"] for worker in status["workers"]], found


def gone_on(client: Client) -> None:
    np.testing.assert_array_equal(client.infer("echo", {"x": X}, timeout=20)["x"], X)


def test_processes_of_one_host_come_to_unix_sockets_also_after_a_broker_was_killed() -> None:
    with ExitStack() as stack:
        broker = stack.enter_context(running_broker())
        stack.enter_context(running_workers(broker.backend, "--executor", "echo"))
        wait_for_workers(broker.frontend, 1)
        client = stack.enter_context(Client(broker.frontend))
        alone = stack.enter_context(Client(broker.frontend, arena_bytes=0))
        for each in (client, alone):
            gone_on(each)
        everybody = ["ipc"], [("ipc", ""), ("tcp", "switched off")]
        eventually(lambda: transports(client.status()) == everybody)

        async def test() -> Fabric:
            async with AsyncClient(broker.frontend) as third, calling(broker.frontend) as gateway:
                await third.infer("echo", {"x": X})
                assert isinstance(await gateway.infer({"x": X}), Outputs)
                workers, clients = transports(await third.status())
                assert clients == [("ipc", ""), ("ipc", ""), ("tcp", "switched off")], "one process has one arena"
                await asyncio.to_thread(broker.broker.end, signal.SIGKILL)
                again = stack.enter_context(running_broker(frontend=broker.frontend, backend=broker.backend))
                await asyncio.to_thread(gone_on, client)
                assert isinstance(await gateway.infer({"x": X}, 20.0), Outputs)
                await third.infer("echo", {"x": X}, timeout=20)
                await until(lambda: gateway.link._line.shares)
                workers, clients = transports(await third.status())
                assert workers == ["ipc"] and [transport for transport, why in clients if not why] == ["ipc", "ipc"]
                return again

        broker = asyncio.run(test())
        with relay(broker.frontend) as place, Client(place) as far:
            gone_on(far)
            found = transports(client.status())[1]
            assert ("tcp", "") in found, "what is in between stays there"
