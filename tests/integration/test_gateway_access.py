"""Who may use a real gateway for what: tokens, client certificates, TLS, revocation, and what needs no credential."""

from __future__ import annotations

import contextlib
import http.client
import io
import json
import queue
import shutil
import socket
import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import tritonclient.grpc
import tritonclient.http
from tritonclient.utils import InferenceServerException

from tests.support.certificates import Authority, Pair
from tests.support.fabrics import gateway_of_signed_models
from tests.support.processes import Gateway, eventually, running
from zmq_offload.cli.main import main

X = np.arange(6, dtype=np.float32).reshape(2, 3)


class Site:
    """A gateway with an access list: a token for the model "identity", and a certificate for "pair"."""

    gateway: Gateway

    def __init__(self, folder: Path) -> None:
        self.list = folder / "access"
        self.ca = Authority(folder)
        self.server, self.press = self.ca.make("server"), self.ca.make("press", "DNS:press.example")
        self.change("certificate", "dns:press.example", "--models", "pair")
        self.phone = self.change("token", "phone", "--models", "identity")
        self.lost = self.change("token", "lost")
        self.stolen = self.change("token", "stolen")

    def change(self, *arguments: str) -> str:
        """Run a command that changes the list, and return what it prints."""
        with contextlib.redirect_stdout(io.StringIO()) as output:
            assert main(["keys", *arguments, "--list", str(self.list)]) == 0
        return output.getvalue().strip()

    @property
    def options(self) -> list[str]:
        tls = ["--tls-cert", str(self.server.certificate), "--tls-key", str(self.server.key)]
        return [*tls, "--client-ca", self.ca.file, "--access-list", str(self.list)]

    def context(self, pair: Pair | None = None) -> ssl.SSLContext:
        context = ssl.create_default_context(cafile=self.ca.file)
        if pair is not None:
            context.load_cert_chain(*pair)
        return context

    @contextlib.contextmanager
    def connected(self, pair: Pair | None = None) -> Iterator[http.client.HTTPSConnection]:
        host, _, port = self.gateway.http.rpartition(":")
        connection = http.client.HTTPSConnection(host, int(port), timeout=20, context=self.context(pair))
        with contextlib.closing(connection):
            yield connection

    def triton(self, pair: Pair | None = None) -> Any:
        context = self.context(pair)
        return tritonclient.http.InferenceServerClient(self.gateway.http, ssl=True, ssl_context_factory=lambda: context)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    site = Site(tmp_path_factory.mktemp("site"))
    with gateway_of_signed_models(*site.options) as site.gateway:
        yield site


def ask(connection: http.client.HTTPSConnection, path: str, token: str | None = None) -> tuple[int, Any]:
    """The status and the JSON of an answer. The connection stays open if the gateway lets it."""
    connection.request("GET", path, headers={} if token is None else {"Authorization": f"Bearer {token}"})
    response = connection.getresponse()
    body = response.read()
    assert response.status != 401 or response.headers["WWW-Authenticate"].startswith("Bearer")
    return response.status, json.loads(body) if body else None


def grpc_client(site: Site, pair: Pair | None = None) -> Any:
    files = {} if pair is None else {"certificate_chain": str(pair.certificate), "private_key": str(pair.key)}
    return tritonclient.grpc.InferenceServerClient(site.gateway.grpc, ssl=True, root_certificates=site.ca.file, **files)


def infer(client: Any, model: str, headers: dict[str, str] | None = None) -> Any:
    """Run "identity" or "pair" with a client of Triton."""
    values = {"x": X} if model == "identity" else {"a": np.array([1, 2], np.int32), "b": X[0]}
    module = tritonclient.http if isinstance(client, tritonclient.http.InferenceServerClient) else tritonclient.grpc
    inputs = []
    for name, value in values.items():
        inputs.append(module.InferInput(name, list(value.shape), "INT32" if name == "a" else "FP32"))
        inputs[-1].set_data_from_numpy(value)
    return client.infer(model, inputs, headers=headers).as_numpy("y" if model == "identity" else "d")


