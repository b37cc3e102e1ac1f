"""Clients that nobody closes: the garbage collector disconnects them with a warning, and never waits."""

from __future__ import annotations

import asyncio
import gc
import os
import pickle
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

from tests.support.processes import ROOT, eventually
from zmq_offload import AsyncClient, Client
from zmq_offload.errors import FailedPrecondition
from zmq_offload.testing import Fabric

NOBODY = "tcp://127.0.0.1:9"  # discard: nothing listens there
X = np.arange(12, dtype="f4").reshape(3, 4)


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def threads() -> int:
    return len(os.listdir("/proc/self/task"))


@contextmanager
def nothing_left(clients: int = 1) -> Iterator[None]:
    """The body drops clients. Each warns once, and its threads and files are gone afterwards."""
    gc.collect()
    before = descriptors(), threads()
    known = threading.active_count()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
        gc.collect()
    unclosed = [str(w.message) for w in caught if issubclass(w.category, ResourceWarning)]
    assert len(unclosed) == clients, unclosed
    assert all("unclosed <" in text and "Client of tcp://" in text for text in unclosed), unclosed
    eventually(lambda: descriptors() <= before[0] and threads() <= before[1])
    assert threading.active_count() <= known


class Circle:
    def __init__(self, client: Any) -> None:
        self.client, self.me = client, self


@pytest.mark.parametrize("wrap", [lambda client: None, Circle], ids=["alone", "in a circle"])
def test_a_client_that_is_dropped_leaves_nothing(echo_fabric: Fabric, wrap: Callable[[Any], Any]) -> None:
    def use() -> None:
        client = Client(echo_fabric.frontend)
        assert client.submit("echo", {"x": X}).result()["x"].shape == X.shape  # the pump runs
        wrap(client)

    with nothing_left(4):
        for _ in range(4):
            use()


def test_clients_that_were_never_used_or_have_no_broker_leave_nothing() -> None:
    with nothing_left(3):
        Client(NOBODY)
        Circle(Client(NOBODY))
        AsyncClient(NOBODY)


def test_a_future_outlives_the_client_that_was_dropped(echo_fabric: Fabric) -> None:
    with nothing_left(2):
        assert Client(echo_fabric.frontend).submit("echo", {"x": X}).result(timeout=20)["x"].shape == X.shape
        seen: Future[Any] = Future()
        Client(echo_fabric.frontend).submit("echo", {"x": X}).add_done_callback(lambda f: seen.set_result(f.result()))
        assert seen.result(timeout=20)["x"].shape == X.shape


def test_futures_of_a_dropped_client_without_a_broker_end_at_their_deadlines() -> None:
    with nothing_left():
        future = Client(NOBODY).submit("echo", {"x": X}, timeout=0.3)
        assert "no broker" in str(future.exception(timeout=20))
        del future


def test_dropped_by_a_callback_in_the_thread_that_drives(echo_fabric: Fabric) -> None:
    with nothing_left():
        held: list[Client] = [Client(echo_fabric.frontend)]
        dropped = threading.Event()

        def drop(_: object) -> None:
            held.clear()
            dropped.set()

        held[0].submit("echo", {"x": np.zeros(40_000)}).add_done_callback(drop)
        assert dropped.wait(20)


def test_collected_while_its_own_lock_is_held(echo_fabric: Fabric) -> None:
    """The collector may run at any allocation, even while a thread holds the client's lock."""
    with nothing_left():
        client = Client(echo_fabric.frontend)
        client.infer("echo", {"x": X})
        driver = client._drivers.driver
        Circle(client)
        del client
        with driver._lock, driver._socket:
            began = time.monotonic()
            gc.collect()
            assert time.monotonic() - began < 10, "it does not wait for the lock"
        del driver


def test_a_warning_that_is_an_error_does_not_keep_the_client_open(echo_fabric: Fabric) -> None:
    before = descriptors()
    code = "import gc, sys, numpy as np\nfrom zmq_offload import Client\nc = Client(sys.argv[1])\n"
    code += "c.infer('echo', {'x': np.ones(3)})\ndel c; gc.collect()\n"
    code += "import os; print(len(os.listdir('/proc/self/fd')))"
    done = run_python(code, echo_fabric.frontend, "-W", "error::ResourceWarning")
    assert done.stderr.count("ResourceWarning: unclosed <Client of tcp://") == 1
    assert int(done.stdout) <= before


