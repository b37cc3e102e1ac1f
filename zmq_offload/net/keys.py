"""CurveZMQ keys: files with one key pair each.

A pair is two files in pyzmq's format: `NAME.key` is public, to be given to others; `NAME.key_secret` stays where it is
used. `zmq_offload.net.keylist` has the lists of keys that a broker accepts.
"""

from __future__ import annotations

import errno
import os
import struct
import tempfile
from pathlib import Path
from typing import NamedTuple

import zmq
import zmq.auth
from zmq.utils import z85

from zmq_offload.errors import AlreadyExists, FailedPrecondition, InvalidArgument
from zmq_offload.net.pyzmq_internals import is_missing_certificate, is_not_a_certificate
from zmq_offload.protocol.names import check_model_name

KEY_CHARS = 40
"""Characters of a key in Z85."""


class KeyPair(NamedTuple):
    """A pair of keys in Z85, as pyzmq takes them."""

    public: bytes
    secret: bytes


def new_keys(name: str, folder: Path, *, force: bool = False) -> tuple[Path, Path]:
    """Make a pair and return the paths of its public and its secret file. Raises AlreadyExists, FailedPrecondition."""
    check_model_name(name, "key")
    public, secret = folder / f"{name}.key", folder / f"{name}.key_secret"
    for path in (public, secret):
        if path.exists() and not force:
            raise AlreadyExists(f"{path} exists, and a new key would lock out its users; use another name or --force")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # Drafted in a folder that only the owner can read, so that others can never read the secret. If this fails or
        # is killed, the old pair stays.
        with tempfile.TemporaryDirectory(dir=folder, prefix=f".{name}-") as draft:
            made = [Path(path) for path in zmq.auth.create_certificates(draft, name, {"name": name})]
            made[0].chmod(0o644)
            made[1].chmod(0o600)
            made[1].replace(secret)
            made[0].replace(public)
    except OSError as error:
        raise FailedPrecondition(f"{folder} cannot be written: {error.strerror or error}") from None
    return public, secret


def read_public(path: str | os.PathLike[str]) -> bytes:
    """Read the public key from either file of a pair. Raises FailedPrecondition naming the file."""
    return _read(path)[0]


def read_pair(path: str | os.PathLike[str]) -> KeyPair:
    """Read a pair from its secret file. Raises FailedPrecondition naming the file."""
    public, secret = _read(path)
    if secret is None:
        raise FailedPrecondition(f"{path} has no secret key; use the file that ends in .key_secret")
    if zmq.curve_public(secret) != public:
        raise FailedPrecondition(f"{path} is damaged: its two keys are not a pair")
    return KeyPair(public, secret)


def check_key(key: str | bytes) -> None:
    """Raise InvalidArgument if this is not a key in Z85."""
    try:
        if len(key) != KEY_CHARS or len(z85.decode(key)) != KEY_CHARS * 4 // 5:
            raise ValueError
    except (ValueError, KeyError, struct.error):
        raise InvalidArgument(f"the key is not {KEY_CHARS} characters of Z85") from None


def _read(path: str | os.PathLike[str]) -> tuple[bytes, bytes | None]:
    try:
        public, secret = zmq.auth.load_certificate(path)
    except (OSError, ValueError) as error:
        raise FailedPrecondition(f"{path}{_reason(path, error)}") from None
    try:
        check_key(public)
        check_key(public if secret is None else secret)
    except InvalidArgument as error:
        raise FailedPrecondition(f"{path} is damaged: {error.message}") from None
    return public, secret


def _reason(path: str | os.PathLike[str], error: OSError | ValueError) -> str:
    if isinstance(error, UnicodeDecodeError) or is_not_a_certificate(error):
        return " is not a key file; make one with `zmq-offload keys new NAME`"
    if is_missing_certificate(error, path):
        return f": {os.strerror(errno.ENOENT)}"
    return f": {getattr(error, 'strerror', None) or error}"
