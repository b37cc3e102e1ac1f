"""URLs of servers. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple
from urllib.parse import parse_qsl, unquote

from zmq_offload.errors import InvalidArgument

_URL = re.compile(
    r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*)://(?P<place>[^/?#\s]*)(?P<path>/[^?#\s]*)?(?:\?(?P<query>[^#\s]*))?"
)
_PLACE = re.compile(r"(?P<host>\[[0-9A-Fa-f:.%]+\]|[A-Za-z0-9][A-Za-z0-9._-]*):(?P<port>[0-9]{1,5})")


class Url(NamedTuple):
    """A server's URL. `host` has no brackets; `path` is "" or begins with a slash, and does not end with one."""

    text: str
    scheme: str
    host: str
    port: int
    path: str
    query: Mapping[str, str]

    @property
    def address(self) -> str:
        """HOST:PORT, with the brackets of an IPv6 address."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def shown(self) -> str:
        """The URL for messages."""
        return shown(self.text)

    def only(self, *keys: str, path: bool = False) -> Url:
        """The URL itself, if it has no path (unless `path`) and no keys but these. Raises InvalidArgument."""
        if self.path and not path:
            raise InvalidArgument(f"server {self.shown!r} has a path; use {self.scheme}://HOST:PORT")
        for key in self.query:
            if key not in keys:
                known = f"; known are {', '.join(keys)}" if keys else f"; use {self.scheme}://HOST:PORT"
                raise InvalidArgument(f"server {self.shown!r} has {key!r} after the question mark{known}")
        return self


def shown(text: str) -> str:
    """A URL without what may be secret, for messages and logs: its query, and all but its scheme if it has an @."""
    return f"{text.partition('://')[0]}://..." if "@" in text else text.partition("?")[0]


def scheme_of(text: object) -> str:
    """The scheme of a URL, in lower case. Raises InvalidArgument for what is no URL."""
    if not isinstance(text, str):
        raise InvalidArgument(f"server {text!r} is not a string; use a URL such as grpc://HOST:PORT")
    scheme, separator, _ = text.partition("://")
    if not separator or not scheme:
        raise InvalidArgument(f"server {shown(text)!r} is not a URL; use one such as grpc://HOST:PORT")
    if "," in text and text.count("://") > 1:
        raise InvalidArgument(f"server {shown(text)!r} is several URLs; give them as a list")
    return scheme.lower()


def parse(text: str) -> Url:
    """Read SCHEME://HOST:PORT[/PATH][?KEY=VALUE&...]. Raises InvalidArgument, which says what is wrong."""
    scheme = scheme_of(text)
    if re.search(r"\s", text):
        raise InvalidArgument(f"server {shown(text)!r} has a space in its URL; write %20 for one")
    found = _URL.fullmatch(text)
    place = found and _PLACE.fullmatch(found["place"])
    if found is None or place is None:
        raise InvalidArgument(f"server {shown(text)!r} has no host and port; use {scheme}://HOST:PORT")
    port = int(place["port"])
    if not 0 < port < 65536:
        raise InvalidArgument(f"server {shown(text)!r}: port {port} is not from 1 to 65535")
    query = (found["query"] or "").replace("+", "%2B")  # names of files have it: it is no space, as in forms
    try:
        pairs = parse_qsl(query, keep_blank_values=True, strict_parsing=bool(query))
    except ValueError:
        raise InvalidArgument(f"server {shown(text)!r}: what follows the question mark is not KEY=VALUE") from None
    host = place["host"].removeprefix("[").removesuffix("]")
    return Url(text, scheme, host, port, unquote(found["path"] or "").rstrip("/"), dict(pairs))
