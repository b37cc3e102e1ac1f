"""How a server is reached safely: TLS, a client's certificate, and a bearer token.

A URL of a scheme that ends with "s" has TLS. What follows its question mark are paths of files::

    grpcs://HOST:PORT?ca=FILE&cert=FILE&key=FILE&token_file=FILE

`ca` has the authorities that the server's certificate is checked by, in place of those of the system. `cert` and `key`
are the client's own certificate. A token is in a file, or in the variable ``ZMQ_OFFLOAD_TOKEN``, and never in a URL:
URLs are seen in lists of processes, and in logs.
"""

from __future__ import annotations

import os
import re
import ssl
from collections.abc import Callable
from typing import NamedTuple

from zmq_offload.errors import FailedPrecondition, InvalidArgument, one_line, printable
from zmq_offload.transports.url import Url

KEYS = ("ca", "cert", "key", "token_file")
"""What URLs of servers may have after the question mark."""

_TOKEN = "ZMQ_OFFLOAD_TOKEN"
_SECURE = ("grpcs", "https")
_LONGEST = 16 << 10
"""Bytes of a token: more do not fit into a header that servers take."""


class Tls(NamedTuple):
    """The files of a URL; None for those that it does not name."""

    ca: str | None
    certificate: str | None
    key: str | None

    def context(self) -> ssl.SSLContext:
        """What the `ssl` module needs. Raises FailedPrecondition naming the file."""
        if self.ca is not None:
            read(self.ca)
        try:
            made = ssl.create_default_context(cafile=self.ca)
        except ssl.SSLError as error:
            raise FailedPrecondition(
                f"{self.ca} has no certificate in PEM: {error.reason or one_line(error)}"
            ) from None
        if self.certificate is not None and self.key is not None:
            read(self.certificate), read(self.key)
            try:
                made.load_cert_chain(self.certificate, self.key, password=_no_password(self.key))
            except ssl.SSLError as error:
                raise FailedPrecondition(
                    f"{self.certificate} and {self.key} are not a certificate and its key in PEM: "
                    f"{error.reason or one_line(error)}"
                ) from None
        return made


class Access(NamedTuple):
    """How a server is reached: with TLS or without, and the value of the header "authorization" if there is one."""

    tls: Tls | None
    authorization: str | None


def access(url: Url) -> Access:
    """What a URL and the environment say. Raises InvalidArgument, and FailedPrecondition for a file."""
    query = url.query
    if not url.scheme.endswith(_SECURE):
        for name in ("ca", "cert", "key"):
            if name in query:
                raise InvalidArgument(f"server {url.shown!r} has {name!r} without TLS; use {url.scheme}s://HOST:PORT")
        return Access(None, _authorization(query.get("token_file"), None))
    if ("cert" in query) != ("key" in query):
        given, missing = ("cert", "key") if "cert" in query else ("key", "cert")
        raise InvalidArgument(f"server {url.shown!r} has {given!r} without {missing!r}; give both")
    tls = Tls(query.get("ca"), query.get("cert"), query.get("key"))
    return Access(tls, _authorization(query.get("token_file"), os.environ.get(_TOKEN)))


def read(path: str) -> bytes:
    """The bytes of a file. Raises FailedPrecondition naming it."""
    try:
        with open(path, "rb") as file:
            return file.read()
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else one_line(error)
        raise FailedPrecondition(f"{printable(path)}: {reason}") from None


def _authorization(path: str | None, token: str | None) -> str | None:
    """The token of a file, or else of the variable, which is for connections with TLS alone."""
    if path is None and not token:
        return None
    source, text = (path, read(path)[: _LONGEST + 1].decode("latin-1").strip()) if path is not None else (_TOKEN, token)
    if text is None or not re.fullmatch(r"[!-~]+", text) or len(text) > _LONGEST:
        raise FailedPrecondition(
            f"{source} has no token; it has one line of at most {_LONGEST} printable characters of ASCII"
        )
    return f"Bearer {text}"


def _no_password(path: str) -> Callable[[], str]:
    def refuse() -> str:
        raise FailedPrecondition(f"{path} is encrypted; decrypt it with `openssl pkey -in {path}`")

    return refuse
