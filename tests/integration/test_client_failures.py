"""A failure while a client is driven fails its calls, within their deadlines; the next call reconnects."""

from __future__ import annotations

import asyncio
import errno
import logging
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support.processes import ROOT, eventually
from zmq_offload import AsyncClient, Client
from zmq_offload.client.connection import Connection
from zmq_offload.client.session import RetryPolicy, Send
from zmq_offload.client.streamlink import StreamLink
from zmq_offload.errors import FailedPrecondition, Internal, InvalidArgument, OffloadError, Unavailable
from zmq_offload.net.keys import new_keys
from zmq_offload.protocol import messages as wire
from zmq_offload.protocol.payload import encode_tensors
from zmq_offload.testing import Fabric

NOBODY = "tcp://127.0.0.1:9"  # discard: nothing listens there
X = {"x": np.arange(12, dtype="f4").reshape(3, 4)}
IMPATIENT = RetryPolicy(heartbeat=0.05, patience=0.1, spread=False)
MANY = 5


@contextmanager
def no_files() -> Iterator[None]:
    """No file can be opened in the body, and so no socket made."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def kinds(errors: list[OffloadError]) -> set[tuple[type, str]]:
    return {(type(error), error.message) for error in errors}


def errors_of_threads(client: Client, timeout: float = 20.0) -> list[OffloadError]:
    """The errors of calls that wait in threads, and of futures."""

    def call(number: int) -> OffloadError:
        with pytest.raises(OffloadError) as caught:
            client.infer("echo", X, timeout=timeout) if number % 2 else client.submit("echo", X).result()
        return caught.value

    with ThreadPoolExecutor(MANY) as pool:
        return list(pool.map(call, range(MANY)))


async def errors_of_tasks(client: AsyncClient, timeout: float = 20.0) -> list[OffloadError]:
    calls = (client.infer("echo", X, timeout=timeout) for _ in range(MANY))
    done = await asyncio.gather(*calls, return_exceptions=True)
    assert all(isinstance(error, OffloadError) for error in done), done
    return done  # type: ignore[return-value]


def test_without_files_calls_fail_when_the_client_connects_again_and_work_when_there_are_some(
    echo_fabric: Fabric,
) -> None:
    with Client([NOBODY, echo_fabric.frontend], policy=IMPATIENT) as client:
        with no_files():
            errors = errors_of_threads(client)
        assert {type(error) for error in errors} == {Unavailable}
        assert any("Too many open files" in error.message for error in errors), errors
        assert client.infer("echo", X)["x"].shape == (3, 4)
        assert client._drivers.driver.session.outstanding == 0


def test_without_files_the_asyncio_client_does_the_same(echo_fabric: Fabric) -> None:
    async def main() -> None:
        async with AsyncClient([NOBODY, echo_fabric.frontend], policy=IMPATIENT) as client:
            with no_files():
                errors = await errors_of_tasks(client)
            assert {type(error) for error in errors} == {Unavailable}
            assert any("Too many open files" in error.message for error in errors), errors
            assert (await client.infer("echo", X))["x"].shape == (3, 4)

    asyncio.run(main())


FEW = """
import asyncio, os, resource, sys
import numpy as np
from zmq_offload import AsyncClient, Client
from zmq_offload.errors import Unavailable
x = {"x": np.ones(3)}
async def call():
    async with AsyncClient(sys.argv[1]) as client:
        return await client.infer("echo", x)
loop = asyncio.new_event_loop()
loop.run_until_complete(call())  # so that late imports are done
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
for free in range(16):
    held = []
    try:
        while True:
            held.append(os.dup(0))
    except OSError:
        for file in held[:free]:
            os.close(file)
    said = []
    for new in (lambda: Client(sys.argv[1]).close(), lambda: loop.run_until_complete(call())):
        try:
            new()
            said.append("works")
        except Unavailable as error:
            said.append("refused" if "Too many open files" in str(error) else str(error))
    for file in held[free:]:
        os.close(file)
    print(free, *said)
