"""Ctrl-C at the worst moments of a synchronous client: other calls get their own results, and nothing hangs."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from tests.support.interrupts import interrupted_everywhere
from zmq_offload import Client
from zmq_offload.client import calls, driver, exchange, lifecycle
from zmq_offload.errors import Unavailable
from zmq_offload.testing import Fabric

X = np.arange(1 << 17, dtype=np.int64)


@pytest.fixture(scope="module")
def frontend() -> Iterator[str]:
    with Fabric() as fabric:
        yield fabric.frontend


@pytest.fixture
def client(frontend: str) -> Iterator[Client]:
    with Client(frontend, arena_bytes=0, timeout=10) as client:
        client.infer("echo", {"x": X})
        yield client


def once(real: Callable[..., Any], when: Callable[[Any], bool]) -> Callable[..., Any]:
    """Do something, and be interrupted once before its result is used."""
    interrupted = False

    def do(*args: Any, **options: Any) -> Any:
        nonlocal interrupted
        result = real(*args, **options)
        if not interrupted and when(result):
            interrupted = True
            raise KeyboardInterrupt
        return result

    return do


def results(futures: list[Any]) -> tuple[list[Any], int]:
    """The results, asked for again after each Ctrl-C, and how many of those there were."""
    found, interrupts = [], 0
    for future in futures:
        while True:
            try:
                found.append(future.result()["x"])
                break
            except KeyboardInterrupt:
                interrupts += 1
    return found, interrupts


def test_bytes_that_were_received_when_it_came_spoil_no_other_result(client: Client) -> None:
    stream = client._drivers.driver.connection._line.stream  # type: ignore[attr-defined]
    peer = stream.peer
    stream._recv_into = once(stream._recv_into, lambda count: peer._body is not None and count > 50_000)
    found, interrupts = results([client.submit("echo", {"x": X + number}) for number in range(6)])
    assert interrupts <= 1
    for number, result in enumerate(found):
        np.testing.assert_array_equal(result, X + number)


def test_bytes_that_were_sent_when_it_came_are_not_sent_again_as_something_else(client: Client) -> None:
    stream = client._drivers.driver.connection._line.stream  # type: ignore[attr-defined]

    class Socket:
        sendmsg = staticmethod(once(stream.socket.sendmsg, lambda count: count > 0))

        def __getattr__(self, name: str) -> Any:
            return getattr(real, name)

    real, stream.socket = stream.socket, Socket()
    with pytest.raises(KeyboardInterrupt):
        client.infer("echo", {"x": X})
    np.testing.assert_array_equal(client.infer("echo", {"x": X + 1})["x"], X + 1)


def test_a_reply_that_is_handed_out_when_it_comes_is_not_lost_for_ever(client: Client) -> None:
    connection = client._drivers.driver.connection
    main, submitted = threading.get_ident(), []

    def at(_: object) -> bool:
        return threading.get_ident() == main and bool(submitted)

    connection.still_lent = once(connection.still_lent, at)  # type: ignore[method-assign]
    future = client.submit("echo", {"x": X})
    submitted.append(future)
    try:
        for _ in range(100):
            client.infer("echo", {"x": X})
    except KeyboardInterrupt:
        pass
    np.testing.assert_array_equal(future.result(20)["x"], X)


def test_the_lock_of_the_connection_is_free_after_it(client: Client) -> None:
    driver = client._drivers.driver

    class Lock:
        def __init__(self, real: Any) -> None:
            self.real = real
            self.acquire = once(real.acquire, bool)

        def __getattr__(self, name: str) -> Any:
            return getattr(self.real, name)

        def __enter__(self) -> Any:
            return self.real.__enter__()

        def __exit__(self, *of: object) -> None:
            self.real.__exit__(*of)

    for call in (lambda: client.infer("echo", {"x": X}), lambda: client.submit("echo", {"x": X}).result()):
        driver._socket = Lock(driver._socket)  # type: ignore[assignment]
        with pytest.raises(KeyboardInterrupt):
            call()
        others: list[object] = []
        other = threading.Thread(target=lambda others=others: others.append(client.infer("echo", {"x": X})))
        other.start()
        other.join(20)
        assert len(others) == 1, "another thread's call hangs"


def test_a_call_of_which_the_reply_is_lost_says_so(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C comes between the session, for which the call has ended, and the outbox."""
    future = client.submit("echo", {"x": X})
    received, main = client._drivers.driver.session.received, threading.get_ident()
    monkeypatch.setattr(
        client._drivers.driver.session, "received", once(received, lambda _: threading.get_ident() == main)
    )
    try:
        for _ in range(100):
            client.infer("echo", {"x": X})
    except KeyboardInterrupt:
        pass
    said = ""
    try:
        np.testing.assert_array_equal(future.result(20)["x"], X)
    except Unavailable as error:
        said = error.message
    assert not said or "interrupted; call again" in said
    np.testing.assert_array_equal(client.infer("echo", {"x": X})["x"], X)
    assert client._drivers.driver.outstanding == 0


@pytest.mark.parametrize("way", ["infer", "submit"])
@pytest.mark.parametrize("module", [calls, driver, exchange, lifecycle])
def test_anywhere_in_the_code_that_shares_the_socket_it_leaves_the_client_as_it_was(
    client: Client, module: ModuleType, way: str
) -> None:
    small = {"x": X[:4]}

    def call() -> None:
        if way == "infer":
            client.infer("echo", small)
        else:
            client.submit("echo", small).result()

    state, pool = client._drivers.driver._lifecycle, ThreadPoolExecutor(1)
    places = 0
    for run in interrupted_everywhere(module):
        run(call)
        places += 1
        assert not state.is_led and not state.followers
        other = pool.submit(client.infer, "echo", {"x": X[:5]})
        np.testing.assert_array_equal(other.result(20)["x"], X[:5])
        np.testing.assert_array_equal(client.infer("echo", small)["x"], X[:4])
    assert places > 5
    pool.shutdown()
