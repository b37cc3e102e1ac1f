"""TLS: contexts for HTTP and gRPC, and the certificates of clients."""

from __future__ import annotations

import asyncio
import ssl

from zmq_offload.gateway.access.decisions import Certificate, identities


def peer_certificate(transport: asyncio.BaseTransport) -> Certificate | None:
    """The client's certificate of a connection, or None if it has none. Ask once, when the connection is made."""
    tls: ssl.SSLObject | None = transport.get_extra_info("ssl_object")
    der = tls.getpeercert(binary_form=True) if tls else None
    if tls is None or not der:
        return None
    return Certificate(identities(der, tls.getpeercert() or {}))