"""


def test_with_few_files_a_client_is_refused_and_nothing_aborts(echo_fabric: Fabric) -> None:
    ran = subprocess.run(
        [sys.executable, "-c", FEW, echo_fabric.frontend], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr
    said = [line.split() for line in ran.stdout.splitlines()]
    assert [int(line[0]) for line in said] == list(range(16))
    for client, files in ((1, 3), (2, 1)):
        assert all(line[client] == "refused" for line in said[:files]), said
        assert all(line[client] == "works" for line in said[files:]), said


def no_thread(_: threading.Thread) -> None:
    raise RuntimeError("can't start new thread")


def test_without_threads_calls_work_and_futures_are_refused(
    echo_fabric: Fabric, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", no_thread)
        client = Client(echo_fabric.frontend)
    with client:
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", no_thread)
            assert client.infer("echo", X)["x"].shape == (3, 4)
            with pytest.raises(Unavailable, match="cannot start a thread: can't start new thread"):
                client.submit("echo", X)
            assert client.infer("echo", X)["x"].shape == (3, 4)
        assert client.submit("echo", X).result()["x"].shape == (3, 4)
        eventually(lambda: "0 outstanding" in repr(client))


def test_without_files_no_client_is_made_and_nothing_is_left() -> None:
    for kind in (Client, AsyncClient):
        with no_files(), pytest.raises(Unavailable, match="Too many open files"):
            kind(NOBODY)


def broken(error: Exception) -> Callable[..., Any]:
    def fail(*_: object, **__: object) -> Any:
        raise error

    return fail


FAULTS = [
    ("send", KeyError("a bug"), (Internal, "the client failed: KeyError: 'a bug'")),
    (
        "receive",
        OSError(88, "Socket operation on non-socket"),
        (Unavailable, "the connection to ENDPOINT failed: Socket operation on "),
    ),
    ("send", OSError(5, "Input/output error"), (Unavailable, "the connection to ENDPOINT failed: Input/output error")),
    ("refusal", MemoryError("none left"), (Internal, "the client failed: MemoryError: none left")),
    ("still_lent", Internal("memory"), (Internal, "memory")),
]


@pytest.mark.parametrize(("method", "error", "expected"), FAULTS)
def test_any_failure_in_driving_fails_every_call_and_later_calls_work(
    echo_fabric: Fabric,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    method: str,
    error: Exception,
    expected: tuple[type[OffloadError], str],
) -> None:
    """`refusal` is called at each deadline, so Pings make it fail often."""
    caplog.set_level(logging.CRITICAL)
    kind, text = expected[0], expected[1].replace("ENDPOINT", echo_fabric.frontend)
    silent = {"policy": IMPATIENT} if method == "refusal" else {}

    def right(errors: list[OffloadError]) -> bool:
        # A call that begins after the others failed meets the fault itself.
        return all(type(one) is kind and one.message.startswith(text) for one in errors)

    endpoint = NOBODY if method == "refusal" else echo_fabric.frontend
    with Client(endpoint, **silent) as client:
        with monkeypatch.context() as patch:
            patch.setattr(StreamLink, method, broken(error))
            errors = errors_of_threads(client)
        assert right(errors), errors
        assert len({id(one) for one in errors}) == MANY, "each has its own traceback"
        assert client._drivers.driver.outstanding == client._drivers.driver.session.outstanding == 0

    async def main() -> None:
        async with AsyncClient(endpoint, **silent) as client:
            with monkeypatch.context() as patch:
                patch.setattr(StreamLink, method, broken(error))
                errors = await errors_of_tasks(client)
            assert right(errors), errors
            assert client._drivers.driver.outstanding == client._drivers.driver.session.outstanding == 0
            if endpoint != NOBODY:
                assert (await client.infer("echo", X))["x"].shape == (3, 4)

    asyncio.run(main())
    if endpoint != NOBODY:
        with Client(endpoint) as client:
            with monkeypatch.context() as patch:
                patch.setattr(StreamLink, method, broken(error))
                errors_of_threads(client)
            assert client.infer("echo", X)["x"].shape == (3, 4)


def test_a_reply_that_cannot_be_read_fails_its_call_and_no_other(
    echo_fabric: Fabric, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Client(echo_fabric.frontend) as client:
        with monkeypatch.context() as patch:
            patch.setattr("zmq_offload.client.link.decode_tensors", broken(MemoryError("none left")))
            for error in errors_of_threads(client):
                assert kinds([error]) == {(Internal, "the reply cannot be read: MemoryError: none left")}
        assert client.infer("echo", X)["x"].shape == (3, 4)


@pytest.mark.parametrize("fault", ["reconnect", "reopen"])
def test_deadlines_hold_while_connecting_fails_again_and_again(monkeypatch: pytest.MonkeyPatch, fault: str) -> None:
    async def main() -> None:
        async with AsyncClient([NOBODY, "tcp://127.0.0.1:7"], policy=IMPATIENT) as client:
            monkeypatch.setattr(StreamLink, fault, broken(OSError(errno.EMFILE, "none left")))
            for _ in range(3):
                began = time.monotonic()
                with pytest.raises(Unavailable):
                    await client.infer("echo", X, timeout=0.5)
                assert time.monotonic() - began < 10

    asyncio.run(main())


def test_a_second_endpoint_that_fails_does_not_keep_the_client_from_the_first(
    echo_fabric: Fabric, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An endpoint that passes all checks and fails to connect."""
    opened = StreamLink._open

    def only_the_first(self: StreamLink) -> None:
        if self._endpoint == 1:
            raise Unavailable("cannot connect to the second")
        opened(self)

    monkeypatch.setattr(StreamLink, "_open", only_the_first)
    with Client([NOBODY, "tcp://127.0.0.1:7"], policy=IMPATIENT) as client:
        with pytest.raises(Unavailable, match="cannot connect to the second"):
            client.infer("echo", X)
        client._drivers.driver.connection.endpoints[0] = echo_fabric.frontend
        assert client.infer("echo", X)["x"].shape == (3, 4)


