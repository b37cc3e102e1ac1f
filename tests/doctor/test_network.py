"""What the doctor makes of ports and of a broker's answer."""

from __future__ import annotations

import socket
from typing import Any

import pytest

from zmq_offload.doctor.checks.findings import Level
from zmq_offload.doctor.checks.network import Broker, Port, Speaks, check_broker, check_port
from zmq_offload.doctor.facts import network
from zmq_offload.protocol.messages import VERSION

AT = "tcp://h:5555"


@pytest.mark.parametrize(
    ("port", "level", "text", "remedy"),
    [
        (Port("--frontend", AT, Speaks.NOTHING), Level.OK, f"{AT} is free (--frontend)", ""),
        (Port("--frontend", AT, Speaks.ZEROMQ), Level.OK, "speaks ZeroMQ: a broker's frontend", ""),
        (Port("--grpc", "h:1", Speaks.HTTP2), Level.OK, "speaks HTTP/2: a gateway", ""),
        (Port("--http", "h:1", Speaks.HTTP), Level.FAIL, "another program listens at h:1 (--http): it speaks HTTP",
         "end it (`ss -ltnp 'sport = :1'` shows it), or use another port by --http"),
        (Port("--backend", AT, Speaks.NOTHING, "Permission denied"), Level.FAIL,
         f"nobody can listen at {AT}: Permission denied", "a port from 1024, by --backend"),
    ],
)  # fmt: skip
def test_ports(port: Port, level: Level, text: str, remedy: str) -> None:
    finding = check_port(port)
    assert finding.level is level and text in finding.text and remedy in finding.remedy


def silent(speaks: Speaks = Speaks.ZEROMQ, **more: Any) -> Broker:
    return Broker(AT, Port("--broker", AT, speaks), more.pop("keyed", False), None, "why", **more)


@pytest.mark.parametrize(
    ("broker", "text", "remedy"),
    [
        (silent(Speaks.NOTHING), f"nothing listens at {AT}", "zmq-offload broker"),
        (silent(Speaks.HTTP), "is no broker: it speaks HTTP", "--broker or ZMQ_OFFLOAD_FRONTEND"),
        (silent(speaks_version=2), f"speaks protocol version 2, this is version {VERSION}", "the same release"),
        (silent(keyed=True), "wants keys, and none are given here", "ZMQ_OFFLOAD_CLIENT_KEY"),
        (silent(has_keys=True), "has no keys, and some are given here", "start the broker with --server-key"),
        (silent(keyed=True, has_keys=True), "does not accept this client's key: why", "keys authorize NAME.key"),
        (silent(), f"no broker answers at {AT}, and a program that speaks ZeroMQ listens there: why", "frontend"),
    ],
)
def test_a_broker_that_does_not_answer(broker: Broker, text: str, remedy: str) -> None:
    (finding,) = check_broker(broker)
    assert finding.level is Level.FAIL and text in finding.text and remedy in finding.remedy


def answer(**more: Any) -> Broker:
    status = {"uptime": 5.0, "stopping": False, "workers": [], "models": [], "queues": [], **more}
    return Broker(AT, Port("--broker", AT, Speaks.ZEROMQ), False, status)


WORKER = {"name": "w", "state": "ready"}
MODEL = {"name": "m", "version": 1}


@pytest.mark.parametrize(
    ("broker", "text", "remedy"),
    [
        (answer(), "no worker is connected", "zmq-offload worker"),
        (answer(workers=[WORKER]), "serve no model", "doctor --repository"),
        (answer(workers=[WORKER], models=[MODEL], stopping=True), "is stopping", "another one"),
        (answer(workers=[{"name": "w", "state": "quiet"}], models=[MODEL]), "hears nothing of w", "network"),
        (answer(workers=[WORKER], models=[MODEL], queues=[{"model": "n"}]), "no worker serves: n", "deploy them"),
    ],
)
def test_a_broker_that_cannot_serve(broker: Broker, text: str, remedy: str) -> None:
    first, second = check_broker(broker)
    assert first.level is Level.OK and second.level is Level.WARNING
    assert text in second.text and remedy in second.remedy


def test_a_broker_that_serves() -> None:
    (finding,) = check_broker(answer(workers=[WORKER], models=[MODEL]))
    assert finding.text.endswith(f"protocol version {VERSION}, up 5 s: 1 worker, 1 version of models")


def test_what_listens_is_found_out(tmp_path: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        taken = other.getsockname()[1]
        other.close()
        assert network.port("--http", f"127.0.0.1:{taken}") == Port("--http", f"127.0.0.1:{taken}", Speaks.NOTHING)
    assert network.port("--http", "192.0.2.1:80").error == "Cannot assign requested address"
    assert network.port("--backend", f"ipc://{tmp_path}/none/b").error == f"{tmp_path}/none is not a folder"
    assert network.port("--backend", f"ipc://{tmp_path}/b") == Port("--backend", f"ipc://{tmp_path}/b", Speaks.NOTHING)
