"""Clients in forked children: the parent's refuse all calls, the child's own work, and the parent is not affected."""

from __future__ import annotations

import asyncio
import concurrent.futures
import gc
import os
import threading
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tests.support.forks import run_in_fork
from tests.support.processes import eventually
from zmq_offload import AsyncClient, Client
from zmq_offload.testing import Fabric
from zmq_offload.testing.link import Link

NOBODY = "tcp://127.0.0.1:9"  # discard: nothing listens there
X = {"x": np.arange(12, dtype="f4").reshape(3, 4)}
REFUSED = "FailedPrecondition: this client was made before a fork; make one in each process, or start "


def within(client: Client) -> str:
    with client:
        return "left"


def dropped(held: list[Client]) -> str:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        held.clear()
        gc.collect()
    return f"dropped with {len(caught)} warnings"


CALLS: list[Callable[[Client], object]] = [
    lambda client: client.infer("echo", X),
    lambda client: client.submit("echo", X),
    lambda client: client.models(),
    lambda client: client.status(timeout=0.1),
]


@pytest.mark.parametrize("busy", [False, True], ids=["idle", "busy"])
def test_the_parents_client_refuses_calls_and_closes_at_once(echo_fabric: Fabric, busy: bool) -> None:
    """In a busy parent, other threads hold its locks while it forks."""
    stop = threading.Event()
    errors: list[Exception] = []

    def work() -> None:
        try:
            while not stop.is_set():
                client.infer("echo", X)
        except Exception as error:
            errors.append(error)

    with Client(echo_fabric.frontend) as client:
        client.submit("echo", X).result()
        threads = [threading.Thread(target=work) for _ in range(3 * busy)]
        for thread in threads:
            thread.start()
        try:
            for _ in range(1 + busy):
                for call in CALLS:
                    assert run_in_fork(lambda call=call: call(client)).startswith(REFUSED)  # type: ignore[misc]
                assert run_in_fork(client.close) == "None"
                assert run_in_fork(lambda: within(client)) == "left"
                assert run_in_fork(lambda: repr(client)).endswith(": made before a fork>")
        finally:
            stop.set()
            for thread in threads:
                thread.join()
        assert not errors
        assert client.infer("echo", X)["x"].shape == (3, 4)


def test_dropping_the_parents_client_in_the_child_does_not_close_it(echo_fabric: Fabric) -> None:
    with Client(echo_fabric.frontend) as client:
        held = [client]
        client.infer("echo", X)

        def drop() -> str:
            nonlocal client
            del client
            return dropped(held)

        assert run_in_fork(drop) == "dropped with 0 warnings"
        assert client.infer("echo", X)["x"].shape == (3, 4)


def test_a_client_made_in_the_child_works(echo_fabric: Fabric) -> None:
    def own() -> object:
        with Client(echo_fabric.frontend) as mine:
            return mine.infer("echo", X)["x"].shape, mine.submit("echo", X).result()["x"].shape

    async def asynchronous() -> object:
        async with AsyncClient(echo_fabric.frontend) as mine:
            return (await mine.infer("echo", X))["x"].shape

    large = {"x": np.zeros(1_000_000)}  # lent to libzmq, for which pyzmq has a thread
    with Client(echo_fabric.frontend) as client:
        client.infer("echo", large)
        assert run_in_fork(own) == "((3, 4), (3, 4))"
        assert run_in_fork(lambda: asyncio.run(asynchronous())) == "(3, 4)"
        assert run_in_fork(lambda: Client(echo_fabric.frontend).infer("echo", large)["x"].shape) == "(1000000,)"
        client.infer("echo", large)


def test_a_grandchild_gets_the_same_error(echo_fabric: Fabric) -> None:
    with Client(echo_fabric.frontend) as client:
        client.infer("echo", X)
        said = run_in_fork(lambda: run_in_fork(lambda: client.infer("echo", X)))
        assert said.startswith(("AssertionError: daemonic", REFUSED))


def test_futures_of_the_parent_fail_in_the_child_and_call_nothing_back() -> None:
    with Client(NOBODY) as client:
        future = client.submit("echo", X)
        called: list[object] = []
        future.add_done_callback(called.append)

        def outcome(of: Callable[[], Any]) -> str:
            return run_in_fork(of)

        assert outcome(future.result).startswith(REFUSED)
        assert outcome(future.exception).startswith(REFUSED.partition(": ")[2])
        assert outcome(lambda: len(concurrent.futures.wait([future]).done)) == "1"
        assert outcome(future.cancel) == "False"
        assert outcome(lambda: len(called)) == "0"
        assert not future.done(), "it is the parent's still"
        assert future.cancel()
        eventually(lambda: called)


def test_a_result_from_before_the_fork_stays(client: Client) -> None:
    future = client.submit("echo", X)
    future.result()
    assert run_in_fork(lambda: future.result()["x"].shape) == "(3, 4)"


def test_a_callback_may_fork(client: Client) -> None:
    said: list[str] = []
    future = client.submit("echo", {"x": np.zeros(40_000)})
    future.add_done_callback(lambda _: said.append(run_in_fork(lambda: client.infer("echo", X))))
    eventually(lambda: said)
    assert said[0].startswith(REFUSED)
    assert client.infer("echo", X)["x"].shape == (3, 4)


def test_the_parents_asyncio_client_refuses_calls_and_closes_at_once(echo_fabric: Fabric) -> None:
    loop = asyncio.new_event_loop()
    client = AsyncClient(echo_fabric.frontend)
    waiting = AsyncClient(NOBODY)

    async def infer(one: AsyncClient = client) -> object:
        return (await one.infer("echo", X))["x"].shape

    async def begin() -> asyncio.Task[object]:
        task = asyncio.ensure_future(infer(waiting))
        await asyncio.sleep(0.01)
        return task

    try:
        assert loop.run_until_complete(infer()) == (3, 4)
        task = loop.run_until_complete(begin())
        assert run_in_fork(lambda: asyncio.run(infer())).startswith(REFUSED)
        assert run_in_fork(lambda: asyncio.run(client.close())) == "None"
        assert run_in_fork(lambda: loop.run_until_complete(infer())).startswith(REFUSED)
        assert run_in_fork(lambda: loop.run_until_complete(task)).startswith(REFUSED)
        assert loop.run_until_complete(infer()) == (3, 4), "the parent's loop watches its socket still"
        task.cancel()
        loop.run_until_complete(client.close())
        loop.run_until_complete(waiting.close())
    finally:
        loop.close()


def test_a_child_that_ends_like_a_program_ends_well(client: Client) -> None:
    """As workers of gunicorn do; those of multiprocessing end by os._exit."""
    client.infer("echo", X)
    process = os.fork()
    if process == 0:
        try:
            client.infer("echo", X)
        except Exception:
            os.execv("/bin/true", ["true"])
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == 0


def test_the_parents_link_refuses_commands_and_closes_at_once(echo_fabric: Fabric) -> None:
    with Link(echo_fabric.frontend) as link, Client(link.endpoint) as client:
        assert run_in_fork(link.close) == "None"
        assert run_in_fork(link.cut).startswith("FailedPrecondition: this link was made before a fork")
        assert client.infer("echo", X)["x"].shape == (3, 4)