def test_the_memory_of_inputs_is_free_after_a_failure() -> None:
    connection = Connection(NOBODY, None, 2**30)
    try:
        payload = encode_tensors({"x": np.zeros(1_000_000)})
        connection.send(Send(wire.Request(b"s" * 16, 1, "echo", 0, 10**6, 0), payload))
        (tracker,) = connection._lent[1]
        assert not tracker.done
        connection.reset()
        assert tracker.done
        assert not connection.still_lent(1)
    finally:
        connection.close()


def test_errors_of_keys_name_the_variable_or_the_argument(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    public, secret = new_keys("device", tmp_path)
    missing = tmp_path / "missing.key"
    monkeypatch.setenv("ZMQ_OFFLOAD_CLIENT_KEY", str(secret))
    for kind in (Client, AsyncClient):
        with pytest.raises(InvalidArgument, match="CLIENT_KEY is given without broker_key; give broker_key or set"):
            kind(NOBODY)
    monkeypatch.setenv("ZMQ_OFFLOAD_BROKER_KEY", str(missing))
    with pytest.raises(FailedPrecondition, match=f"^ZMQ_OFFLOAD_BROKER_KEY: {missing}: "):
        Client(NOBODY)
    with pytest.raises(FailedPrecondition, match=f"^key: {public} has no secret key"):
        Client(NOBODY, key=str(public), broker_key=str(public))
    with pytest.raises(FailedPrecondition, match=f"^broker_key: {missing}: "):
        Client(NOBODY, broker_key=missing)
    with pytest.raises(InvalidArgument, match="broker_key 7 is not the path of a key file"):
        Client(NOBODY, broker_key=7)  # type: ignore[arg-type]
    monkeypatch.delenv("ZMQ_OFFLOAD_CLIENT_KEY")
    with pytest.raises(InvalidArgument, match="broker_key is given without key; give key or set ZMQ_OFFLOAD_CL"):
        Client(NOBODY, broker_key=str(public))


def test_numpys_numbers_are_accepted_as_arguments(echo_fabric: Fabric) -> None:
    numbers = {"version": np.int64(1), "timeout": np.float32(5), "priority": np.int8(-1)}
    with Client(echo_fabric.frontend, timeout=np.float32(20), max_frame_bytes=np.int64(2**20)) as client:  # type: ignore[arg-type]
        assert client.infer("echo", X, **numbers)["x"].shape == (3, 4)  # type: ignore[arg-type]
        future = client.submit("echo", X, **numbers)  # type: ignore[arg-type]
        assert future.result(timeout=np.float32(20))["x"].shape == (3, 4)
        assert client.models(timeout=np.float16(20))  # type: ignore[arg-type]


def test_outputs_that_do_not_fit_are_refused_before_the_model_runs(echo_fabric: Fabric) -> None:
    x = X["x"]
    read_only = np.zeros_like(x)
    read_only.flags.writeable = False

    async def main() -> None:
        async with AsyncClient(echo_fabric.frontend) as client:
            served = (await client.status())["requests"]["served"]
            for wrong in ({"x": [1.0]}, {"x": read_only}, {"x": x, "y": x}, [x]):
                with pytest.raises(InvalidArgument, match="output"):
                    await client.infer("echo", X, outputs=wrong)  # type: ignore[arg-type]
            assert (await client.status())["requests"]["served"] == served
            own = x.copy()
            result = await client.infer("echo", {"x": own}, outputs={"x": own})
            assert result["x"] is own, "an input may be an output"
            np.testing.assert_array_equal(own, x)

    asyncio.run(main())
    with Client(echo_fabric.frontend) as client:
        served = client.status()["requests"]["served"]
        for wrong in ({"x": [1.0]}, {"x": read_only}, {"x": x, "y": x}, [x]):
            with pytest.raises(InvalidArgument, match="output"):
                client.infer("echo", X, outputs=wrong)  # type: ignore[arg-type]
        assert client.status()["requests"]["served"] == served
        # Echo workers announce no outputs, so an earlier reply does not count.
        assert client.infer("echo", X, outputs={"x": np.zeros_like(x)})
        assert client.infer("echo", {"y": x}, outputs={"y": np.zeros_like(x)})["y"].shape == x.shape