def test_a_token_is_for_its_models(site: Site) -> None:
    headers = {"Authorization": f"Bearer {site.phone}"}
    with site.triton() as client:
        np.testing.assert_array_equal(infer(client, "identity", headers), X)
        with pytest.raises(InferenceServerException, match="phone is not for model 'pair'") as error:
            infer(client, "pair", headers)
        assert error.value.status() == "403"
        names = {model["name"] for model in client.get_model_repository_index(headers=headers)}
        assert names == {"identity"}
        with pytest.raises(InferenceServerException, match="'pair' is not served; served are: identity"):
            client.get_model_metadata("pair", headers=headers)
        with pytest.raises(InferenceServerException, match="the request has no credential"):
            infer(client, "identity")


def test_a_token_is_for_its_models_in_other_dialects(site: Site) -> None:
    with site.connected() as connection:
        assert ask(connection, "/v1/models/identity", site.phone)[0] == 200
        assert ask(connection, "/v1/models/pair", site.phone)[0] == 404
        connection.request("POST", "/v1/models/pair:predict", "{}", {"Authorization": f"Bearer {site.phone}"})
        assert connection.getresponse().status in (403, 404)


def test_a_token_is_for_its_models_over_grpc(site: Site) -> None:
    headers = {"authorization": f"Bearer {site.phone}"}
    with grpc_client(site) as client:
        np.testing.assert_array_equal(infer(client, "identity", headers), X)
        for call, code, said in (
            (lambda: infer(client, "pair", headers), "PERMISSION_DENIED", "phone is not for model 'pair'"),
            (lambda: client.get_model_metadata("pair", headers=headers), "NOT_FOUND", "served are: identity"),
            (lambda: infer(client, "identity"), "UNAUTHENTICATED", "the request has no credential; send the header"),
            (lambda: client.get_server_metadata(headers={"authorization": "Bearer x"}), "UNAUTHENTICATED", "not known"),
        ):
            with pytest.raises(InferenceServerException, match=said) as error:
                call()
            assert error.value.status() == f"StatusCode.{code}"
        index = client.get_model_repository_index(headers=headers).models
        assert {model.name for model in index} == {"identity"}
        assert client.is_server_live() and client.is_server_ready()


def test_a_certificate_is_for_its_models_over_grpc(site: Site, tmp_path: Path) -> None:
    with grpc_client(site, site.press) as client:
        np.testing.assert_array_equal(infer(client, "pair"), X[0])
        with pytest.raises(InferenceServerException, match=r"press\.example is not for model 'identity'"):
            infer(client, "identity")
    stranger = Authority(tmp_path, "stranger").make("press", "DNS:press.example")
    with grpc_client(site, stranger) as client, pytest.raises(InferenceServerException) as error:
        infer(client, "pair")
    assert error.value.status() == "StatusCode.UNAVAILABLE"


def test_credentials_of_grpcio(site: Site) -> None:
    """A token and a certificate, as grpcio has them itself; health checks without them name no model."""
    ca = Path(site.ca.file).read_bytes()
    certificate = grpc.ssl_channel_credentials(ca, site.press.key.read_bytes(), site.press.certificate.read_bytes())
    plain = grpc.ssl_channel_credentials(ca)
    token = grpc.composite_channel_credentials(plain, grpc.access_token_call_credentials(site.phone))
    serving, identity, pair = b"\x08\x01", b"\x0a\x08identity", b"\x0a\x04pair"
    for credentials, service, wanted in (
        (plain, b"", serving),
        (plain, identity, grpc.StatusCode.UNAUTHENTICATED),
        (token, identity, serving),
        (token, pair, grpc.StatusCode.NOT_FOUND),
        (certificate, pair, serving),
    ):
        with grpc.secure_channel(site.gateway.grpc, credentials) as channel:
            check = channel.unary_unary("/grpc.health.v1.Health/Check")
            if isinstance(wanted, bytes):
                assert check(service, timeout=20) == wanted
            else:
                with pytest.raises(grpc.RpcError) as error:
                    check(service, timeout=20)
                assert error.value.code() is wanted


