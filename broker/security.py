"""Access control: CurveZMQ on both sockets, and pyzmq's ZAP authenticator with key lists that may change."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Mapping
from typing import TypeAlias

import zmq
from zmq.auth.thread import ThreadAuthenticator

from broker.events import Authorized
from broker.notes import Notes
from zmq_offload.common.units import counted
from zmq_offload.errors import InvalidArgument, OffloadError
from zmq_offload.net.addresses import is_loopback
from zmq_offload.net.grants import Grant
from zmq_offload.net.keylist import read_list
from zmq_offload.net.keys import read_pair

log = logging.getLogger("broker")

_Stamp: TypeAlias = tuple[int, int, int, int] | int | None
"""What tells whether a file changed: parts of its status, or the error."""


def check_exposure(endpoints: tuple[str, ...], *, secured: bool, insecure: bool) -> None:
    """Raise InvalidArgument if others on the network could connect without a key and `insecure` is not set."""
    for endpoint in endpoints:
        if not (secured or insecure or is_loopback(endpoint)):
            raise InvalidArgument(
                f"{endpoint} can be reached from other machines without keys; give --server-key, --authorized-clients "
                "and --authorized-workers, or --insecure if the network is trusted"
            )


class _Provider:
    """The callback of pyzmq's authenticator. It runs in another thread, so that `keys` is replaced, never changed."""

    def __init__(self, file: str) -> None:
        self.keys: Mapping[str, Grant] = {}
        self._file = file
        self._notes = Notes()

    def callback(self, domain: str, key: bytes) -> bool:
        if (allowed := key.decode() in self.keys) is False:
            text = f"a connection is refused: key {key.decode()} is not in {self._file}, the key list of {domain}"
            self._notes.add(time.monotonic(), "keys", text)
            for level, line in self._notes.take():
                log.log(level, "%s", line)
        return allowed


class Security:
    """The key lists of one broker. A key in one list opens only that socket."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], key: str, clients: str, workers: str) -> None:
        self._pair = read_pair(key)
        self._files = {"clients": clients, "workers": workers}
        self._providers = {name: _Provider(file) for name, file in self._files.items()}
        self._stamps: dict[str, _Stamp] = {}
        self._complaints: dict[str, str] = {}
        self.authorized = self._read()
        self._authenticator = ThreadAuthenticator(context)
        self._authenticator.start()
        for name, provider in self._providers.items():
            self._authenticator.configure_curve_callback(name, provider)

    def protect(self, socket: zmq.Socket[bytes], role: str) -> None:
        """Let only keys of one list (`role`: "clients" or "workers") connect to a socket that is not bound yet."""
        socket.curve_secretkey, socket.curve_publickey = self._pair.secret, self._pair.public
        socket.curve_server = True
        socket.zap_domain = role.encode()

    def reload(self) -> Authorized | None:
        """Read the lists again; return them if one changed.

        A list that cannot be read keeps its keys, which is logged once, and each call tries again: a revocation must
        not be lost because a file could not be opened for a moment.
        """
        changed = [name for name, path in self._files.items() if _stamp(path) != self._stamps.get(name)]
        read = [name for name in changed if self._read_again(name)]
        return self._authorized() if read else None

    def _read_again(self, name: str) -> bool:
        try:
            self._read_one(name)
        except OffloadError as error:
            if self._complaints.get(name) != str(error):
                log.error("%s; the keys of %s stay as they were", error, name)
            self._complaints[name] = str(error)
            return False
        return True

    def _read(self) -> Authorized:
        for name in self._files:
            self._read_one(name)
        return self._authorized()

    def _read_one(self, name: str) -> None:
        stamp = _stamp(self._files[name])  # before the file is read, so that a change in between is seen next time
        self._providers[name].keys = read_list(self._files[name])
        self._stamps[name] = stamp
        self._complaints.pop(name, None)

    def _authorized(self) -> Authorized:
        clients, workers = (self._providers[name].keys for name in ("clients", "workers"))
        log.info("authorized: %s of clients, %d of workers", counted(len(clients), "key"), len(workers))
        return Authorized(clients, workers)

    def close(self) -> None:
        self._authenticator.stop()


def _stamp(path: str) -> _Stamp:
    try:
        found = os.stat(path)
    except OSError as error:
        return error.errno
    return found.st_ino, found.st_mtime_ns, found.st_ctime_ns, found.st_size
