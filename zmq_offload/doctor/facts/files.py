"""What is in key files, key lists, certificates and the repository."""

from __future__ import annotations

import contextlib
import os
import ssl
from pathlib import Path

from zmq_offload.artifacts import config
from zmq_offload.artifacts.repository import Repository
from zmq_offload.doctor.checks.files import Certificate, KeyFile, KeyList, RepositoryFacts, Version
from zmq_offload.errors import FailedPrecondition, OffloadError, one_line
from zmq_offload.net.credentials import CREDENTIALS
from zmq_offload.net.keylist import KEYS, read_list
from zmq_offload.net.keys import read_pair, read_public
from zmq_offload.protocol.names import NAME_PATTERN


def key_file(option: str, path: str, *, secret: bool) -> KeyFile:
    """A public key, or a pair with its `secret` key."""
    try:
        public = read_pair(path).public if secret else read_public(path)
        return KeyFile(option, path, "", public.decode(), secret, os.stat(path).st_mode & 0o777)
    except OffloadError as error:
        return KeyFile(option, path, error.message)


def key_list(option: str, path: str) -> KeyList:
    """A list of keys, or of a gateway's credentials."""
    try:
        grants = read_list(path, CREDENTIALS if option == "--access-list" else KEYS)
        return KeyList(option, path, "", {key: grant.name for key, grant in grants.items()})
    except OffloadError as error:
        return KeyList(option, path, error.message)


def certificate(path: str, key: str) -> Certificate:
    """A gateway's certificate and its key."""
    try:
        for each in (path, key):
            Path(each).read_bytes()
        server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        server.load_cert_chain(path, key, password=lambda: _encrypted(key))
        begins, ends = _validity(server, path)
        return Certificate(path, "", begins, ends, key, os.stat(key).st_mode & 0o777)
    except OffloadError as error:
        return Certificate(path, error.message)
    except ssl.SSLError as error:
        reason = error.reason or one_line(error)
        if reason == "KEY_VALUES_MISMATCH":
            return Certificate(path, f"{key} is not the key of the certificate in {path}")
        return Certificate(path, f"{path} and {key} are not a certificate and its key in PEM: {reason}")
    except OSError as error:
        return Certificate(path, f"{error.filename}: {error.strerror}")


def _encrypted(key: str) -> str:
    """OpenSSL would ask for the password at the terminal."""
    raise FailedPrecondition(f"{key} is encrypted; decrypt it with `openssl pkey -in {key}`")


def _validity(server: ssl.SSLContext, path: str) -> tuple[float | None, float | None]:
    """When a certificate is valid: a handshake in memory reads it, since Python shows only those of a peer.

    The certificate itself is the authority, and its time is not verified: an expired one is to be read, too.
    """
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname = False
    client.verify_flags = ssl.VerifyFlags(ssl.VERIFY_X509_PARTIAL_CHAIN | _NO_CHECK_TIME)
    client.load_verify_locations(path)
    there, back = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = (client.wrap_bio(back, there), server.wrap_bio(there, back, server_side=True))
    with contextlib.suppress(ssl.SSLError):  # such as a chain that does not verify
        for _ in range(4):
            for end in ends:
                with contextlib.suppress(ssl.SSLWantReadError):
                    end.do_handshake()
        said = ends[0].getpeercert() or {}
        return tuple(ssl.cert_time_to_seconds(str(said[key])) for key in ("notBefore", "notAfter"))  # type: ignore[return-value]
    return None, None


_NO_CHECK_TIME = 0x200000
"""X509_V_FLAG_NO_CHECK_TIME of OpenSSL, which `ssl` has no name for."""


def repository(path: str) -> RepositoryFacts:
    """What is in a repository, each file read and compared with its checksum."""
    root = Path(path)
    if not root.is_dir():
        return RepositoryFacts(path, f"{path} is not a folder" if root.exists() else f"{path} does not exist")
    try:
        found = Repository(root)
        versions = [_version(found, name, number) for name in found.models() for number in found.versions(name)]
        folders = sorted(p.name for p in root.iterdir() if p.is_dir() and not p.name.startswith("."))
    except (FailedPrecondition, OSError) as error:
        return RepositoryFacts(path, error.message if isinstance(error, OffloadError) else f"{path}: {error.strerror}")
    strays = [name for name in folders if not NAME_PATTERN.fullmatch(name)]
    return RepositoryFacts(
        path, "", versions, strays, [error for name in found.models() for error in _config(root / name)]
    )


def _config(folder: Path) -> list[str]:
    """What is wrong with the configuration of a model."""
    try:
        config.read(folder)
    except FailedPrecondition as error:
        return [error.message]
    return []


def _version(repository: Repository, name: str, number: int) -> Version:
    shown = f"{name}:{number}"
    try:
        read = repository.read(name, number)
    except FailedPrecondition as error:
        return Version(shown, error.message)
    cpu = ""
    if read.cpu is not None:
        try:
            read.cpu.check(shown)
        except FailedPrecondition as error:
            cpu = error.message
    gpu = "" if read.gpu is None else ".".join(map(str, read.gpu.capability))
    return Version(shown, "", read.tvm_version, cpu, gpu)
