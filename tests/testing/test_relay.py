"""The emulated link's relay with real sockets, and the fabric's client through it."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from tests.support.processes import eventually, running_broker, running_workers
from zmq_offload import Client
from zmq_offload.errors import DeadlineExceeded, FailedPrecondition, InvalidArgument, OffloadError, Unavailable
from zmq_offload.testing.link import Link, Outage


@contextmanager
def server() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.settimeout(20)
        yield listening


def endpoint(listening: socket.socket) -> str:
    return f"tcp://127.0.0.1:{listening.getsockname()[1]}"


def dial(link: Link) -> socket.socket:
    return socket.create_connection(("127.0.0.1", int(link.endpoint.rpartition(":")[2])), timeout=20)


def read(end: socket.socket, size: int) -> bytes:
    found = b""
    while len(found) < size and (more := end.recv(size - len(found))):
        found += more
    return found


def test_bytes_arrive_whole_and_in_order_not_before_their_time_and_so_does_the_end() -> None:
    data = np.random.default_rng(0).bytes(1_000_000)
    with (
        server() as listening,
        Link(endpoint(listening), bandwidth="80Mbit", rtt="40ms", jitter="20ms") as link,
        dial(link) as near,
        listening.accept()[0] as far,
    ):
        began = time.monotonic()
        sender = threading.Thread(target=lambda: (near.sendall(data), near.shutdown(socket.SHUT_WR)))
        sender.start()
        assert read(far, len(data) + 1) == data
        # 0.1 s for the bandwidth and at least 10 of 20 ms for the delay: a lower bound on any machine
        assert time.monotonic() - began > 0.108
        sender.join()
        far.sendall(b"still here")
        assert read(near, 10) == b"still here"


def test_a_receiver_that_does_not_read_holds_its_sender_back() -> None:
    with server() as listening, Link(endpoint(listening)) as link, dial(link) as near, listening.accept()[0] as far:
        near.setblocking(False)
        sent = 0
        quiet = time.monotonic() + 1.0
        while time.monotonic() < quiet:
            try:
                sent += near.send(bytes(1 << 20))
                quiet = time.monotonic() + 0.5
            except BlockingIOError:
                time.sleep(0.01)
            assert sent < 64 << 20, "the relay takes all it is given"
        near.settimeout(20)
        near.shutdown(socket.SHUT_WR)
        far.settimeout(20)
        assert len(read(far, sent + 1)) == sent


def test_a_receiver_that_does_not_read_does_not_delay_others() -> None:
    with server() as listening, Link(endpoint(listening)) as link, dial(link) as stuck, listening.accept()[0]:
        stuck.settimeout(0.5)
        with pytest.raises(TimeoutError):
            stuck.sendall(bytes(64 << 20))
        with dial(link) as near, listening.accept()[0] as far:
            near.sendall(b"hello")
            assert read(far, 5) == b"hello"


def test_a_stall_keeps_connections_and_their_bytes() -> None:
    with server() as listening, Link(endpoint(listening)) as link, dial(link) as near, listening.accept()[0] as far:
        link.cut()
        near.sendall(b"during")
        far.settimeout(0.2)
        with pytest.raises(TimeoutError):
            far.recv(1)
        link.restore()
        far.settimeout(20)
        assert read(far, 6) == b"during"


def test_an_outage_can_refuse_connections_and_the_port_stays_the_links() -> None:
    with server() as listening, Link(endpoint(listening)) as link, dial(link) as near, listening.accept()[0] as far:
        link.refuse()
        for end in (near, far):
            with pytest.raises(ConnectionResetError):
                end.recv(1)
        with pytest.raises(ConnectionRefusedError):
            dial(link)
        link.restore()
        with dial(link) as near, listening.accept()[0] as far:
            near.sendall(b"again")
            assert read(far, 5) == b"again"


def test_outages_begin_and_end_at_their_times() -> None:
    began = time.monotonic()
    with server() as listening, Link(endpoint(listening), outages=[Outage(0.0, 1.0)]) as link, dial(link) as near:
        near.sendall(b"x")
        with listening.accept()[0] as far:
            assert read(far, 1) == b"x"
    assert time.monotonic() - began > 1.0  # the outage starts after the link is made


def test_conditions_can_change() -> None:
    with server() as listening, Link(endpoint(listening)) as link, dial(link) as near, listening.accept()[0] as far:
        link.change(rtt="400ms")
        began = time.monotonic()
        near.sendall(b"x")
        assert read(far, 1) == b"x"
        assert time.monotonic() - began > 0.19
        with pytest.raises(InvalidArgument, match="did you mean 10ms"):
            link.change(rtt="10")


def test_a_link_follows_a_trace(tmp_path: Path) -> None:
    """A second of one round trip and bandwidth, a second of nothing, then slow in one direction only."""
    trace = tmp_path / "trace.csv"
    trace.write_text("seconds,up,down,delay,stall\n0,800,800,10,0\n1,800,800,10,1\n2,0.8,800,1,0\n60,1,1,1,0\n")
    with server() as listening, Link(endpoint(listening), trace=str(trace)) as link:
        began = time.monotonic()
        with dial(link) as near, listening.accept()[0] as far:
            near.sendall(b"x")
            assert read(far, 1) == b"x"
            assert time.monotonic() - began > 0.01
            eventually(lambda: time.monotonic() - began > 1.1, 5)
            near.sendall(b"y")
            assert read(far, 1) == b"y"
            assert time.monotonic() - began > 1.9, "nothing passed before"
            up = time.monotonic()
            near.sendall(bytes(10_000))
            read(far, 10_000)
            down = time.monotonic()
            far.sendall(bytes(10_000))
            read(near, 10_000)
            assert down - up > 0.07, "0.1 s for the bandwidth, less what is read at a time"
            assert time.monotonic() - down < down - up


def test_a_trace_that_is_unknown_or_says_less_than_it_should_is_refused() -> None:
    with pytest.raises(InvalidArgument, match="trace 'tram' is unknown"):
        Link("tcp://127.0.0.1:1", trace="tram")
    with pytest.raises(InvalidArgument, match="rtt is given together with a trace"):
        Link("tcp://127.0.0.1:1", trace="train", rtt="1ms")


def test_a_missing_target_resets_the_connection() -> None:
    with server() as listening:
        nobody = endpoint(listening)
    # The reset may arrive before or after the client's connect returns.
    with Link(nobody) as link, pytest.raises(ConnectionResetError), dial(link) as near:
        near.recv(1)


def test_a_link_that_is_closed_or_impossible_says_so() -> None:
    with server() as listening:
        link = Link(endpoint(listening))
        link.close()
        link.close()
        with pytest.raises(FailedPrecondition, match="the link is closed"):
            link.cut()
        with pytest.raises(FailedPrecondition, match=r"cannot listen at 127\.0\.0\.1:\d+: Address already in use"):
            Link(endpoint(listening), listen=endpoint(listening))
    for to, says in (("ipc:///tmp/x", "is not a TCP endpoint"), ("tcp://x", r"use tcp://HOST:PORT")):
        with pytest.raises(InvalidArgument, match=says):
            Link(to)


def test_the_command_refuses_a_bandwidth_without_a_unit() -> None:
    command = [sys.executable, "-m", "zmq_offload", "link", "--to", "tcp://127.0.0.1:1", "--bandwidth", "50"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].endswith("bandwidth '50' has no unit; did you mean 50Mbit?")


def test_requests_survive_both_kinds_of_outage() -> None:
    x = np.arange(10_000, dtype=np.float32)
    with (
        running_broker() as fabric,
        running_workers(fabric.backend, "--executor", "echo"),
        Link(fabric.frontend, bandwidth="100Mbit", rtt="10ms") as link,
        Client(link.endpoint) as client,
    ):

        def works() -> bool:
            try:
                return bool((client.infer("echo", {"x": x}, timeout=2.0)["x"] == x).all())
            except OffloadError:
                return False

        eventually(works)
        # 40,000 bytes each way at 100 Mbit, and 10 ms: a lower bound on any machine.
        assert client.infer("echo", {"x": x}).timings.total > 0.015
        link.cut()
        with pytest.raises((DeadlineExceeded, Unavailable)):
            client.infer("echo", {"x": x}, timeout=0.3)
        waiting = client.submit("echo", {"x": x}, timeout=20.0)
        link.restore()
        assert (waiting.result(20)["x"] == x).all()
        link.refuse()
        with pytest.raises((DeadlineExceeded, Unavailable)):
            client.infer("echo", {"x": x}, timeout=0.3)
        link.restore()
        eventually(works)
