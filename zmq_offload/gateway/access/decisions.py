"""Whether a request is let in, and for which models. Pure.

A connection asks `tls.peer_of` once, and `Access.check` for each request, so that a revoked credential is refused on
open connections, too:

    grant = access.check(headers.get("authorization"), self.peer, path)

What it raises is answered as any other error, over HTTP with the header `CHALLENGE`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from zmq_offload.dashboard.files import PAGE, PATHS
from zmq_offload.errors import Unauthenticated
from zmq_offload.net.credentials import certificate_entry, token_entry
from zmq_offload.net.grants import Grant

CHALLENGE = ("WWW-Authenticate", 'Bearer realm="zmq-offload"')
"""The header that a response with status 401 must have (RFC 9110, 15.5.2)."""

ANYONE = Grant("anyone")
"""Of those who ask a gateway that lets everyone use all models."""

HEALTH = Grant("health check")
"""Of those who ask without a credential: whether a gateway is ready depends on all of its models.

What names a model must not be answered to them.
"""

NOBODY = Grant("nobody", frozenset())
"""Of those who only ask what a browser asks before it sends a credential."""

STRANGERS_BYTES = 4096
"""The longest body, or message, of a request without a credential: strangers must not fill the gateway's memory."""

PUBLIC = frozenset(
    {
        "/v2/health/live",
        "/v2/health/ready",
        "/inference.GRPCInferenceService/ServerLive",
        "/inference.GRPCInferenceService/ServerReady",
        "/grpc.health.v1.Health/Check",
        "/grpc.health.v1.Health/Watch",
        *PATHS,
        f"{PAGE}/",
    }
)
"""Paths that need no credential: probes of load balancers and of Kubernetes send none, and the files of the dashboard
say nothing of a fabric. A browser asks for them before its user could give a token; the page sends it with what it asks
for."""

_NAMES = {"URI": "uri", "DNS": "dns", "email": "email"}
"""Kinds of names that the `ssl` module finds in a certificate -> as lists write them."""


def is_stranger(grant: Grant) -> bool:
    """Whether a request has no credential. A client in the list may have the same name."""
    return grant is HEALTH or grant is NOBODY


class Peer(NamedTuple):
    """The other end of a connection: its address, for logs, and what lists may call its certificate.

    The narrowest identity is first. There is none without a certificate, which the handshake has verified.
    """

    address: str
    identities: tuple[str, ...] = ()


class Access(Protocol):
    """Decides who may use which models. It belongs to the event loop's thread, and its lists may change."""

    def check(self, authorization: str | None, peer: Peer, path: str = "") -> Grant:
        """The models that a request may use.

        `authorization` is the value of the header, `path` is without the query. Raises Unauthenticated, which says
        what is missing. A path in `PUBLIC` needs no credential.
        """


class Open:
    """Lets everyone use all models: for loopback, or a network that is trusted."""

    def check(self, authorization: str | None, peer: Peer, path: str = "") -> Grant:
        return ANYONE


class Listed:
    """Lets in who has a token or a certificate of a list.

    `grants` has them by `token_entry` and by the names of `identities`. It may be replaced at any time.
    """

    def __init__(self, grants: Mapping[str, Grant], *, certificates: bool) -> None:
        self.grants = grants
        self._certificates = certificates

    def check(self, authorization: str | None, peer: Peer, path: str = "") -> Grant:
        """A request is let in by either credential; a token that is known goes before a certificate."""
        if authorization is not None and (grant := self.grants.get(token_entry(_token(authorization)))):
            return grant
        for identity in peer.identities:
            if grant := self.grants.get(identity):
                return grant
        if path in PUBLIC:
            return HEALTH
        raise Unauthenticated(self._refusal(authorization, peer))

    def _refusal(self, authorization: str | None, peer: Peer) -> str:
        if authorization is not None:
            if not _token(authorization):
                return "the authorization is not a bearer token; send the header 'Authorization: Bearer TOKEN'"
            return "the token is not known to this gateway; ask for one, or check that it is complete"
        if peer.identities:
            names = ", ".join(peer.identities)
            return f"no name of the client certificate is known to this gateway; it has {names}"
        how = "; send the header 'Authorization: Bearer TOKEN'"
        return f"the request has no credential{how}{', or use a client certificate' * self._certificates}"


def identities(der: bytes, names: Mapping[str, Any]) -> tuple[str, ...]:
    """What lists may call a certificate. `names` is what `ssl.SSLSocket.getpeercert` gives.

    The fingerprint is first, then the alternative names in their order, then the common name.
    """
    found = [certificate_entry(der)]
    alternative: Sequence[tuple[str, str]] = names.get("subjectAltName", ())
    for kind, name in alternative:
        if kind in _NAMES:
            found.append(f"{_NAMES[kind]}:{name.lower() if kind == 'DNS' else name}")
    for attributes in names.get("subject", ()):
        found.extend(f"cn:{value}" for name, value in attributes if name == "commonName")
    return tuple(found)


def _token(authorization: str) -> str:
    """The token of "Bearer TOKEN", or "" if it is not that."""
    scheme, _, token = authorization.strip().partition(" ")
    return token.strip() if scheme.lower() == "bearer" else ""