def test_a_closed_client_does_not_warn(echo_fabric: Fabric) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with Client(echo_fabric.frontend) as client:
            client.infer("echo", {"x": X})
        assert repr(client) == f"<Client of {echo_fabric.frontend}: closed>"
        Circle(client)
        del client
        gc.collect()


# --- asyncio ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wrap", [lambda client: None, Circle], ids=["alone", "in a circle"])
@pytest.mark.parametrize("where", ["in its loop", "after its loop", "in a loop that stands"])
def test_an_asyncio_client_that_is_dropped_leaves_nothing(
    echo_fabric: Fabric, wrap: Callable[[Any], Any], where: str
) -> None:
    async def use() -> Any:
        client = AsyncClient(echo_fabric.frontend)
        assert (await client.infer("echo", {"x": X}))["x"].shape == X.shape
        wrap(client)
        return client if where != "in its loop" else None

    async def several() -> None:
        for _ in range(4):
            await use()
            gc.collect()
            await asyncio.sleep(0)

    with nothing_left(4):
        if where == "in its loop":
            asyncio.run(several())
        elif where == "after its loop":
            for _ in range(4):
                asyncio.run(use())
                gc.collect()
        else:
            loop = asyncio.new_event_loop()
            try:
                for _ in range(4):
                    loop.run_until_complete(use())
                    gc.collect()
            finally:
                loop.close()


def test_a_loop_that_is_closed_with_a_call_outstanding_leaves_nothing() -> None:
    async def begin() -> None:
        task = asyncio.get_running_loop().create_task(AsyncClient(NOBODY).infer("echo", {"x": X}))
        task._log_destroy_pending = False  # type: ignore[attr-defined]  # asyncio would log that it never ended
        await asyncio.sleep(0.01)

    with nothing_left():
        loop = asyncio.new_event_loop()
        loop.run_until_complete(begin())
        loop.close()


def test_an_asyncio_client_in_another_loop_is_refused(echo_fabric: Fabric) -> None:
    client = AsyncClient(echo_fabric.frontend)

    async def use() -> None:
        await client.infer("echo", {"x": X})

    asyncio.run(use())
    with pytest.raises(FailedPrecondition, match="belongs to the event loop"):
        asyncio.run(use())
    asyncio.run(client.close())
    assert repr(client) == f"<AsyncClient of {echo_fabric.frontend}: closed>"


# --- the end of a program -----------------------------------------------------------------------------------


def run_python(code: str, endpoint: str, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *options, "-c", code, endpoint]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=True)


HEAD = """
import asyncio, gc, sys, threading, time
import numpy as np
from zmq_offload import AsyncClient, Client
X = {'x': np.ones(4, 'f4')}
async def main(at):
    global c
    c = AsyncClient(at)
    await c.infer('echo', X)
"""


@pytest.mark.parametrize(
    "code",
    [
        "c = Client(sys.argv[1]); c.infer('echo', X)",
        "c = Client(sys.argv[1]); f = c.submit('echo', X)",
        "c = Client('tcp://127.0.0.1:9'); f = c.submit('echo', X)",
        "class A: pass\na = A(); a.me = a; a.c = Client(sys.argv[1]); a.c.infer('echo', X); del a; gc.collect()",
        "c = Client('tcp://127.0.0.1:9')\nthreading.Thread(target=c.infer, args=('echo', X), daemon=True).start()",
        "asyncio.run(main(sys.argv[1]))",
        "asyncio.run(main(sys.argv[1])); del c; gc.collect()",
        "threading.Thread(target=asyncio.run, args=(main('tcp://127.0.0.1:9'),), daemon=True).start(); time.sleep(0.2)",
    ],
)
def test_a_program_that_forgot_to_close_ends(echo_fabric: Fabric, code: str) -> None:
    done = run_python(f"{HEAD}{code}\nprint('end')", echo_fabric.frontend)
    assert done.stdout == "end\n"
    assert "Traceback" not in done.stderr, done.stderr


def test_clients_are_not_copied_or_pickled(client: Client) -> None:
    other = AsyncClient(NOBODY)
    asyncio.run(other.close())
    for kind in (client, other):
        with pytest.raises(TypeError, match="belongs to the process that made it"):
            pickle.dumps(kind)
