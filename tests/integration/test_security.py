"""Keys on both sockets, with real processes: who is accepted, which errors others get, and what stays protected."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zmq

from tests.support.processes import Process, eventually, running, running_broker, running_gateway, running_workers
from zmq_offload import AsyncClient, Client
from zmq_offload.cli.main import main
from zmq_offload.errors import OffloadError, PermissionDenied, Unauthenticated, Unavailable
from zmq_offload.net.keys import read_pair, read_public
from zmq_offload.protocol import messages as wire
from zmq_offload.protocol.payload import encode_tensors

X = np.arange(10.0)
PEOPLE = ("broker", "stranger", "alice", "bob", "worker")


class Site:
    """A broker and a worker with keys, and users with theirs."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name in PEOPLE:
            assert main(["keys", "new", name, "--directory", str(folder)]) == 0
        self.clients, self.workers = folder / "clients", folder / "workers"
        self.authorize("alice")
        self.authorize("bob", "--models", "other")
        assert main(["keys", "authorize", self.path("worker"), "--list", str(self.workers)]) == 0
        self.frontend = self.backend = ""

    def path(self, name: str, kind: str = "key") -> str:
        return str(self.folder / f"{name}.{kind}")

    def authorize(self, name: str, *options: str) -> None:
        assert main(["keys", "authorize", self.path(name), "--list", str(self.clients), *options]) == 0

    def revoke(self, name: str, whose: Path) -> None:
        assert main(["keys", "revoke", name, "--list", str(whose)]) == 0

    @property
    def options(self) -> list[str]:
        lists = ["--authorized-clients", str(self.clients), "--authorized-workers", str(self.workers)]
        return ["--server-key", self.path("broker", "key_secret"), *lists]

    def client(self, name: str, *, broker: str = "broker", timeout: float = 10) -> Client:
        secret = self.path(name, "key_secret")
        return Client(self.frontend, key=secret, broker_key=self.path(broker), timeout=timeout)


@contextmanager
def served(folder: Path) -> Iterator[Site]:
    site = Site(folder)
    with running_broker(*site.options, "--heartbeat", "0.3") as broker:
        site.frontend, site.backend = broker.frontend, broker.backend
        keys = ("--worker-key", site.path("worker", "key_secret"), "--broker-key", site.path("broker"))
        with running_workers(broker.backend, "--executor", "echo", "--drain", "1", *keys, "--patience", "1"):
            with site.client("alice") as client:
                eventually(lambda: len(client.status()["workers"]) == 1)
            yield site


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A site whose lists are not to be changed."""
    with served(tmp_path_factory.mktemp("site")) as site:
        yield site


@pytest.fixture
def fresh_site(tmp_path: Path) -> Iterator[Site]:
    """A site of the test's own."""
    with served(tmp_path) as site:
        yield site


def test_an_authorized_client_is_served(site: Site) -> None:
    with site.client("alice") as client:
        np.testing.assert_array_equal(client.infer("echo", {"x": X})["x"], X)

    async def infer() -> None:
        key = site.path("alice", "key_secret")
        async with AsyncClient(site.frontend, key=key, broker_key=site.path("broker")) as client:
            np.testing.assert_array_equal((await client.infer("echo", {"x": X}))["x"], X)

    asyncio.run(infer())


def test_a_gateway_with_a_key_serves_what_its_key_is_for(site: Site) -> None:
    def infer(name: str) -> tuple[int, dict[str, Any]]:
        options = ["--client-key", site.path(name, "key_secret"), "--broker-key", site.path("broker")]
        with running_gateway(site.frontend, options=options) as gateway:
            tensor = {"name": "x", "datatype": "FP32", "shape": [2], "data": [1, 2]}
            connection = http.client.HTTPConnection(gateway.http, timeout=20)
            connection.request("POST", "/v2/models/echo/infer", json.dumps({"inputs": [tensor]}))
            with contextlib.closing(connection), connection.getresponse() as answer:
                return answer.status, json.load(answer)

    status, body = infer("alice")
    assert (status, body["outputs"][0]["data"]) == (200, [1.0, 2.0])
    status, body = infer("bob")
    assert status == 403 and "this key is not for model 'echo'" in body["error"]
    status, body = infer("stranger")
    assert status == 503 and "key" in body["error"], "the HTTP client's credential is not at fault"


