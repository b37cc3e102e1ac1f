"""The metrics of a real gateway, scraped over HTTP. `tests/gateway/test_metrics.py` has the series."""

from __future__ import annotations

import shutil
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator

import numpy as np
import pytest

from tests.support.gateway_traffic import Failed, GrpcCaller, HttpCaller, Refused
from tests.support.processes import (
    Gateway,
    eventually,
    running,
    running_broker,
    running_gateway,
    running_gateway_with_broker,
    running_workers,
    wait_for_workers,
)
from tests.support.scrapes import by_values, scraped
from zmq_offload.gateway.config import parse

X = np.ones((2, 50))
METRICS = ("--metrics", "127.0.0.1:0")


@pytest.fixture(scope="module")
def both() -> Iterator[tuple[Gateway, str]]:
    """A gateway with a broker in its process, an echo worker, and the address of the metrics."""
    with (
        running_gateway_with_broker(*METRICS, "--triton-metrics", "on") as (gateway, fabric),
        running_workers(fabric.backend, "--executor", "echo"),
    ):
        wait_for_workers(fabric.frontend, 1)
        yield gateway, gateway.process.wait_for(r"metrics=(\S+)")[1]


def series(address: str) -> dict[tuple[str, frozenset[str]], float]:
    return by_values(scraped(address))


def test_gateway_and_broker_are_in_one_scrape_and_agree(both: tuple[Gateway, str]) -> None:
    gateway, address = both
    over_http, over_grpc = HttpCaller(gateway.http), GrpcCaller(gateway.grpc)
    for caller, times in ((over_http, 20), (over_grpc, 10)):
        for _ in range(times):
            assert np.array_equal(caller.call(X, 10.0), X.ravel())
    with pytest.raises((Refused, Failed)):
        over_http.call(X, 1e-6)
    echo = frozenset({"echo", "1"})
    name = "zmq_offload_gateway_{}".format
    late = (name("requests_total"), echo | {"http", "DEADLINE_EXCEEDED"})
    seen = eventually(lambda: (found := series(address)).get(late) and found)
    assert seen[late] == 1
    assert seen[name("requests_total"), echo | {"http", "ok"}] == 20
    assert seen[name("requests_total"), echo | {"grpc", "ok"}] == 10
    assert seen["zmq_offload_requests_total", echo | {"ok"}] == 30
    assert seen[name("request_seconds_count"), echo] == seen["zmq_offload_request_seconds_count", echo] == 30
    assert seen[name("request_seconds_sum"), echo] >= seen["zmq_offload_request_seconds_sum", echo] > 0
    assert 0 < seen[name("compute_seconds_total"), echo] <= seen[name("request_seconds_sum"), echo]
    assert seen[name("rows_total"), echo] == 60
    assert seen[name("received_bytes_total"), echo] >= 31 * X.nbytes
    assert seen[name("sent_bytes_total"), echo] >= 30 * X.nbytes
    assert seen[name("connections"), frozenset({"http"})] == seen[name("connections"), frozenset({"grpc"})] == 1
    assert seen[name("outstanding_requests"), frozenset()] == 0
    assert seen[name("broker_up"), frozenset()] == 1
    over_http.close()
    over_grpc.close()
    eventually(lambda: series(address)[name("connections"), frozenset({"grpc"})] == 0)
    assert seen["nv_inference_request_success", echo] == 30 and seen["nv_inference_pending_request_count", echo] == 0
    eventually(lambda: series(address)["nv_inference_count", echo] == 60)  # once a list says that it has a batch
    assert seen["nv_inference_request_failure", echo | {"REJECTED"}] == 1
    assert seen["nv_inference_request_duration_us", echo] > seen["nv_inference_compute_infer_duration_us", echo] > 0


def test_promtool_finds_only_what_tritons_names_are_like(both: tuple[Gateway, str]) -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("needs promtool, of the Debian package prometheus")
    text = scraped(both[1])
    done = subprocess.run([promtool, "check", "metrics"], input=text, text=True, capture_output=True, check=False)
    complaints = (done.stdout + done.stderr).splitlines()
    assert complaints and all(line.startswith("nv_") for line in complaints)


def test_a_gateway_alone_tells_whether_its_broker_answers() -> None:
    with running_broker() as broker, running_gateway(broker.frontend, options=METRICS) as gateway:
        address = gateway.process.wait_for(r"metrics=(\S+)")[1]
        up = ("zmq_offload_gateway_broker_up", frozenset[str]())
        eventually(lambda: series(address)[up] == 1)
        assert not [name for name, _ in series(address) if name.startswith("nv_") or name == "zmq_offload_workers"]
        with pytest.raises(urllib.error.HTTPError, match="404"):  # nor has it the dashboard
            urllib.request.urlopen(f"{gateway.url}/dashboard", timeout=10)


def test_metrics_of_a_broker_alone_are_not_those_of_a_gateway_with_one() -> None:
    with running_gateway_with_broker(ZMQ_OFFLOAD_METRICS="127.0.0.1:9464") as (gateway, _):
        gateway.process.wait_for("metrics at 127.0.0.1:9464 are for a broker of its own, and not served; a gateway")
        assert "metrics=" not in gateway.process.wait_for("^ready")[0]


def test_metrics_are_not_shown_to_a_network_without_leave() -> None:
    with running("-m", "zmq_offload.gateway", "--metrics", "0.0.0.0:9465") as process:
        process.wait_for(
            "0.0.0.0:9465 can be reached from other machines, and metrics have no tokens; serve them at 127"
        )
        assert process.wait() == 1


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--triton-metrics", "on"], "--triton-metrics on without --metrics; say at which HOST:PORT"),
        (["--triton-metrics", "yes"], "on or off"),
        (["--metrics", "9465"], "use HOST:PORT"),
    ],
)
def test_wrong_options_are_refused(options: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse(options)
    assert said in " ".join(capsys.readouterr().err.split())


def test_without_the_option_there_are_none() -> None:
    assert parse([]).metrics == "none"
