"""Access control: CurveZMQ on both sockets, and pyzmq's ZAP authenticator with key lists that may change."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from functools import partial

import zmq
from zmq.auth.thread import ThreadAuthenticator

from broker.events import Authorized
from zmq_offload.common.notes import Notes
from zmq_offload.common.units import counted
from zmq_offload.errors import InvalidArgument
from zmq_offload.net.addresses import is_loopback
from zmq_offload.net.grants import Grant
from zmq_offload.net.keylist import read_list
from zmq_offload.net.keys import read_pair
from zmq_offload.net.watched import Watched

log = logging.getLogger("broker")


def check_exposure(
    endpoints: tuple[str, ...],
    *,
    secured: bool,
    insecure: bool,
    remedy: str = "give --server-key, --authorized-clients and --authorized-workers",
) -> None:
    """Raise InvalidArgument if others on the network could connect without a key and `insecure` is not set."""
    for endpoint in endpoints:
        if not (secured or insecure or is_loopback(endpoint)):
            raise InvalidArgument(
                f"{endpoint} can be reached from other machines without keys; {remedy}, or give --insecure if the "
                "network is trusted"
            )


class _Provider:
    """The callback of pyzmq's authenticator. It runs in another thread, so that a list is replaced, never changed."""

    def __init__(self, name: str, file: str) -> None:
        self.list = Watched((file,), partial(read_list, file), log, f"the keys of {name} stay as they were")
        self._file = file
        self._notes = Notes()

    @property
    def keys(self) -> Mapping[str, Grant]:
        return self.list.value

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
        self._providers = {name: _Provider(name, file) for name, file in (("clients", clients), ("workers", workers))}
        self.authorized = self._authorized()
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
        """Read the lists again; return them if one changed."""
        changed = [provider.list.reload() for provider in self._providers.values()]
        return self._authorized() if any(changed) else None

    def _authorized(self) -> Authorized:
        clients, workers = (self._providers[name].keys for name in ("clients", "workers"))
        log.info("authorized: %s of clients, %d of workers", counted(len(clients), "key"), len(workers))
        return Authorized(clients, workers)

    def close(self) -> None:
        self._authenticator.stop()
