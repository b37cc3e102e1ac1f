"""TLS: contexts for HTTP and gRPC, and who is at the other end of a connection."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from zmq_offload.errors import FailedPrecondition, one_line
from zmq_offload.gateway.access.decisions import Peer, identities

HTTP, GRPC = "http/1.1", "h2"
"""Names of the protocols for ALPN (RFC 7301)."""

_CIPHERS = "ECDHE+AESGCM:ECDHE+CHACHA20"
"""Of TLS 1.2: those that HTTP/2 allows (RFC 9113, appendix A), which have forward secrecy. TLS 1.3 has its own."""


class Files(NamedTuple):
    """PEM files: the gateway's certificates with their key, and the authorities of clients' certificates."""

    certificate: str
    key: str
    client_ca: str | None = None


def files_of(certificate: str | None, key: str | None, client_ca: str | None) -> Files | None:
    """The files of the options, or None if TLS is off."""
    return None if certificate is None or key is None else Files(certificate, key, client_ca)


def peer_of(transport: asyncio.BaseTransport) -> Peer:
    """Who is at the other end of a connection. Ask once, when the connection is made."""
    found = transport.get_extra_info("peername") or ("unknown", 0)
    address = f"[{found[0]}]:{found[1]}" if ":" in found[0] else f"{found[0]}:{found[1]}"
    tls: ssl.SSLObject | None = transport.get_extra_info("ssl_object")
    der = tls.getpeercert(binary_form=True) if tls else None
    if tls is None or not der:
        return Peer(address)
    return Peer(address, identities(der, tls.getpeercert() or {}))


def context(files: Files, protocol: str) -> ssl.SSLContext:
    """A context for one of `HTTP` and `GRPC`. Raises FailedPrecondition naming the file.

    Clients may leave their certificate out, since they may have a token, and health checks have neither.
    """
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    made.minimum_version = ssl.TLSVersion.TLSv1_2
    made.options |= ssl.OP_NO_RENEGOTIATION
    made.set_ciphers(_CIPHERS)
    made.set_alpn_protocols([protocol])
    _load_pair(made, files)
    if files.client_ca is not None:
        _load_authorities(made, files.client_ca)
        made.verify_mode = ssl.CERT_OPTIONAL
        made.num_tickets = 0  # a client that resumes a session is not verified again
    return made


class Contexts:
    """The contexts of both protocols, for ports that keep theirs: each connection is made with the latest."""

    def __init__(self, files: Files) -> None:
        self._files = files
        self._latest = self.load()
        self.http, self.grpc = _Latest(lambda: self._latest[HTTP]), _Latest(lambda: self._latest[GRPC])

    def load(self) -> dict[str, ssl.SSLContext]:
        """Make contexts of what the files say now. Raises FailedPrecondition."""
        return {protocol: context(self._files, protocol) for protocol in (HTTP, GRPC)}

    def use(self, contexts: dict[str, ssl.SSLContext]) -> None:
        """Give these contexts to new connections."""
        self._latest = contexts


class _Latest(ssl.SSLContext):
    """Passes each connection to another context.

    To load a new certificate into a context that is in use could neither forget an authority, nor be undone if the key
    turns out not to fit. And the callback for the server's name, which may choose a context, writes a traceback to
    stderr for each name that is not ASCII: strangers could fill the log.
    """

    def __new__(cls, latest: Callable[[], ssl.SSLContext]) -> _Latest:
        return super().__new__(cls, ssl.PROTOCOL_TLS_SERVER)

    def __init__(self, latest: Callable[[], ssl.SSLContext]) -> None:
        self._choose = latest

    def wrap_bio(self, *arguments: Any, **options: Any) -> ssl.SSLObject:
        """Begin a connection. The event loop calls this for each one."""
        return self._choose().wrap_bio(*arguments, **options)


def _load_pair(made: ssl.SSLContext, files: Files) -> None:
    for path in (files.certificate, files.key):
        _check_readable(path)
    try:
        made.load_cert_chain(files.certificate, files.key, password=lambda: _refuse_password(files.key))
    except ssl.SSLError as error:
        reason = error.reason or one_line(error)
        if reason == "KEY_VALUES_MISMATCH":
            raise FailedPrecondition(f"{files.key} is not the key of the certificate in {files.certificate}") from None
        raise FailedPrecondition(
            f"{files.certificate} and {files.key} are not a certificate and its key in PEM: {reason}"
        ) from None


def _load_authorities(made: ssl.SSLContext, path: str) -> None:
    _check_readable(path)
    try:
        made.load_verify_locations(path)
    except ssl.SSLError as error:
        raise FailedPrecondition(f"{path} has no certificate in PEM: {error.reason or one_line(error)}") from None


def _check_readable(path: str) -> None:
    """Name a file that cannot be read: the `ssl` module's errors do not."""
    try:
        Path(path).read_bytes()
    except OSError as error:
        raise FailedPrecondition(f"{path}: {error.strerror or error}") from None


def _refuse_password(path: str) -> str:
    """OpenSSL would ask for it at the terminal."""
    raise FailedPrecondition(f"{path} is encrypted; decrypt it with `openssl pkey -in {path}`")
