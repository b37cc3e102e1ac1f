"""What the list of a gateway has in place of keys: tokens, and names of client certificates.

The first word of a line says what it is:

    token:SHA256               the hash of a bearer token, so that who reads the list can use none of them
    certificate:SHA256         the fingerprint of a certificate
    dns:NAME  uri:NAME  email:NAME      an alternative name of a certificate
    cn:NAME                    the common name of its subject
"""

from __future__ import annotations

import hashlib
import re
import secrets
import ssl
from pathlib import Path

from zmq_offload.errors import FailedPrecondition, InvalidArgument
from zmq_offload.net.keylist import Form
from zmq_offload.net.keys import KEY_CHARS, check_key

TOKEN = "token:"
"""The begin of an entry for a token; others are for certificates."""

_HASHES = ("token", "certificate")
_NAMES = ("dns", "uri", "email", "cn")

_SHORTEST = 20
"""Characters of a token. Shorter ones could be guessed from their hash."""

_PEM = re.compile(r"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", re.DOTALL)


def new_token() -> str:
    """A random token of 256 bits. Its prefix lets programs that look for secrets in files find it."""
    return f"zo_{secrets.token_urlsafe(32)}"


def check_token(token: str) -> str:
    """Return a token that somebody else made. Raises InvalidArgument for one that cannot be sent or is too short."""
    if not re.fullmatch(r"[!-~]+", token):
        raise InvalidArgument("the token has characters that a header cannot have; use letters and digits of ASCII")
    if len(token) < _SHORTEST:
        raise InvalidArgument(f"the token has {len(token)} characters; use at least {_SHORTEST}, at random")
    return token


def token_entry(token: str) -> str:
    """What a list has for a token.

    Tokens are random and long, so that neither salt nor a slow hash is needed. Looking the hash up in a dictionary
    takes a time that depends on the hash, but nobody can choose tokens by their hash to learn another one from that.
    """
    return f"{TOKEN}{hashlib.sha256(token.encode(errors='surrogatepass')).hexdigest()}"


def certificate_entry(der: bytes) -> str:
    """What a list has for a certificate, whatever its names are."""
    return f"certificate:{hashlib.sha256(der).hexdigest()}"


def read_certificate(path: Path) -> str:
    """The entry of the first certificate in a PEM file. Raises FailedPrecondition naming the file."""
    try:
        text = path.read_text(encoding="ascii", errors="replace")
    except OSError as error:
        raise FailedPrecondition(f"{path}: {error.strerror or error}") from None
    try:
        der = ssl.PEM_cert_to_DER_cert(_PEM.findall(text)[0])
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cadata=der)
        return certificate_entry(der)
    except (IndexError, ValueError, ssl.SSLError):
        raise FailedPrecondition(
            f"{path} is not a certificate in PEM; use one, or a name of a certificate, such as dns:NAME or cn:NAME"
        ) from None


def is_entry(text: str) -> bool:
    """Whether a text says that it is an entry, correct or not."""
    return text.partition(":")[0] in (*_HASHES, *_NAMES) and ":" in text


def check_entry(text: str) -> None:
    """Raise InvalidArgument if this is not the first word of a line."""
    kind, _, value = text.partition(":")
    if kind in _HASHES:
        if not re.fullmatch("[0-9a-f]{64}", value):
            raise InvalidArgument(f"{kind}:... is not followed by a SHA-256; use 64 digits from 0 to f in lower case")
    elif kind not in _NAMES or not value:
        kinds = ", ".join(f"{kind}:..." for kind in (*_HASHES, *_NAMES))
        raise InvalidArgument(f"{text[:100]!r} is not a token or a name of a certificate; use one of {kinds}")
    elif re.search(r"\s", value):
        raise InvalidArgument(f"{text[:100]!r} has a space; use another name of the certificate, or its fingerprint")
    elif kind == "dns" and value != value.lower():
        raise InvalidArgument(f"{text[:100]!r} has upper-case letters; use {text[:100].lower()!r}")


CREDENTIALS = Form("credential", check_entry)


def _check_any(text: str) -> None:
    if len(text) == KEY_CHARS and not is_entry(text):
        check_key(text)
    else:
        check_entry(text)


KEYS_OR_CREDENTIALS = Form("credential", _check_any)
"""For commands that change the list of a broker or of a gateway alike."""
