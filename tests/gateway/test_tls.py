"""Where a gateway may listen, TLS with files that change, and refusals in the log; without sockets."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import ssl
import subprocess
from pathlib import Path
from typing import Any, cast

import pytest

from tests.support.certificates import Authority, Pair
from zmq_offload.errors import FailedPrecondition, InvalidArgument, Unauthenticated
from zmq_offload.gateway.access.decisions import Open, Peer
from zmq_offload.gateway.access.guard import Guard, check_exposure
from zmq_offload.gateway.access.tls import GRPC, HTTP, Files, context, peer_of
from zmq_offload.gateway.config import parse
from zmq_offload.net.credentials import token_entry


class Site:
    """A server's certificate, a client's, and the options of a gateway that has the one and asks for the other."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ca = Authority(folder)
        self.server, self.client = self.ca.make("server"), self.ca.make("camera", "DNS:camera.example")
        self.files = Files(str(self.server.certificate), str(self.server.key), self.ca.file)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Site:
    return Site(tmp_path_factory.mktemp("certificates"))


def client_context(ca: str, pair: Pair | None = None, alpn: str = HTTP) -> ssl.SSLContext:
    made = ssl.create_default_context(cafile=ca)
    made.set_alpn_protocols([alpn])
    if pair is not None:
        made.load_cert_chain(*pair)
    return made


