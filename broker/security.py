"""Who may connect: CurveZMQ on both sockets, decided by pyzmq's ZAP authenticator, from lists that may change."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Mapping
from typing import Any

import zmq
from zmq.auth.thread import ThreadAuthenticator

from broker.events import Authorized
from zmq_offload.errors import InvalidArgument, OffloadError
from zmq_offload.grants import Grant
from zmq_offload.keys import read_list, read_pair

log = logging.getLogger("broker")

_LOOPBACK = re.compile(r"tcp://(127\.[\d.]+|localhost|\[::1\]):.*|(ipc|inproc)://.*")


def check_exposure(endpoints: tuple[str, ...], *, secured: bool, insecure: bool) -> None:
    """Raises InvalidArgument where anybody on the network could connect and nobody said that this is meant."""
    for endpoint in endpoints:
        if not (secured or insecure or _LOOPBACK.fullmatch(endpoint)):
            raise InvalidArgument(
                f"{endpoint} can be reached from other machines, and there are no keys: give --server-key, "
                "--authorized-clients and --authorized-workers, or --insecure if the network is trusted"
            )


class _Provider:
    """What pyzmq's authenticator asks. It does so from a thread of its own; `keys` is replaced, never changed."""

    def __init__(self) -> None:
        self.keys: Mapping[str, Grant] = {}

    def callback(self, domain: str, key: bytes) -> bool:
        return key.decode() in self.keys


class Security:
    """The lists of one broker. A key in one opens that socket alone."""

    def __init__(self, context: zmq.Context[Any], key: str, clients: str, workers: str) -> None:
        self._pair = read_pair(key)
        self._files = {"clients": clients, "workers": workers}
        self._providers = {name: _Provider() for name in self._files}
        self._stamps: dict[str, Any] = {}
        self.authorized = self._read()
        self._authenticator = ThreadAuthenticator(context)
        self._authenticator.start()
        for name, provider in self._providers.items():
            self._authenticator.configure_curve_callback(name, provider)

    def protect(self, socket: zmq.Socket[bytes], whom: str) -> None:
        """Let only the keys of list `whom` connect to a socket that is not bound yet."""
        socket.curve_secretkey, socket.curve_publickey = self._pair.secret, self._pair.public
        socket.curve_server = True
        socket.zap_domain = whom.encode()

    def reload(self) -> Authorized | None:
        """The lists, if they changed. One that cannot be read keeps those in that are, and says so once."""
        stamps = {name: _stamp(path) for name, path in self._files.items()}
        if stamps == self._stamps:
            return None
        try:
            return self._read()
        except OffloadError as error:
            self._stamps = stamps
            log.error("%s; the keys stay as they were", error)
            return None

    def _read(self) -> Authorized:
        self._stamps = {name: _stamp(path) for name, path in self._files.items()}
        lists = {name: read_list(path) for name, path in self._files.items()}
        for name, grants in lists.items():
            self._providers[name].keys = grants
        log.info("authorized: %d keys of clients, %d of workers", len(lists["clients"]), len(lists["workers"]))
        return Authorized(lists["clients"], lists["workers"])

    def close(self) -> None:
        self._authenticator.stop()


def _stamp(path: str) -> Any:
    try:
        found = os.stat(path)
    except OSError as error:
        return error.errno
    return found.st_ino, found.st_mtime_ns, found.st_size
