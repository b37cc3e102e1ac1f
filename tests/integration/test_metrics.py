"""The metrics of a real broker, scraped over HTTP while it serves. `tests/broker/test_metrics.py` has the series."""

from __future__ import annotations

import contextlib
import shutil
import socket
import subprocess
from collections.abc import Iterator

import numpy as np
import pytest

from tests.support.processes import Fabric, eventually, faulty_workers, running, running_broker, wait_for_workers
from tests.support.scrapes import by_values, scraped
from zmq_offload import Client
from zmq_offload.errors import NotFound, OffloadError

X = np.ones((4, 25), np.float32)


@pytest.fixture(scope="module")
def fabric() -> Iterator[tuple[Fabric, str]]:
    """A broker with its address of metrics, and two workers that die on request."""
    with (
        running_broker("--metrics", "127.0.0.1:0", "--worker-grace", "1", "--max-attempts", "1") as fabric,
        faulty_workers(fabric.backend, "--processes", "2", "--heartbeat", "0.2"),
    ):
        wait_for_workers(fabric.frontend, 2)
        yield fabric, fabric.broker.wait_for(r"metrics=(\S+)")[1]


def series(address: str) -> dict[tuple[str, frozenset[str]], float]:
    """The values by name, without the prefix, and by the values of the labels."""
    return {
        (name.removeprefix("zmq_offload_"), labels): value
        for (name, labels), value in by_values(scraped(address)).items()
    }


def test_counts_are_those_of_the_status_and_a_dead_worker_shows(fabric: tuple[Fabric, str]) -> None:
    broker, address = fabric
    with Client(broker.frontend) as client:
        for future in [client.submit("echo", {"x": X}) for _ in range(50)]:
            np.testing.assert_array_equal(future.result()["x"], X)
        with pytest.raises(OffloadError, match="lost its worker"):
            client.infer("echo", {"kill": X}, timeout=20)
        eventually(lambda: sum(worker["restarts"] for worker in client.status()["workers"]) == 1)
        with contextlib.suppress(NotFound):
            client.infer("nothing", {"x": X}, timeout=5)
        status = client.status()
        while (requests := client.status()["requests"])["outstanding"]:
            pass
    echo = frozenset({"echo", "1"})
    seen = eventually(lambda: (s := series(address))[("workers", frozenset({"ready"}))] == 2 and s)
    assert seen["requests_total", echo | {"ok"}] == requests["served"] == 50
    assert seen["requests_total", echo | {"ABORTED"}] == requests["failed"]["ABORTED"] == 1
    ended = sum(value for (name, _), value in seen.items() if name == "requests_total")
    assert ended == seen["accepted_requests_total", frozenset()] == requests["accepted"]
    refused = sum(value for (name, _), value in seen.items() if name == "refused_requests_total")
    assert refused == sum(requests["refused"].values())
    for histogram in ("queue", "compute", "request"):
        assert seen[f"{histogram}_seconds_count", echo] == 50
    assert 0 < seen["compute_seconds_sum", echo] <= seen["request_seconds_sum", echo]
    assert seen["rows_total", echo] >= 50
    assert seen["received_bytes_total", echo] >= 50 * X.nbytes <= seen["sent_bytes_total", echo]
    assert seen["outstanding_requests", echo] == seen["queued_requests", echo] == 0
    assert seen["lost_workers_total", frozenset()] == 1
    names = {worker["name"] for worker in status["workers"]}
    assert sum(seen["worker_restarts_total", frozenset({name})] for name in names) == 1
    assert {name for (key, labels), _ in seen.items() if key == "worker_slots" for name in labels} == names
    assert all(seen["worker_info", frozenset({name, "cpu"})] == 1 for name in names)
    # The new process tells with its first heartbeat.
    eventually(lambda: all(series(address)["worker_memory_bytes", frozenset({name})] > 5e6 for name in names))
    times = [slow["total"] for slow in status["slow"]]
    assert len(times) == 50 and times == sorted(times, reverse=True)


def test_promtool_has_nothing_to_say(fabric: tuple[Fabric, str]) -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("needs promtool, of the Debian package prometheus")
    text = scraped(fabric[1])
    done = subprocess.run([promtool, "check", "metrics"], input=text, text=True, capture_output=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_broker_without_the_option_serves_none() -> None:
    with running_broker() as broker:
        assert "metrics" not in broker.broker.wait_for("ready .*")[0]


def test_an_address_that_is_taken_is_an_error_and_nothing_listens() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        ports = ["--frontend", "tcp://127.0.0.1:0", "--backend", "tcp://127.0.0.1:0"]
        with running("-m", "broker", *ports, "--metrics", address) as broker:
            assert broker.wait() == 1
            assert broker.lines[-1].endswith(
                f"cannot listen at {address}: Address already in use; choose another address with --metrics"
            )


@pytest.mark.parametrize(
    ("address", "code", "words"),
    [
        ("0.0.0.0:9464", 1, "tcp://0.0.0.0:9464 can be reached from other machines without keys; serve metrics at"),
        ("9464", 2, "use HOST:PORT"),
        ("http://127.0.0.1:9464", 2, "use HOST:PORT"),
    ],
)
def test_an_address_that_is_not_safe_or_none_is_refused(address: str, code: int, words: str) -> None:
    with running("-m", "broker", "--metrics", address) as broker:
        assert broker.wait() == code
        assert words in broker.lines[-1]