def test_a_revoked_token_is_refused_within_a_stream(site: Site) -> None:
    answers: queue.SimpleQueue[tuple[Any, Any]] = queue.SimpleQueue()
    given = tritonclient.grpc.InferInput("x", [2, 3], "FP32")
    given.set_data_from_numpy(X)
    with grpc_client(site) as client:
        client.start_stream(
            lambda result, error: answers.put((result, error)), headers={"authorization": f"Bearer {site.stolen}"}
        )

        def refused() -> Any:
            client.async_stream_infer("identity", [given])
            return answers.get(timeout=20)[1]

        assert refused() is None
        site.change("revoke", "stolen")
        error = eventually(refused)
        assert error.status() == "StatusCode.UNAUTHENTICATED" and "the token is not known" in error.message()


def test_a_certificate_is_for_its_models(site: Site) -> None:
    with site.triton(site.press) as client:
        np.testing.assert_array_equal(infer(client, "pair"), X[0])
        with pytest.raises(InferenceServerException, match=r"press\.example is not for model 'identity'"):
            infer(client, "identity")


def test_either_credential_is_enough(site: Site) -> None:
    unknown = site.ca.make("unknown", "DNS:unknown.example")
    for pair, token in ((unknown, site.phone), (site.press, "wrong")):
        with site.connected(pair) as connection:
            assert ask(connection, "/v2", token)[0] == 200
    with site.connected(unknown) as connection:
        status, body = ask(connection, "/v2")
    assert (status, "no name of the client certificate is known" in body["error"]) == (401, True)


def test_other_certificates_do_not_complete_the_handshake(site: Site, tmp_path: Path) -> None:
    stranger = Authority(tmp_path, "stranger").make("press", "DNS:press.example")
    for pair in (stranger, site.ca.make("late", "DNS:press.example", days=-1)):
        with site.connected(pair) as connection, pytest.raises((ssl.SSLError, ConnectionError)):
            ask(connection, "/v2")


@pytest.mark.parametrize("path", ["/v2/health/live", "/v2/health/ready"])
def test_probes_need_no_credential(site: Site, path: str) -> None:
    with site.connected() as connection:
        assert ask(connection, path)[0] == 200
        status, body = ask(connection, "/v2/models/identity/ready")
    assert (status, "has no credential" in body["error"]) == (401, True)
    site.gateway.process.wait_for(r"WARNING 127\.0\.0\.1:\d+ is refused /v2/models/identity/ready: the request has no")


def test_a_revoked_token_is_refused_on_an_open_connection(site: Site) -> None:
    with site.connected() as connection:
        assert ask(connection, "/v2", site.lost)[0] == 200
        first = connection.sock
        site.change("revoke", "lost")
        eventually(lambda: ask(connection, "/v2", site.lost)[0] == 401)
        assert first.fileno() == -1, "the gateway closed this connection, and the client did not open another before"


def test_curl(site: Site) -> None:
    """The commands of docs/security.md."""
    if shutil.which("curl") is None:
        pytest.skip("the command curl is not installed")
    url = f"https://{site.gateway.http}"
    body = '{"inputs": [{"name": "a", "datatype": "INT32", "shape": [2], "data": [1, 2]}, '
    body += '{"name": "b", "datatype": "FP32", "shape": [1], "data": [0.5]}]}'
    with_certificate = ["--cert", str(site.press.certificate), "--key", str(site.press.key)]
    for options, code in (
        ([*with_certificate, f"{url}/v2/models/pair/infer", "--data", body], 200),
        ([*with_certificate, f"{url}/v2/models/identity/infer", "--data", "{}"], 400),
        ([f"{url}/v2/models/pair/infer", "--data", body], 401),
        ([f"{url}/v2/health/ready"], 200),
    ):
        command = ["curl", "--silent", "--cacert", site.ca.file, "--write-out", "\n%{http_code}", *options]
        out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        assert out.rpartition("\n")[2] == str(code), out
    assert subprocess.run(["curl", "--silent", f"{url}/v2/health/ready"], check=False).returncode == 60
    assert subprocess.run(["curl", "--silent", url.replace("https", "http")], check=False).returncode == 52


