"""`zmq-offload doctor`, with real programs at the ports."""

from __future__ import annotations

import functools
import json
import socket
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
import zmq

from tests.console.test_progress import Terminal, plain
from tests.support.processes import running_broker, running_gateway_with_broker, running_workers, wait_for_workers
from zmq_offload.cli.main import main
from zmq_offload.doctor import examine
from zmq_offload.doctor.facts import network
from zmq_offload.doctor.facts.installation import installation
from zmq_offload.net.grants import Grant
from zmq_offload.net.keylist import authorize
from zmq_offload.net.keys import new_keys, read_public
from zmq_offload.telemetry.server import MetricsServer

INSTALLATION = functools.cache(installation)
FREE = ["--frontend", "tcp://127.0.0.1:0", "--backend", "tcp://127.0.0.1:0", "--http", "none", "--grpc", "none"]


@pytest.fixture(autouse=True)
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a folder of its own, with little patience for programs that say nothing, and packages looked at once."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(examine, "installation", INSTALLATION)
    monkeypatch.setattr(network, "_PATIENCE", 0.2)


def doctor(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    code = main(["doctor", *arguments])
    return code, capsys.readouterr().out


def test_a_fabric_that_works(capsys: pytest.CaptureFixture[str]) -> None:
    with running_gateway_with_broker() as (gateway, fabric), running_workers(fabric.backend, "--executor", "echo"):
        wait_for_workers(fabric.frontend, 1)
        ports = ["--frontend", fabric.frontend, "--backend", fabric.backend]
        code, shown = doctor(capsys, *ports, "--http", gateway.http, "--grpc", gateway.grpc, "--json")
    findings = json.loads(shown)
    assert code == 0, [finding for finding in findings if finding["level"] == "fail"]
    ports = [finding for finding in findings if finding["check"] == "ports"]
    assert [finding["level"] for finding in ports] == ["ok"] * 4
    assert "speaks HTTP as a gateway does" in ports[2]["text"] and "speaks HTTP/2" in ports[3]["text"]
    assert findings[-1]["check"] == "broker" and "1 worker, 1 version of models" in findings[-1]["text"]


def test_a_broker_without_workers_and_one_asked_at_its_backend(capsys: pytest.CaptureFixture[str]) -> None:
    with running_broker() as fabric:
        code, shown = doctor(capsys, *FREE, "--broker", fabric.frontend)
        assert code == 0 and "no worker is connected" in shown and "0 failures, 1 warning" in shown
        code, shown = doctor(capsys, *FREE, "--broker", fabric.backend, "--timeout", "0.2")
        assert code == 1 and "use the broker's frontend (port 5555 by default), not its backend" in shown


def test_a_broker_of_another_version(capsys: pytest.CaptureFixture[str]) -> None:
    """It answers only messages that begin with its own version."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    with context.socket(zmq.ROUTER) as old:
        port = old.bind_to_random_port("tcp://127.0.0.1")

        def serve() -> None:
            while old.poll(5000):
                peer, message = old.recv_multipart()[:2]
                if message[:1] == b"\2":
                    old.send_multipart([peer, b"\2"])
                    return

        thread = threading.Thread(target=serve)
        thread.start()
        code, shown = doctor(capsys, *FREE, "--broker", f"tcp://127.0.0.1:{port}", "--timeout", "0.5")
        thread.join()
    context.term()
    assert code == 1 and "speaks protocol version 2, this is version" in shown


def test_another_program_at_a_port(capsys: pytest.CaptureFixture[str]) -> None:
    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None: ...

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        at = f"127.0.0.1:{server.server_port}"
        code, shown = doctor(capsys, *FREE[:4], "--http", at, "--grpc", "none")
        server.shutdown()
        thread.join()
    assert code == 1
    assert f"another program listens at {at} (--http): it speaks HTTP\n" in shown


def test_ports_of_metrics(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        served, taken = MetricsServer("127.0.0.1:0"), f"127.0.0.1:{silent.getsockname()[1]}"
        monkeypatch.setenv("ZMQ_OFFLOAD_METRICS", served.address)
        code, shown = doctor(capsys, *FREE, "--gateway-metrics", taken)
        served.close()
    assert code == 1
    assert f"{served.address} speaks HTTP as our metrics do: a program's metrics (--broker-metrics)" in shown
    assert f"another program listens at {taken} (--gateway-metrics)" in shown


def test_a_port_where_nothing_is_and_a_repository_that_is_missing(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
    code, shown = doctor(capsys, *FREE, "--broker", f"tcp://127.0.0.1:{port}", "--repository", "none")
    assert code == 1
    assert (
        f"nothing listens at tcp://127.0.0.1:{port}" in shown and "FAIL    repository    none does not exist" in shown
    )
    assert shown.endswith("2 failures, 0 warnings\n")


def test_at_a_terminal_findings_are_in_color(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr("sys.stdout", terminal)
    assert main(["doctor", *FREE, "--repository", "none"]) == 1
    monkeypatch.undo()
    assert "\x1b[1;31mFAIL" in terminal.getvalue()
    shown = plain(terminal.getvalue())
    assert "-> name the right folder by --repository" in shown
    assert max(map(len, shown.splitlines())) <= 80


@pytest.mark.parametrize("alone", [["--tls-cert", "x"], ["--client-key", "x"]])
def test_half_a_pair_is_wrong_usage(alone: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["doctor", *alone])
    assert "give all of them or none" in capsys.readouterr().err


def test_a_broker_with_keys(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    public, secret = new_keys("broker", tmp_path)
    mine, own = new_keys("camera", tmp_path)
    _, strange = new_keys("stranger", tmp_path)
    clients, workers = tmp_path / "clients", tmp_path / "workers"
    authorize(clients, read_public(mine), Grant("camera"))
    workers.write_text("")
    broker = ["--server-key", str(secret), "--authorized-clients", str(clients), "--authorized-workers", str(workers)]
    with running_broker(*broker) as fabric:
        ask = [*FREE, "--broker", fabric.frontend]
        code, shown = doctor(capsys, *ask, *broker, "--client-key", str(own), "--broker-key", str(public))
        assert code == 0 and "answers in protocol version" in shown and "has no key, so nobody may connect" in shown
        ask += ["--timeout", "0.3"]  # nothing else is answered
        code, shown = doctor(capsys, *ask)
        assert code == 1 and f"the broker at {fabric.frontend} wants keys, and none are given here" in shown
        code, shown = doctor(capsys, *ask, *broker, "--client-key", str(strange), "--broker-key", str(public))
        assert code == 1 and "does not accept this client's key" in shown
        assert f"zmq-offload keys authorize {tmp_path}/stranger.key --list {clients}" in shown
        code, shown = doctor(capsys, *ask, "--client-key", str(own), "--broker-key", str(mine))
        assert code == 1 and "check ZMQ_OFFLOAD_BROKER_KEY" in shown
    with running_broker() as fabric:
        keys = ["--client-key", str(own), "--broker-key", str(public)]
        code, shown = doctor(capsys, *FREE, "--broker", fabric.frontend, "--timeout", "0.3", *keys)
        assert code == 1 and "has no keys, and some are given here" in shown


def test_the_file_of_the_programs_options_is_taken(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "fabric.toml"
    file.write_text(
        'max_connections = 7\n[broker]\nfrontend = "tcp://127.0.0.1:0"\nbackend = "tcp://127.0.0.1:0"\npatience = 3\n'
        '[worker]\nrepository = "models"\nbroker = "tcp://nowhere:1"\n'
        '[gateway]\nhttp = "none"\ngrpc = "none"\ntimeout = 1\n'
    )
    code, shown = doctor(capsys, "--config", str(file))
    assert code == 1 and f"{tmp_path}/models does not exist" in shown
    assert "tcp://127.0.0.1:0 is free (--frontend)" in shown and "127.0.0.1:8000" not in shown
    assert "broker        none runs here" in shown, "a worker's --broker is another one"
    file.write_text("[broker\n")
    with pytest.raises(SystemExit, match="2"):
        main(["doctor", "--config", str(file)])
    assert "not TOML" in capsys.readouterr().err