def test_the_brokers_log_names_a_key_that_is_refused(tmp_path: Path) -> None:
    site = Site(tmp_path)
    with running_broker(*site.options) as broker:
        site.frontend = broker.frontend
        with site.client("stranger", timeout=2) as client, pytest.raises(Unauthenticated):
            client.status()
        with Client(site.frontend, timeout=2) as client, pytest.raises(OffloadError):
            client.status()
        broker.broker.wait_for("WARNING a connection to the port of clients is refused: it has no keys")
        with running_workers(broker.backend, "--executor", "echo", "--drain", "1"):
            broker.broker.wait_for("WARNING a connection to the port of workers is refused: it has no keys")
        key = re.search(r'public-key = "(\S+)"', Path(site.path("stranger")).read_text())
        assert key is not None
        line = broker.broker.wait_for(
            r"WARNING a connection is refused: key (\S+) is not in (\S+), the key list of clients"
        )
        assert (line[1], line[2]) == (key[1], str(site.clients))


@pytest.mark.parametrize(
    ("name", "broker", "says"),
    [
        ("stranger", "broker", "does not know this key"),
        ("worker", "broker", "does not know this key"),
        ("alice", "stranger", "its key is not the expected one"),
    ],
)
def test_a_wrong_key_fails_in_time_and_says_so(site: Site, name: str, broker: str, says: str) -> None:
    with site.client(name, broker=broker) as client:
        for _ in range(2):
            started = time.monotonic()
            with pytest.raises(Unauthenticated, match=says):
                client.infer("echo", {"x": X})
            assert time.monotonic() - started < 5

    async def infer() -> None:
        key = site.path(name, "key_secret")
        async with AsyncClient(site.frontend, key=key, broker_key=site.path(broker)) as client:
            await client.infer("echo", {"x": X})

    with pytest.raises(Unauthenticated, match=says):
        asyncio.run(infer())


def test_a_client_without_keys_learns_that(site: Site) -> None:
    with Client(site.frontend) as client, pytest.raises(Unauthenticated, match="only one side has keys"):
        client.infer("echo", {"x": X})


def test_a_client_with_keys_at_a_broker_without_learns_that(site: Site) -> None:
    with running_broker() as open_broker:
        keys = {"key": site.path("alice", "key_secret"), "broker_key": site.path("broker")}
        with Client(open_broker.frontend, **keys) as client, pytest.raises(Unauthenticated, match="only one side"):
            client.infer("echo", {"x": X})


def test_a_key_for_some_models_is_denied_the_others(site: Site) -> None:
    with site.client("bob") as client:
        with pytest.raises(PermissionDenied, match="not for model 'echo'"):
            client.infer("echo", {"x": X})
        assert client.models() == []


def test_an_added_key_is_accepted_without_a_restart(fresh_site: Site) -> None:
    with fresh_site.client("stranger", timeout=2) as client:
        with pytest.raises(Unauthenticated):
            client.infer("echo", {"x": X})
        fresh_site.authorize("stranger")

        def served() -> bool:
            try:
                return bool(client.infer("echo", {"x": X}))
            except (Unauthenticated, Unavailable):
                return False

        eventually(served)


def code(client: Client) -> str:
    """Return the result or error of a request."""
    try:
        client.infer("echo", {"x": X})
    except OffloadError as error:
        return error.code.value
    return "served"


def test_revoking_a_key_ends_its_live_session(fresh_site: Site) -> None:
    with fresh_site.client("alice") as client:
        client.infer("echo", {"x": X})
        fresh_site.revoke("alice", fresh_site.clients)

        eventually(lambda: code(client) == "UNAUTHENTICATED")


def test_a_revocation_survives_an_unreadable_list(fresh_site: Site) -> None:
    """Neither because of the other list, nor because the list itself became readable again without a change."""

    with fresh_site.client("alice") as client:
        assert code(client) == "served"
        whole = fresh_site.workers.read_text()
        fresh_site.workers.write_text("garbage\n")
        fresh_site.revoke("alice", fresh_site.clients)
        eventually(lambda: code(client) == "UNAUTHENTICATED")
        fresh_site.workers.write_text(whole)
    with fresh_site.client("bob") as client:
        assert code(client) == "PERMISSION_DENIED"
        kept = fresh_site.folder / "kept"
        fresh_site.clients.rename(kept)  # for a while it is missing
        time.sleep(1.5)
        fresh_site.revoke("bob", kept)
        kept.rename(fresh_site.clients)
        eventually(lambda: code(client) == "UNAUTHENTICATED")


def test_revoking_a_workers_key_takes_its_requests_away(fresh_site: Site) -> None:
    with fresh_site.client("alice") as client:
        fresh_site.revoke("worker", fresh_site.workers)
        eventually(lambda: client.status()["workers"] == [])