def test_a_renewed_certificate_is_used_without_a_restart(site: Site) -> None:
    new = site.ca.make("renewed")
    for source, target in zip(new, site.server, strict=True):
        shutil.copy(source, target)
    wanted = ssl.PEM_cert_to_DER_cert(new.certificate.read_text())

    def served() -> bytes | None:
        with site.connected() as connection:
            connection.connect()
            assert isinstance(connection.sock, ssl.SSLSocket)
            return connection.sock.getpeercert(binary_form=True)

    eventually(lambda: served() == wanted)


def test_shared_memory_is_off_unless_it_is_switched_on(site: Site) -> None:
    headers = {"authorization": f"Bearer {site.phone}"}
    for connect, status in ((site.triton, "501"), (lambda: grpc_client(site), "StatusCode.UNIMPLEMENTED")):
        with connect() as client:
            for call in (
                client.get_system_shared_memory_status,
                client.unregister_system_shared_memory,
                lambda client=client, **named: client.register_system_shared_memory("mine", "/key", 8, **named),
            ):
                with pytest.raises(InferenceServerException, match=r"switched off.*--system-shared-memory") as error:
                    call(headers=dict(headers))
                assert error.value.status() == status


def test_a_gateway_that_anybody_could_use_does_not_start() -> None:
    with running("-m", "zmq_offload.gateway", "--http", "0.0.0.0:0", "--grpc", "none") as process:
        process.wait_for(r"0\.0\.0\.0:0 can be reached from other machines without tokens or client certificates")
        assert process.wait() == 1


def test_each_way_to_run_a_model_says_that_the_token_is_not_for_it(site: Site) -> None:
    """Those that need to know the model first, too, and for a model that nobody serves as well."""
    tensors = {"inputs": [{"name": "a", "datatype": "INT32", "shape": [1], "data": [1]}]}
    classes = {"outputs": [{"name": "d", "parameters": {"classification": 1}}]}
    headers = {"Authorization": f"Bearer {site.phone}"}
    for model in ("pair", "nobody"):
        for path, body in (
            (f"/v2/models/{model}/infer", json.dumps(tensors)),
            (f"/v2/models/{model}/infer", json.dumps(tensors | classes)),
            (f"/v2/models/{model}/infer", ""),
            (f"/v1/models/{model}:predict", json.dumps({"inputs": {"a": [1]}})),
        ):
            with site.connected() as connection:
                connection.request("POST", path, body, headers)
                response = connection.getresponse()
                assert response.status == 403, path
                assert json.loads(response.read()) == {"error": f"phone is not for model '{model}'"}
        tensor = tritonclient.grpc.InferInput("a", [1], "INT32")
        tensor.set_data_from_numpy(np.array([1], np.int32))
        wanted = [tritonclient.grpc.InferRequestedOutput("d", class_count=1)]
        lower = {"authorization": headers["Authorization"]}
        with grpc_client(site) as client, pytest.raises(InferenceServerException, match="phone is not for") as error:
            client.infer(model, [tensor], outputs=wanted, headers=lower)
        assert error.value.status() == "StatusCode.PERMISSION_DENIED"


def test_clients_that_do_not_wait_for_answers_do_not_fill_the_log(site: Site) -> None:
    host, _, port = site.gateway.http.rpartition(":")
    request = f"GET /v2/health/live HTTP/1.1\r\nHost: {host}\r\n\r\n".encode()
    for _ in range(5):
        with (
            socket.create_connection((host, int(port)), timeout=20) as plain,
            site.context().wrap_socket(plain, server_hostname="localhost") as wrapped,
        ):
            wrapped.sendall(request * 100)
    with site.connected() as connection:
        assert ask(connection, "/v2/health/live")[0] == 200
    assert "connection is closed" not in "\n".join(site.gateway.process.seen())
