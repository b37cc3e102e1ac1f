"""CurveZMQ keys: files with one key pair each, and lists of the keys that a broker lets in.

A pair is two files of pyzmq's: `NAME.key`, public, to be given away, and `NAME.key_secret`, to be kept where it is
used. A list has a line for each key: the public key, a name for people and logs, and, if the key is not for every
model, the models that it is for, separated by commas. Lines that begin with "# " are comments.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import zmq.auth

from zmq_offload.errors import AlreadyExists, FailedPrecondition, InvalidArgument, NotFound
from zmq_offload.grants import Grant
from zmq_offload.repository import check_model_name

KEY_CHARS = 40
"""A key in Z85."""


class KeyPair(NamedTuple):
    """Keys in Z85, as pyzmq takes them."""

    public: bytes
    secret: bytes


def new_keys(name: str, folder: Path, *, force: bool = False) -> tuple[Path, Path]:
    """Make a pair; the paths of its public and its secret file. Raises AlreadyExists, FailedPrecondition."""
    check_model_name(name)
    public, secret = folder / f"{name}.key", folder / f"{name}.key_secret"
    for path in (public, secret):
        if path.exists() and not force:
            raise AlreadyExists(f"{path} exists; whoever uses it would be locked out by a new one")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        secret.unlink(missing_ok=True)  # one that is replaced keeps the permissions that it had
        previous = os.umask(0o077)  # the secret must never be readable by others, not even for a moment
        try:
            zmq.auth.create_certificates(folder, name, {"name": name})
        finally:
            os.umask(previous)
        public.chmod(0o644)
    except OSError as error:
        raise FailedPrecondition(f"{folder} cannot be written: {error.strerror or error}") from None
    return public, secret


def read_public(path: str | os.PathLike[str]) -> bytes:
    """The public key of either file of a pair. Raises FailedPrecondition naming the file."""
    return _read(path)[0]


def read_pair(path: str | os.PathLike[str]) -> KeyPair:
    """The pair of a secret file. Raises FailedPrecondition naming the file."""
    public, secret = _read(path)
    if secret is None:
        raise FailedPrecondition(f"{path} has no secret key; the file that ends in .key_secret has")
    return KeyPair(public, secret)


def _read(path: str | os.PathLike[str]) -> tuple[bytes, bytes | None]:
    try:
        public, secret = zmq.auth.load_certificate(path)
    except (OSError, ValueError) as error:
        raise FailedPrecondition(f"{path}: {getattr(error, 'strerror', None) or error}") from None
    for key in (public, secret):
        if key is not None and len(key) != KEY_CHARS:
            raise FailedPrecondition(f"{path} is damaged: a key has {KEY_CHARS} characters")
    return public, secret


def read_list(path: str | os.PathLike[str]) -> dict[str, Grant]:
    """Public key -> what it is for. Raises FailedPrecondition naming file and line."""
    grants = {}
    try:
        lines = Path(path).read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise FailedPrecondition(f"{path}: {getattr(error, 'strerror', None) or error}") from None
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.startswith("# "):
            continue
        key, *rest = line.split()
        if len(key) != KEY_CHARS or not 1 <= len(rest) <= 2:
            raise FailedPrecondition(f"{path}, line {number}: a key of {KEY_CHARS} characters, a name, perhaps models")
        try:
            models = frozenset(map(check_model_name, rest[1].split(","))) if len(rest) == 2 else None
        except InvalidArgument as error:
            raise FailedPrecondition(f"{path}, line {number}: {error.message}") from None
        grants[key] = Grant(rest[0], models)
    return grants


def write_list(path: Path, grants: Mapping[str, Grant]) -> None:
    """Replace a list at once, so that a broker never reads half of one. Raises FailedPrecondition."""
    lines = [
        " ".join([key, grant.name, *([",".join(sorted(grant.models))] if grant.models else [])])
        for key, grant in grants.items()
    ]
    try:
        with tempfile.NamedTemporaryFile("w", dir=path.parent, prefix=f".{path.name}-", delete=False) as draft:
            draft.write("".join(f"{line}\n" for line in lines))
        Path(draft.name).chmod(0o644)
        Path(draft.name).rename(path)
    except OSError as error:
        raise FailedPrecondition(f"{path} cannot be written: {error.strerror or error}") from None


def authorize(path: Path, public: bytes, grant: Grant) -> None:
    """Add a key to a list, which is made if it is not there."""
    grants = read_list(path) if path.exists() else {}
    write_list(path, {**grants, public.decode(): grant})


def revoke(path: Path, name: str) -> None:
    """Take all keys of a name out of a list. Raises NotFound."""
    grants = read_list(path)
    kept = {key: grant for key, grant in grants.items() if grant.name != name}
    if len(kept) == len(grants):
        raise NotFound(f"{path} has no key of {name!r}; it has {', '.join(g.name for g in grants.values()) or 'none'}")
    write_list(path, kept)