def test_a_damaged_list_changes_nothing(fresh_site: Site) -> None:
    with fresh_site.client("alice") as client:
        fresh_site.clients.write_text("this is not a list\n")
        for _ in range(8):
            client.infer("echo", {"x": X}, timeout=5)
            time.sleep(0.2)  # the broker reads it meanwhile


def socket_of(site: Site, name: str, endpoint: str, identity: bytes = b"") -> zmq.Socket[bytes]:
    socket = zmq.Context.instance().socket(zmq.DEALER)
    socket.linger = 0
    pair = read_pair(site.path(name, "key_secret"))
    socket.curve_publickey, socket.curve_secretkey = pair
    socket.curve_serverkey = read_public(site.path("broker"))
    if identity:
        socket.identity = identity
    socket.connect(endpoint)
    return socket


def test_a_clients_key_does_not_open_the_backend(site: Site) -> None:
    with socket_of(site, "alice", site.backend) as socket:
        socket.send_multipart([wire.encode(wire.Heartbeat())])
        assert not socket.poll(1500), "a worker would be asked to introduce itself"
    with socket_of(site, "worker", site.backend) as socket:
        socket.send_multipart([wire.encode(wire.Heartbeat())])
        assert socket.poll(5000)


def test_a_session_cannot_be_taken_over_though_its_token_is_known(tmp_path: Path) -> None:
    """Bob knows Alice's token and the number of her request, but cannot get her result or cancel her request."""
    site = Site(tmp_path)
    site.authorize("stranger")
    session = b"s" * 16
    payload = [bytes(frame) for frame in encode_tensors({"x": X})]
    with running_broker(*site.options) as broker:  # without workers the request waits
        alice = socket_of(site, "alice", broker.frontend)
        alice.send_multipart([wire.encode(wire.Request(session, 1, "echo", 0, 30_000_000, 0)), *payload])
        alice.send_multipart([wire.encode(wire.Query(session, 2, "status"))])
        assert alice.poll(5000)
        alice.recv_multipart()
        thief = socket_of(site, "stranger", broker.frontend)
        thief.send_multipart([wire.encode(wire.Cancel(session, 1))])
        thief.send_multipart([wire.encode(wire.Ping(session, [1]))])
        thief.send_multipart([wire.encode(wire.Request(session, 1, "echo", 0, 30_000_000, 0)), *payload])
        answers = []
        for _ in range(2):
            assert thief.poll(5000)
            answers.append(wire.decode(thief.recv_multipart()[0], wire.TO_CLIENT))
        assert answers[0] == wire.Pong(session, [1])
        assert answers[1].code == "PERMISSION_DENIED"
        keys = ("--worker-key", site.path("worker", "key_secret"), "--broker-key", site.path("broker"))
        with running_workers(broker.backend, "--executor", "echo", "--drain", "1", *keys):
            assert alice.poll(20_000), "still hers"
            assert type(wire.decode(alice.recv_multipart()[0], wire.TO_CLIENT)) is wire.Result
            assert not thief.poll(300)
        alice.close()
        thief.close()


def claiming(endpoint: str, identity: bytes) -> zmq.Socket[bytes]:
    socket: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.DEALER)
    socket.linger = 0
    socket.identity = identity
    socket.connect(endpoint)
    return socket


def test_a_peer_cannot_choose_its_routing_id() -> None:
    with running_broker() as broker:
        for endpoint, expected in ((broker.frontend, wire.TO_CLIENT), (broker.backend, wire.TO_WORKER)):
            with claiming(endpoint, b"mine") as socket:
                socket.send_multipart([wire.encode(wire.Ping(b"t" * 16, [])), b""])
                assert socket.poll(5000)
                error = wire.decode(socket.recv_multipart()[0], expected)
                assert error.code == "INVALID_ARGUMENT" and "do not set a routing id" in error.text


@pytest.mark.parametrize("start", [0x6B8B4567, 0xE43C9869])
def test_routing_ids_are_unguessable(start: int) -> None:
    """libzmq counts routing ids up from a fixed start. A peer that claimed the next one crashed the broker by an
    assertion, or got the replies of a client that had left. So the broker starts from a random number."""
    with running_broker() as broker:
        claims = [claiming(broker.frontend, b"\0" + (start + n).to_bytes(4, "big")) for n in range(12)]
        for socket in claims:
            socket.send_multipart([wire.encode(wire.Ping(b"t" * 16, []))])
            assert socket.poll(5000)
        for _ in range(12):
            with Client(broker.frontend, timeout=5) as client:
                client.status()
        assert broker.broker.popen.poll() is None
        for socket in claims:
            socket.close()


