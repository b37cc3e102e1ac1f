"""TLS, client certificates and tokens: what URLs say of them, and calls of a gateway that wants them."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.support.certificates import Authority
from tests.transports.contract import X
from tests.transports.gateway_thread import GatewayThread, gateway_thread
from zmq_offload.errors import FailedPrecondition, InvalidArgument, OffloadError, Unauthenticated, Unavailable
from zmq_offload.gateway.access.guard import Guard
from zmq_offload.gateway.access.tls import Files
from zmq_offload.net.credentials import new_token, read_certificate, token_entry
from zmq_offload.transports.access import access
from zmq_offload.transports.client import ServerClient
from zmq_offload.transports.registry import opened
from zmq_offload.transports.transport import Options
from zmq_offload.transports.url import parse

TOKEN = new_token()
SCHEMES = ("grpc", "http", "tfs+grpc", "tfs+http")


class Site:
    """A gateway with TLS that wants a token or a certificate, and the files of a client."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.authority = Authority(folder)
        self.server, self.client = self.authority.make("server"), self.authority.make("camera", "DNS:camera.example")
        self.ca = self.authority.file
        self.token = folder / "token"
        self.token.write_text(f"{TOKEN}\n")
        listed = folder / "list"
        listed.write_text(f"{token_entry(TOKEN)} phone\n{read_certificate(self.client.certificate)} camera\n")
        files = Files(str(self.server.certificate), str(self.server.key), self.ca)
        self.guard = Guard(str(listed), files)

    def address(self, scheme: str) -> str:
        return str(getattr(self.gateway, scheme.removeprefix("tfs+")))

    def url(self, scheme: str, query: str) -> str:
        return f"{scheme}s://{self.address(scheme)}?{query}"

    gateway: GatewayThread


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    made = Site(tmp_path_factory.mktemp("certificates"))
    with gateway_thread(made.guard) as made.gateway:
        yield made


def called(url: str) -> None:
    with ServerClient(url) as client:
        for x in (X, np.ones((50_000, 3), np.float32)):  # one record of TLS, and many
            np.testing.assert_array_equal(client.infer("double", {"x": x})["y"], x * 2)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_call_over_tls_with_each_credential(site: Site, scheme: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pair = f"&cert={site.client.certificate}&key={site.client.key}"
    called(site.url(scheme, f"ca={site.ca}&token_file={site.token}"))
    called(site.url(scheme, f"ca={site.ca}{pair}"))
    monkeypatch.setenv("ZMQ_OFFLOAD_TOKEN", TOKEN)
    called(site.url(scheme, f"ca={site.ca}"))


@pytest.mark.parametrize("scheme", SCHEMES)
def test_who_has_no_credential_is_told_so(site: Site, scheme: str, tmp_path: Path) -> None:
    other = tmp_path / "token"
    other.write_text(new_token())
    for query, says in ((f"ca={site.ca}", "no credential"), (f"ca={site.ca}&token_file={other}", "is not known")):
        with ServerClient(site.url(scheme, query)) as client, pytest.raises(Unauthenticated, match=says) as caught:
            client.infer("double", {"x": X})
        assert other.read_text() not in caught.value.message


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_server_that_cannot_be_verified_is_not_called(site: Site, scheme: str, tmp_path: Path) -> None:
    stranger = Authority(tmp_path, "another")
    for query in (f"ca={stranger.file}", ""):
        url = f"{scheme}s://{site.address(scheme)}" + (f"?{query}" if query else "")
        with ServerClient(url) as client, pytest.raises(Unavailable):
            client.infer("double", {"x": X}, timeout=5)
    with ServerClient(f"{scheme}://{site.address(scheme)}") as client, pytest.raises(OffloadError):
        client.infer("double", {"x": X}, timeout=5)  # without TLS


# --- URLs -----------------------------------------------------------------------------------------------------


def test_the_token_of_the_environment_is_sent_over_tls_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("of-the-file\n")
    monkeypatch.setenv("ZMQ_OFFLOAD_TOKEN", "of-the-environment")
    assert access(parse("grpc://edge:1")) == (None, None)
    assert access(parse(f"grpc://edge:1?token_file={file}")) == (None, "Bearer of-the-file")
    assert access(parse("https://edge:1")) == ((None, None, None), "Bearer of-the-environment")
    assert access(parse(f"https://edge:1?token_file={file}")).authorization == "Bearer of-the-file"
    monkeypatch.setenv("ZMQ_OFFLOAD_TOKEN", "")
    assert access(parse("grpcs://edge:1")).authorization is None


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("grpc://edge:1?token=SECRET", "has 'token' after the question mark; known are ca, cert, key, token_file$"),
        ("http://edge:1?ca=SECRET", "'http://edge:1' has 'ca' without TLS; use https://HOST:PORT$"),
        ("https://edge:1?cert=SECRET", "has 'cert' without 'key'; give both$"),
        ("grpcs://edge:1?key=SECRET", "has 'key' without 'cert'; give both$"),
        ("grpcs://edge:1?tokenfile=SECRET", "has 'tokenfile' after the question mark"),
        ("grpcs://SECRET@edge:1", "'grpcs://...' has no host and port"),
        ("http://edge:1,http://SECRET@edge:2", "is several URLs"),
        ("grpcs://edge?token_file=SECRET", "'grpcs://edge' has no host and port"),
    ],
)
def test_what_is_wrong_with_a_url_is_said_without_what_it_may_have_as_a_secret(url: str, says: str) -> None:
    with pytest.raises(InvalidArgument, match=says) as caught:
        opened(url, Options(1 << 20))
    assert "SECRET" not in caught.value.message


def test_a_client_does_not_show_what_follows_the_question_mark(site: Site) -> None:
    with ServerClient(site.url("http", f"ca={site.ca}&token_file={site.token}")) as client:
        assert repr(client).startswith("<ServerClient") and "token" not in repr(client)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_files_that_cannot_be_used_are_named(site: Site, scheme: str, tmp_path: Path) -> None:
    text, locked = tmp_path / "text", tmp_path / "locked.key"
    text.write_text("two lines\nof text\n")
    encrypt = ["openssl", "pkey", "-in", str(site.client.key), "-aes256", "-passout", "pass:secret", "-out", locked]
    subprocess.run(encrypt, check=True, capture_output=True)
    pair = f"cert={site.client.certificate}"
    for query, says in (
        ("ca=/missing.ca", "/missing.ca: No such file or directory"),
        (f"ca={text}", f"{text} has no certificate in PEM"),
        (f"{pair}&key=/missing.key", "/missing.key: No such file"),
        (f"{pair}&key={text}", f"{site.client.certificate} and {text} are not a certificate and its key in PEM"),
        (f"{pair}&key={locked}", f"{locked} is encrypted; decrypt it with `openssl pkey"),
        ("token_file=/missing", "/missing: No such file"),
        ("token_file=%00", r"\x00: embedded null byte"),
        (f"token_file={text}", f"{text} has no token; it has one line"),
    ):
        with pytest.raises(FailedPrecondition) as caught:
            opened(f"{scheme}s://edge:1?{query}", Options(1 << 20))
        assert caught.value.message.startswith(says)
