"""Client and AsyncClient against a real broker and echo workers."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
import time
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest
import zmq

from tests.support.mutation import with_length
from tests.support.processes import eventually, running_broker, running_workers
from zmq_offload import AsyncClient, Client
from zmq_offload.errors import Cancelled, DeadlineExceeded, FailedPrecondition, InvalidArgument, NotFound, Unavailable
from zmq_offload.protocol import messages as wire
from zmq_offload.protocol.payload import encode_tensors
from zmq_offload.testing import Fabric

NOBODY = "tcp://127.0.0.1:9"  # discard: nothing listens there
X = np.arange(12, dtype="f4").reshape(3, 4)


def test_inputs_come_back_under_their_names(client: Client) -> None:
    inputs = {"x": X, "flag": np.array(True), "none": np.zeros((0, 2), "i8"), "half": np.float16([1, np.nan])}
    outputs = client.infer("echo", inputs)
    assert list(outputs) == list(inputs)
    for name, array in inputs.items():
        assert outputs[name].dtype == array.dtype
        np.testing.assert_array_equal(outputs[name], array)
    assert (outputs.model, outputs.version) == ("echo", 1)
    timings = outputs.timings
    assert 0 <= timings.compute <= timings.broker <= timings.total


def test_lists_and_numbers_are_accepted_as_arrays(client: Client) -> None:
    np.testing.assert_array_equal(client.infer("echo", {"x": [1.5, 2.5]})["x"], [1.5, 2.5])


@pytest.mark.parametrize("size", [1, 65_535, 65_536, 65_537, 5_000_000])
def test_tensors_of_any_size_pass(client: Client, size: int) -> None:
    x = np.random.default_rng(size).integers(0, 255, size, dtype="u1")
    np.testing.assert_array_equal(client.infer("echo", {"x": x})["x"], x)


def test_results_go_into_the_callers_arrays(client: Client) -> None:
    place = np.zeros_like(X)
    outputs = client.infer("echo", {"x": X}, outputs={"x": place})
    assert outputs["x"] is place
    np.testing.assert_array_equal(place, X)
    with pytest.raises(InvalidArgument, match=r"'x' of model 'echo' is float32\[3, 4\]; the array for it is float64"):
        client.infer("echo", {"x": X}, outputs={"x": np.zeros((3, 4))})
    with pytest.raises(InvalidArgument, match="returns x; the arrays are for y"):
        client.infer("echo", {"x": X}, outputs={"y": place})


@pytest.mark.parametrize("size", [3, 9600, 100_000])
def test_a_prepared_call_is_made_again_and_again(client: Client, size: int) -> None:
    call = client.prepared("echo", timeout=20)
    for number in range(5):
        x = np.full(size, number, "f4")
        np.testing.assert_array_equal(call.infer({"x": x})["x"], x)
    with pytest.raises(InvalidArgument, match="version 0"):
        client.prepared("echo", version=0)


def test_many_futures_at_once(client: Client) -> None:
    futures = [client.submit("echo", {"x": np.full(10, n)}) for n in range(500)]
    for n, future in enumerate(futures):
        assert future.result()["x"][0] == n


def test_one_client_serves_many_threads(client: Client) -> None:
    def work(thread: int) -> None:
        for n in range(50):
            value = thread * 1000 + n
            assert client.infer("echo", {"x": np.full(100, value)})["x"][7] == value

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(work, range(16)))


def test_infer_works_while_futures_are_outstanding(client: Client) -> None:
    futures = [client.submit("echo", {"x": np.zeros(100_000)}) for _ in range(50)]
    assert client.infer("echo", {"x": X})["x"].shape == X.shape
    wait(futures, timeout=20)
    assert all(future.result() for future in futures)


def test_a_waiting_call_in_a_futures_callback_is_refused_and_submit_works_there(client: Client) -> None:
    caught: Future[Any] = Future()

    def callback(_: Any) -> None:
        try:
            client.infer("echo", {"x": X})
        except BaseException as error:
            caught.set_result((error, client.submit("echo", {"x": X})))

    client.submit("echo", {"x": np.zeros(1_000_000)}).add_done_callback(callback)
    error, second = caught.result(timeout=20)
    assert isinstance(error, InvalidArgument)
    assert "use submit" in str(error)
    assert second.result(timeout=20)["x"].shape == X.shape


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda c: c.infer("no/name", {}), "model name"),
        (lambda c: c.infer("echo", {"x": X}, timeout=0), "timeout 0 is not"),
        (lambda c: c.infer("echo", {"x": X}, timeout=float("nan")), "timeout nan"),
        (lambda c: c.infer("echo", {"x": X}, timeout="1"), "timeout '1'"),
        (lambda c: c.infer("echo", {"x": X}, version=0), "version 0"),
        (lambda c: c.infer("echo", {"x": X}, version="1"), "version '1'"),
        (lambda c: c.infer("echo", {"x": X}, priority=101), "priority 101"),
        (lambda c: c.infer("echo", [X]), "mapping"),
        (lambda c: c.infer("echo", {"x": np.array(["a"])}), "tensor 'x'"),
        (lambda c: c.infer("echo", {"x": X, "ragged": [[1], [2, 3]]}), "input 'ragged' is not an array"),
        (lambda c: c.infer("echo", {"x": np.ma.masked_less(X, 3)}), "input 'x' is not an array: it has masked values"),
        (lambda c: Client([]), "at least one"),
        (lambda c: Client("tcp://*:5555"), r"cannot connect to tcp://\*:5555"),
        (lambda c: Client("ipc:///" + "x" * 300), "cannot connect to ipc"),
        (lambda c: Client("localhost:5555"), "use tcp://HOST:PORT"),
        (lambda c: Client("tcp://localhost:99999"), "use tcp://HOST:PORT"),
        (lambda c: Client(NOBODY, timeout=-1), "timeout"),
    ],
)
def test_wrong_arguments_are_named(client: Client, call: Any, says: str) -> None:
    with pytest.raises(InvalidArgument, match=says):
        call(client)


def test_an_unknown_model_or_version_is_not_found_and_the_error_lists_what_is_served(echo_fabric: Fabric) -> None:
    with Client(echo_fabric.frontend) as client:
        for arguments in ({"model": "ocr"}, {"model": "echo", "version": 2}):
            with pytest.raises(NotFound, match=r"served are: echo \(version 1\)"):
                client.infer(inputs={"x": X}, **arguments)


def test_models_and_status(client: Client) -> None:
    assert client.models() == [
        {"name": "echo", "version": 1, "inputs": [], "outputs": [], "workers": 2, "latest": True, "labels": []}
    ]
    before = client.status()["requests"]["served"]
    client.infer("echo", {"x": X})
    status = client.status()
    assert status["requests"]["served"] == before + 1
    assert [worker["models"] for worker in status["workers"]] == [["echo:1"]] * 2


def test_without_a_broker_a_call_ends_within_its_deadline() -> None:
    with Client(NOBODY) as client:
        start = time.monotonic()
        with pytest.raises(Unavailable, match=r"no broker answered at tcp://127\.0\.0\.1:9 within 0\.300 s"):
            client.infer("echo", {"x": X}, timeout=0.3)
        assert time.monotonic() - start < 5
        with pytest.raises(Unavailable, match="no broker"):
            client.submit("echo", {"x": X}, timeout=0.1).result(timeout=20)
        with pytest.raises(Unavailable):
            client.status(timeout=0.1)


def test_a_second_endpoint_serves_when_the_first_is_not_there(echo_fabric: Fabric) -> None:
    with Client([NOBODY, echo_fabric.frontend]) as client:
        np.testing.assert_array_equal(client.infer("echo", {"x": X})["x"], X)


def test_a_tensor_over_the_limit_is_refused_before_it_is_sent(echo_fabric: Fabric) -> None:
    with Client(echo_fabric.frontend, max_frame_bytes=1000) as client:
        with pytest.raises(InvalidArgument, match="input 'y' has 1001 bytes; max_frame_bytes allows 1000"):
            client.infer("echo", {"x": X, "y": np.zeros(1001, "u1")})
        with pytest.raises(InvalidArgument, match=r"the small inputs together have \d+ bytes"):
            client.infer("echo", {"x": X, "y": np.zeros(990, "u1")})
        client.infer("echo", {"x": X})


LIMITED = ("--max-frame-bytes", "1000000")


@pytest.mark.parametrize("nbytes", [1_000_001, 8_000_000])  # below and above what may be sent without asking
@pytest.mark.parametrize("who", ["broker", "workers", "client"])
def test_a_tensor_over_any_limit_is_refused_at_once_and_nobody_is_disconnected(who: str, nbytes: int) -> None:
    with (
        running_broker(*(LIMITED if who == "broker" else ())) as fabric,
        running_workers(fabric.backend, "--executor", "echo", *(LIMITED if who == "workers" else ())),
        Client(fabric.frontend) as client,
    ):
        eventually(client.models)
        if who == "client":
            # The reply is as large as the request; another client's limit is higher.
            client._drivers.driver.session._max_frame_bytes = 1_000_000
        start = time.monotonic()
        with pytest.raises(InvalidArgument, match=rf"a frame of {nbytes} bytes; .* 1000000 .* 268435456"):
            client.infer("echo", {"x": np.zeros(nbytes, "u1")}, timeout=20)
        assert time.monotonic() - start < 10
        if who != "broker":  # the client may know the broker's limit already
            fabric.broker.wait_for(rf"WARNING .*a frame of {nbytes} bytes")
        client.infer("echo", {"x": X}, timeout=1)
        now = client.status()
        assert now["lost_workers"] == now["requests"]["retried"] == 0


def test_the_workers_port_refuses_clients_and_says_why(echo_fabric: Fabric) -> None:
    with (
        Client(echo_fabric.backend) as client,
        pytest.raises(
            DeadlineExceeded,
            match="unexpected Request: clients connect to the broker's frontend, workers to its backend",
        ),
    ):
        client.infer("echo", {"x": X}, timeout=0.5)


def test_a_client_from_before_a_fork_is_refused(client: Client) -> None:
    client.infer("echo", {"x": X})
    child = os.fork()
    if child == 0:
        try:
            client.infer("echo", {"x": X}, timeout=1)
        except FailedPrecondition as error:
            os._exit(0 if "fork" in error.message else 3)
        except BaseException:
            os._exit(2)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    client.infer("echo", {"x": X})


def test_a_callback_that_ends_its_thread_does_not_end_the_client(client: Client) -> None:
    def leave(_: object) -> None:
        raise SystemExit

    future = client.submit("echo", {"x": np.zeros(1_000_000)})
    future.add_done_callback(leave)
    eventually(future.done)
    second = client.submit("echo", {"x": X})
    eventually(second.done)
    assert second.result()["x"].shape == X.shape


def test_closing_cancels_outstanding_calls() -> None:
    client = Client(NOBODY)
    future = client.submit("echo", {"x": X})
    waiting: list[BaseException] = []

    def call() -> None:
        try:
            client.infer("echo", {"x": X})
        except BaseException as error:
            waiting.append(error)

    thread = threading.Thread(target=call)
    thread.start()
    eventually(lambda: client._drivers.driver.session.outstanding == 2)
    client.close()
    client.close()
    thread.join(20)
    assert isinstance(waiting[0], Cancelled)
    with pytest.raises(Cancelled):
        future.result(timeout=20)
    with pytest.raises(Cancelled, match="closed"):
        client.infer("echo", {"x": X})


def test_cancelling_a_future_reaches_the_broker() -> None:
    with Client(NOBODY) as client:
        future = client.submit("echo", {"x": X})
        assert future.cancel()
        eventually(lambda: client._drivers.driver.session.outstanding == 0)
        with pytest.raises(CancelledError):
            future.result()


# --- asyncio ------------------------------------------------------------------------------------------------


def test_the_asyncio_client_does_the_same(echo_fabric: Fabric) -> None:
    async def main() -> None:
        async with AsyncClient(echo_fabric.frontend) as client:
            outputs = await client.infer("echo", {"x": X})
            np.testing.assert_array_equal(outputs["x"], X)
            results = await asyncio.gather(*(client.infer("echo", {"x": np.full(5, n)}) for n in range(200)))
            assert [int(result["x"][0]) for result in results] == list(range(200))
            place = np.zeros_like(X)
            assert (await client.infer("echo", {"x": X}, outputs={"x": place}))["x"] is place
            assert (await client.models())[0]["name"] == "echo"
            assert (await client.status())["requests"]["served"] > 200
            with pytest.raises(NotFound, match="served are"):
                await client.infer("ocr", {"x": X})
            with pytest.raises(InvalidArgument):
                await client.infer("echo", {"x": X}, timeout=-1)
        with pytest.raises(Cancelled):
            await client.infer("echo", {"x": X})

    asyncio.run(main())


def test_an_asyncio_call_without_a_broker_ends_and_can_be_cancelled() -> None:
    async def main() -> None:
        async with AsyncClient(NOBODY) as client:
            with pytest.raises(Unavailable, match="no broker"):
                await client.infer("echo", {"x": X}, timeout=0.2)
            task = asyncio.create_task(client.infer("echo", {"x": X}))
            await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert client._drivers.driver.session.outstanding == 0
            task = asyncio.create_task(client.infer("echo", {"x": X}))
            await asyncio.sleep(0)
        with pytest.raises(Cancelled):
            await task

    asyncio.run(main())


# --- the wire -----------------------------------------------------------------------------------------------


def test_an_inference_is_one_message_each_way(echo_fabric: Fabric) -> None:
    """Count messages by a relay between client and broker that forwards whole messages."""
    context: zmq.Context[Any] = zmq.Context()
    front, back = context.socket(zmq.ROUTER), context.socket(zmq.DEALER)
    counts = {"in": 0, "out": 0}
    identity = b""
    stop = threading.Event()
    front.bind("tcp://127.0.0.1:0")
    back.connect(echo_fabric.frontend)

    def relay() -> None:
        nonlocal identity
        poller = zmq.Poller()
        poller.register(front, zmq.POLLIN)
        poller.register(back, zmq.POLLIN)
        while not stop.is_set():
            ready = dict(poller.poll(50))
            if front in ready:
                identity, *frames = front.recv_multipart()
                counts["in"] += 1
                back.send_multipart(frames)
            if back in ready:
                counts["out"] += 1
                front.send_multipart([identity, *back.recv_multipart()])

    thread = threading.Thread(target=relay)
    thread.start()
    try:
        with Client(front.getsockopt_string(zmq.LAST_ENDPOINT)) as client:
            client.infer("echo", {"x": X, "y": X, "z": X})
    finally:
        stop.set()
        thread.join()
        context.destroy(linger=0)
    assert counts == {"in": 1, "out": 1}


def raw_dealer(endpoint: str) -> Any:
    socket = zmq.Context.instance().socket(zmq.DEALER)
    socket.linger = 0
    socket.rcvtimeo = 10_000
    socket.connect(endpoint)
    return socket


SESSION = b"s" * 16


@pytest.mark.parametrize(
    "frames",
    [
        [b""],
        [b"", b"", b""],
        [b"GET / HTTP/1.1\r\n\r\n"],
        [bytes([wire.VERSION]) + msgpack.packb([1, SESSION, 5, "echo", 0, 10**6, 999])],
        [bytes([wire.VERSION - 1]) + msgpack.packb([4, SESSION, []])],
        [wire.encode(wire.Heartbeat())],
        [bytes(range(256)) * 100],
    ],
)
def test_bytes_that_are_not_a_message_are_answered_with_an_error(
    echo_fabric: Fabric, client: Client, frames: Any
) -> None:
    for endpoint, expected in ((echo_fabric.frontend, wire.TO_CLIENT), (echo_fabric.backend, wire.TO_WORKER)):
        if endpoint == echo_fabric.backend and frames == [wire.encode(wire.Heartbeat())]:
            continue  # it is right there
        socket = raw_dealer(endpoint)
        socket.send_multipart(frames)
        error = wire.decode(socket.recv_multipart()[0], expected)
        assert isinstance(error, wire.Error)
        assert error.code == "INVALID_ARGUMENT"
        socket.close()
    client.infer("echo", {"x": X})


def test_the_example_of_the_protocols_description_is_a_client(echo_fabric: Fabric) -> None:
    text = (Path(__file__).parent.parent.parent / "docs" / "protocol.md").read_text()
    example = text.split("```python\n")[1].split("```")[0].replace("tcp://127.0.0.1:5555", echo_fabric.frontend)
    done = subprocess.run([sys.executable, "-c", example], capture_output=True, text=True, timeout=30, check=True)
    assert "[['x', 'FP32', [2]]] b'\\x00\\x00\\x80?\\x00\\x00\\x00@'" in done.stdout


@pytest.mark.parametrize(
    ("payload", "says"),
    [
        ([], "header is missing"),
        ([b"\0\0\0\1\xc1"], "header is not msgpack"),
        ([encode_tensors({"x": X})[0][:-43]], "needs 48 bytes, 5 are left in its frame"),
        ([encode_tensors({"x": X})[0], b"short"], "0 bytes and 1 frames more"),
        ([encode_tensors({"x": np.zeros(5000)})[0], b"short"], "needs 40000 bytes, its frame has 5"),
        ([encode_tensors({"x": np.zeros(5000)})[0]], "0 frames follow"),
    ],
)
def test_a_damaged_payload_fails_its_request(echo_fabric: Fabric, payload: list[bytes], says: str) -> None:
    socket = raw_dealer(echo_fabric.frontend)
    socket.send_multipart([wire.encode(wire.Request(SESSION, 1, "echo", 0, 10**7, 0)), *payload])
    error = wire.decode(socket.recv_multipart()[0], wire.TO_CLIENT)
    assert (error.session, error.id, error.code) == (SESSION, 1, "INVALID_ARGUMENT")
    assert says in error.text
    socket.close()


def test_a_name_that_is_too_long_in_bytes_does_not_end_the_worker(echo_fabric: Fabric, client: Client) -> None:
    header = msgpack.packb([["é" * 512, "FP32", [1]]])
    socket = raw_dealer(echo_fabric.frontend)
    for number in (1, 2):
        request = wire.encode(wire.Request(SESSION, number, "echo", 0, 10**7, 0))
        socket.send_multipart([request, with_length(header) + b"1234"])
        error = wire.decode(socket.recv_multipart()[0], wire.TO_CLIENT)
        assert (error.id, error.code) == (number, "INVALID_ARGUMENT")
    socket.close()
    assert client.status()["lost_workers"] == 0


def test_the_error_at_the_deadline_says_where_the_request_was(echo_fabric: Fabric) -> None:
    """The error is the broker's, which arrives before the client's deadline."""
    socket = raw_dealer(echo_fabric.backend)
    body = msgpack.packb([{"name": "slow", "version": 1, "inputs": [], "outputs": []}])
    socket.send_multipart([wire.encode(wire.Announce("slow-worker", 1)), body])
    with Client(echo_fabric.frontend) as client:
        eventually(lambda: any(m["name"] == "slow" for m in client.models()))
        future = client.submit("slow", {"x": X}, timeout=0.4)
        with pytest.raises(DeadlineExceeded, match="at worker slow-worker"):
            future.result(timeout=20)
    socket.send_multipart([wire.encode(wire.Goodbye())])
    socket.close()
    wait_gone(echo_fabric)


def wait_gone(fabric: Fabric) -> None:
    with Client(fabric.frontend) as client:
        eventually(lambda: [m["name"] for m in client.models()] == ["echo"])
        eventually(lambda: len(client.status()["workers"]) == 2)