def exit_of(*arguments: str) -> tuple[int, str]:
    with running(*arguments) as process:
        code = process.wait()
        return code, "\n".join(process.lines)


def test_a_broker_does_not_listen_to_the_network_without_keys() -> None:
    arguments = ("-m", "broker", "--frontend", "tcp://0.0.0.0:0", "--backend", "tcp://127.0.0.1:0")
    code, says = exit_of(*arguments)
    assert code == 1
    assert "tcp://0.0.0.0:0 can be reached from other machines" in says
    with running(*arguments, "--insecure") as process:
        process.wait_for("ready")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("broker", "--server-key", "x"), "give all of them or none"),
        (("workers", "--worker-key", "x"), "give all of them or none"),
    ],
)
def test_half_of_the_keys_is_wrong_usage(arguments: tuple[str, ...], says: str) -> None:
    code, output = exit_of("-m", *arguments)
    assert (code, says in output) == (2, True)


def test_the_status_command_takes_its_keys_from_the_environment(site: Site) -> None:
    environment = os.environ | {
        "ZMQ_OFFLOAD_CLIENT_KEY": site.path("alice", "key_secret"),
        "ZMQ_OFFLOAD_BROKER_KEY": site.path("broker"),
    }
    command = [sys.executable, "-m", "zmq_offload", "status", "--broker", site.frontend]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=30)
    assert "echo" in done.stdout, done.stderr


def test_a_worker_with_a_wrong_key_says_why(site: Site) -> None:
    keys = ("--worker-key", site.path("stranger", "key_secret"), "--broker-key", site.path("broker"))
    options = ("--executor", "echo", "--drain", "1", "--patience", "1", *keys)
    with running_workers(site.backend, *options) as supervisor:
        assert isinstance(supervisor, Process)
        supervisor.wait_for("does not know this key")


def test_several_broker_processes_have_the_same_keys(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both serve whoever is in the lists, also one that was started again, and each hears of a change."""
    site = Site(tmp_path)
    capsys.readouterr()
    listen = ["--frontend", "tcp://127.0.0.1:0", "--backend", "tcp://127.0.0.1:0", "--heartbeat", "0.3"]
    options = ["--metrics", "127.0.0.1:0", "--access-log", "0", *site.options]
    with running("-m", "broker", "--processes", "2", *listen, *options) as brokers:
        ready = brokers.wait_for(r"^ready frontend=(\S+) backend=(\S+) metrics=(\S+)$")
        frontends, metrics = ready[1].split(","), ready[3].split(",")
        keys = ("--worker-key", site.path("worker", "key_secret"), "--broker-key", site.path("broker"))
        with running_workers(ready[2], "--executor", "echo", "--drain", "1", *keys), contextlib.ExitStack() as stack:

            def client(name: str, frontend: str) -> Client:
                secret, timeout = site.path(name, "key_secret"), 5 if name == "alice" else 2
                return stack.enter_context(
                    Client(frontend, key=secret, broker_key=site.path("broker"), timeout=timeout)
                )

            alice = [client("alice", frontend) for frontend in frontends]
            stranger = client("stranger", frontends[1])
            for each in alice:
                eventually(lambda each=each: each.status()["workers"])  # type: ignore[misc]
            assert [*map(code, alice)] == ["served"] * 2 and code(stranger) == "UNAUTHENTICATED"

            os.kill(int(brokers.wait_for(r"broker 1 is process (\d+)")[1]), signal.SIGKILL)
            eventually(lambda: alice[1].status()["restarts"] and code(alice[1]) == "served")

            with monkeypatch.context() as patched:
                patched.setenv("ZMQ_OFFLOAD_CLIENT_KEY", site.path("alice", "key_secret"))
                patched.setenv("ZMQ_OFFLOAD_BROKER_KEY", site.path("broker"))
                assert main(["status", "--json", "--broker", ",".join(frontends)]) == 0
            both = json.loads(capsys.readouterr().out)
            assert len(both["workers"]) == 1 and both["requests"]["served"] >= 2
            for number, address in enumerate(metrics):
                text = urllib.request.urlopen(f"http://{address}/metrics", timeout=20).read().decode()
                assert f'zmq_offload_broker_info{{process="{number}"}} 1' in text
                brokers.wait_for(f"broker.access INFO process {number}: model 'echo' version 1: OK")

            site.authorize("stranger")
            site.revoke("alice", site.clients)
            for each in alice:
                eventually(lambda each=each: code(each) == "UNAUTHENTICATED")  # type: ignore[misc]
            eventually(lambda: code(stranger) == "served")
        assert brokers.end() == 0, brokers.lines