def handshake(server: ssl.SSLContext, client: ssl.SSLContext) -> tuple[ssl.SSLObject, ssl.SSLObject]:
    """Connect the two in memory, and return the server's and the client's end. Raises SSLError."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = (
        server.wrap_bio(to_server, to_client, server_side=True),
        client.wrap_bio(to_client, to_server, server_hostname="localhost"),
    )
    waiting = list(ends)
    while waiting:
        for end in list(waiting):
            with contextlib.suppress(ssl.SSLWantReadError):
                end.do_handshake()
                waiting.remove(end)
    return ends


def served(server: ssl.SSLContext, client: ssl.SSLContext) -> bytes | None:
    """The certificate that a client gets."""
    return handshake(server, client)[1].getpeercert(binary_form=True)


def der(pair: Pair) -> bytes:
    return ssl.PEM_cert_to_DER_cert(pair.certificate.read_text())


# --- contexts -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", [HTTP, GRPC])
def test_a_connection_is_of_tls_1_2_or_later_with_forward_secrecy(made: Site, protocol: str) -> None:
    server = context(made.files, protocol)
    for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
        client = client_context(made.ca.file, alpn=protocol)
        client.maximum_version = version
        ends = handshake(server, client)
        assert [end.selected_alpn_protocol() for end in ends] == [protocol] * 2
        assert ends[0].getpeercert() is None
    offered = {cipher["name"] for cipher in server.get_ciphers() if cipher["protocol"] != "TLSv1.3"}
    assert offered and all(name.startswith("ECDHE-") and "CBC" not in name and "SHA1" not in name for name in offered)
    assert server.minimum_version is ssl.TLSVersion.TLSv1_2


def test_a_clients_certificate_is_verified(made: Site, tmp_path: Path) -> None:
    server = context(made.files, HTTP)
    end, _ = handshake(server, client_context(made.ca.file, made.client))
    assert end.getpeercert(binary_form=True) == der(made.client)
    stranger = Authority(tmp_path, "another").make("camera", "DNS:camera.example")
    for pair in (stranger, made.ca.make("late", days=-1)):
        with pytest.raises(ssl.SSLCertVerificationError):
            handshake(server, client_context(made.ca.file, pair))


def test_files_that_cannot_be_used_are_named(made: Site, tmp_path: Path) -> None:
    certificate, key, ca = made.files
    text = tmp_path / "text"
    text.write_text("nothing\n")
    locked = tmp_path / "locked.key"
    encrypt = ["openssl", "pkey", "-in", key, "-aes256", "-passout", "pass:secret", "-out", str(locked)]
    subprocess.run(encrypt, check=True, capture_output=True)
    for files, said in (
        (Files("/missing.crt", key, ca), "/missing.crt: No such file or directory"),
        (Files(certificate, "/missing.key", ca), "/missing.key: No such file or directory"),
        (Files(certificate, key, "/missing.ca"), "/missing.ca: No such file or directory"),
        (Files(str(text), key, ca), f"{text} and {key} are not a certificate and its key in PEM"),
        (Files(certificate, str(text), ca), f"{certificate} and {text} are not a certificate and its key in PEM"),
        (Files(certificate, key, str(text)), f"{text} has no certificate in PEM"),
        (Files(certificate, str(made.client.key), ca), f"{made.client.key} is not the key of the certificate"),
        (Files(certificate, str(locked), ca), f"{locked} is encrypted; decrypt it with `openssl pkey"),
    ):
        with pytest.raises(FailedPrecondition) as error:
            context(files, HTTP)
        assert error.value.message.startswith(said)


def test_the_other_end_of_a_connection_has_an_address_and_names(made: Site) -> None:
    end, _ = handshake(context(made.files, HTTP), client_context(made.ca.file, made.client))

    class Transport:
        def __init__(self, **extra: Any) -> None:
            self.get_extra_info = extra.get

    def peer(**extra: Any) -> Peer:
        return peer_of(cast(asyncio.BaseTransport, Transport(**extra)))

    found = peer(peername=("1.2.3.4", 5), ssl_object=end)
    assert (found.address, found.identities[1:]) == ("1.2.3.4:5", ("dns:camera.example", "cn:camera"))
    assert peer(peername=("::1", 5, 0, 0)) == Peer("[::1]:5")
    assert peer() == Peer("unknown:0")
    end, _ = handshake(context(made.files, HTTP), client_context(made.ca.file))
    assert peer(peername=("1.2.3.4", 5), ssl_object=end) == Peer("1.2.3.4:5")


# --- files that change --------------------------------------------------------------------------------------


@pytest.fixture
def site(made: Site, tmp_path: Path) -> Site:
    """A copy of the files, to be changed."""
    shutil.copytree(made.folder, tmp_path, dirs_exist_ok=True)
    copy = Site.__new__(Site)
    copy.folder, copy.ca = tmp_path, made.ca
    copy.server, copy.client = (Pair(*(tmp_path / path.name for path in pair)) for pair in (made.server, made.client))
    copy.files = Files(*(str(tmp_path / Path(path or "").name) for path in made.files))
    return copy


def test_a_new_certificate_is_used_by_new_connections(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    contexts = (guard := Guard(None, site.files)).contexts
    assert contexts is not None
    assert served(contexts.http, client_context(site.ca.file)) == der(site.server)
    new = site.ca.make("renewed")
    before = der(site.server)
    shutil.copy(new.certificate, site.server.certificate)
    guard.reload()  # its key is not there yet
    assert served(contexts.http, client_context(site.ca.file)) == before
    assert "is not the key of the certificate" in caplog.text and "that was read before" in caplog.text
    shutil.copy(new.key, site.server.key)
    guard.reload()
    for server, alpn in ((contexts.http, HTTP), (contexts.grpc, GRPC)):
        ends = handshake(server, client_context(site.ca.file, alpn=alpn))
        assert ends[1].getpeercert(binary_form=True) == der(new)
        assert ends[1].selected_alpn_protocol() == alpn


def test_a_server_name_that_is_not_ascii_is_ignored(made: Site) -> None:
    """A callback for it would write a traceback to stderr, which fails here as an unraisable exception."""
    contexts = Guard(None, made.files).contexts
    assert contexts is not None
    hello, to_server, answer = ssl.MemoryBIO(), ssl.MemoryBIO(), ssl.MemoryBIO()
    client = client_context(made.ca.file).wrap_bio(ssl.MemoryBIO(), hello, server_hostname="localhost")
    with pytest.raises(ssl.SSLWantReadError):
        client.do_handshake()
    to_server.write(hello.read().replace(b"localhost", b"l\x9ccalhost"))
    with pytest.raises(ssl.SSLWantReadError):
        contexts.http.wrap_bio(to_server, answer, server_side=True).do_handshake()
    assert answer.pending


def test_another_authority_replaces_the_one_before(site: Site, tmp_path: Path) -> None:
    contexts = (guard := Guard(None, site.files)).contexts
    assert contexts is not None and site.files.client_ca is not None
    handshake(contexts.http, client_context(site.ca.file, site.client))
    other = Authority(tmp_path, "other")
    shutil.copy(other.file, site.files.client_ca)
    guard.reload()
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(contexts.http, client_context(site.ca.file, site.client))
    end, _ = handshake(contexts.http, client_context(site.ca.file, other.make("new")))
    assert end.getpeercert() is not None


def test_a_revoked_credential_is_refused_after_the_next_look(tmp_path: Path) -> None:
    path = tmp_path / "list"
    token = "t" * 20
    path.write_text(f"{token_entry(token)} phone ocr\n")

    async def main() -> None:
        guard = Guard(str(path), None)
        guard.watch()
        header, peer = f"Bearer {token}", Peer("1.2.3.4:5")
        assert guard.access.check(header, peer).name == "phone"
        path.write_text("")
        guard.reload()
        with pytest.raises(Unauthenticated, match=r"'Authorization: Bearer TOKEN'$"):
            guard.access.check(None, peer)
        with pytest.raises(Unauthenticated, match="not known"):
            guard.access.check(header, peer)
        guard.close()

    asyncio.run(main())


def test_certificates_that_cannot_be_used_are_in_the_log(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    path = site.folder / "list"
    path.write_text(f"{token_entry('t' * 20)} phone\ncn:a a\ndns:b b\n")
    Guard(str(path), site.files)
    assert not [record for record in caplog.records if record.levelname == "WARNING"]
    for files in (None, site.files._replace(client_ca=None)):
        caplog.clear()
        Guard(str(path), files)
        (line,) = [record.message for record in caplog.records if record.levelname == "WARNING"]
        assert line == f"2 certificates in {path}: not used without --client-ca"


def test_strangers_do_not_flood_the_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "list"
    path.write_text("")

    async def main() -> None:
        access = Guard(str(path), None).access
        for _ in range(1000):
            with pytest.raises(Unauthenticated):
                access.check("Bearer x", Peer("1.2.3.4:5"), "/v2/models/a\nb")

    asyncio.run(main())
    lines = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert 20 <= len(lines) < 30
    assert lines[0] == "1.2.3.4:5 is refused /v2/models/a\\nb: the token is not known to this gateway"


@pytest.mark.parametrize(
    ("options", "files", "connections"),
    [([], 20_000, 10_000), (["--grpc", "none"], 20_000, 16_384), ([], 1, 1), (["--max-connections", "5"], 20_000, 5)],
)
def test_strangers_cannot_take_all_files(options: list[str], files: int, connections: int) -> None:
    """Then no list could be read again, and nobody be revoked."""
    assert parse(options).fitting(files).max_connections == connections


# --- exposure -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("address", ["127.0.0.1:8000", "[::1]:8000", "localhost:8000", "127.1.2.3:0"])
def test_loopback_needs_no_credentials(address: str) -> None:
    check_exposure([address], listed=False, tls=False, insecure=False)
    assert isinstance(Guard(None, None).access, Open)


@pytest.mark.parametrize("address", ["0.0.0.0:8000", "*:8000", "[::]:8000", "10.0.0.1:8000", "edge.example:8000"])
def test_a_network_needs_a_list_and_tls(address: str) -> None:
    addresses = ["127.0.0.1:8001", address]
    for tls in (False, True):
        with pytest.raises(InvalidArgument, match=r"without tokens or client certificates; give .*--insecure"):
            check_exposure(addresses, listed=False, tls=tls, insecure=False)
    with pytest.raises(InvalidArgument, match=r"in clear text; give --tls-cert and --tls-key, or --insecure"):
        check_exposure(addresses, listed=True, tls=False, insecure=False)
    check_exposure(addresses, listed=True, tls=True, insecure=False)
    for listed in (False, True):
        check_exposure(addresses, listed=listed, tls=False, insecure=True)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--client-ca", "ca"], "--client-ca without --tls-cert; client certificates need both"),
        (["--client-ca", "ca", "--tls-cert", "c", "--tls-key", "k"], "--client-ca without --access-list"),
        (["--tls-cert", "c"], "--tls-cert given without --tls-key; give all of them or none"),
        (["--http", "none", "--grpc", "none"], "a gateway needs one of the two ports"),
    ],
)
def test_options_that_need_each_other(options: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        parse(options)
    assert end.value.code == 2 and said in capsys.readouterr().err
