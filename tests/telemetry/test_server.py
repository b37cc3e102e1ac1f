"""The server of metrics, with clients that behave and clients that do not."""

from __future__ import annotations

import logging
import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator

import pytest

from tests.support.scrapes import samples, scraped
from zmq_offload.errors import FailedPrecondition
from zmq_offload.telemetry import process, server
from zmq_offload.telemetry.exposition import Family
from zmq_offload.telemetry.server import MOST_CONNECTIONS, MetricsServer

GET = b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n"


class Source:
    """A family with a number of series. Its value is how often it was asked for."""

    def __init__(self, series: int = 1, more: str = "") -> None:
        self.asked = 0
        self.series, self.more = series, more
        self.error: Exception | None = None

    def families(self) -> Iterator[Family]:
        self.asked += 1
        if self.error is not None:
            raise self.error
        family = Family("zmq_offload_asked", "gauge", "How often this was asked for.")
        for number in range(self.series):
            family.add(self.asked, {"number": f"{number}{self.more}"})
        yield family


@pytest.fixture
def source() -> Source:
    return Source()


@pytest.fixture
def serving(source: Source) -> Iterator[MetricsServer]:
    before = threading.active_count()
    served = MetricsServer("127.0.0.1:0", source.families, process.families)
    yield served
    served.close()
    assert threading.active_count() == before


def connected(serving: MetricsServer) -> socket.socket:
    host, _, port = serving.address.rpartition(":")
    return socket.create_connection((host, int(port)), 10)


def read_all(connection: socket.socket) -> bytes:
    parts = []
    while part := connection.recv(65536):
        parts.append(part)
    return b"".join(parts)


def test_it_serves_all_sources_one_after_the_other(serving: MetricsServer) -> None:
    found = samples(scraped(serving.address))
    assert [name for name, _ in found][:2] == ["zmq_offload_asked", "zmq_offload_build_info"]
    assert found["process_open_fds", ()] > 3
    assert found["process_resident_memory_bytes", ()] > 1e6
    assert found["process_cpu_seconds_total", ()] > 0
    assert time.time() - 24 * 3600 < found["process_start_time_seconds", ()] <= time.time()


def test_without_proc_the_process_is_told_as_far_as_possible(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*_: object) -> None:
        raise FileNotFoundError

    monkeypatch.setattr(process.Path, "read_text", unknown)
    monkeypatch.setattr(process.os, "listdir", unknown)
    families = {family.name: list(family.lines()) for family in process.families()}
    assert families["process_open_fds"][-1] == "process_open_fds 0"
    assert "process_start_time_seconds" in families


def test_other_paths_are_not_found(serving: MetricsServer) -> None:
    with pytest.raises(urllib.error.HTTPError, match="404"):
        urllib.request.urlopen(f"http://{serving.address}/", timeout=10)


def test_a_request_may_come_in_pieces(serving: MetricsServer) -> None:
    with connected(serving) as connection:
        for at in range(0, len(GET), 5):
            connection.sendall(GET[at : at + 5])
            time.sleep(0.002)
        assert b"zmq_offload_asked" in read_all(connection)


def test_scrapes_within_a_moment_get_the_same_text(serving: MetricsServer, source: Source) -> None:
    start = time.monotonic()
    texts = {scraped(serving.address).partition("# HELP zmq_offload_build_info")[0] for _ in range(20)}
    assert source.asked == len(texts) <= 1 + (time.monotonic() - start) / 0.25


def test_a_failure_is_an_error_of_the_server_and_the_next_scrape_works(
    serving: MetricsServer, source: Source, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "_FRESH", 0.0)
    source.error = RuntimeError("it is broken")
    with caplog.at_level(logging.ERROR), pytest.raises(urllib.error.HTTPError, match="500"):
        scraped(serving.address)
    assert "it is broken" in caplog.text
    source.error = None
    assert "zmq_offload_asked" in scraped(serving.address)


def test_silent_clients_keep_nobody_out(serving: MetricsServer) -> None:
    silent = [connected(serving) for _ in range(3 * MOST_CONNECTIONS)]
    assert "zmq_offload_asked" in scraped(serving.address)
    assert len(serving._connections) <= MOST_CONNECTIONS
    for connection in silent:
        connection.close()


def test_a_client_that_is_silent_or_does_not_read_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "PATIENCE", 0.2)
    served = MetricsServer("127.0.0.1:0", Source(8_000, "x" * 2000).families)
    try:
        with connected(served) as silent, connected(served) as deaf:
            deaf.sendall(GET)
            assert silent.recv(1) == b""
            end = time.monotonic() + 10
            while served._connections and time.monotonic() < end:
                time.sleep(0.01)
            assert not served._connections
    finally:
        served.close()


def test_a_large_text_arrives_whole() -> None:
    served = MetricsServer("127.0.0.1:0", Source(50_000).families)
    try:
        assert scraped(served.address).count("\n") == 50_002
    finally:
        served.close()


def test_bytes_that_are_no_request_are_answered(serving: MetricsServer) -> None:
    for sent, status in ((b"\0" * 100 + b"\r\n\r\n", b" 400 "), (b"x" * 20_000, b" 431 ")):
        with connected(serving) as connection:
            connection.sendall(sent)
            assert status in read_all(connection)[:20]


def test_a_client_that_leaves_harms_nobody(serving: MetricsServer) -> None:
    for sent in (b"", b"GET", GET):
        connection = connected(serving)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")  # closes by a reset
        connection.sendall(sent)
        connection.close()
    assert "zmq_offload_asked" in scraped(serving.address)


def test_an_address_that_is_taken(serving: MetricsServer) -> None:
    with pytest.raises(FailedPrecondition, match=r"cannot listen at 127\.0\.0\.1:.* in use; choose another address"):
        MetricsServer(serving.address)


def test_ipv6_and_names() -> None:
    for address, expected in (("[::1]:0", "[::1]:"), ("localhost:0", "127.0.0.1:"), ("*:0", "0.0.0.0:")):
        served = MetricsServer(address)
        assert served.address.startswith(expected)
        served.close()
