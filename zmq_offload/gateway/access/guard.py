"""What a gateway's options say of access: its list, its certificates, and files of both that change while it runs."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from functools import partial
from typing import TypeVar

from zmq_offload.common.notes import Notes
from zmq_offload.common.units import counted
from zmq_offload.errors import InvalidArgument, Unauthenticated
from zmq_offload.gateway.access.decisions import Access, Listed, Open, Peer
from zmq_offload.gateway.access.tls import Contexts, Files
from zmq_offload.net.addresses import is_loopback
from zmq_offload.net.credentials import CREDENTIALS, TOKEN
from zmq_offload.net.grants import Grant
from zmq_offload.net.keylist import read_list
from zmq_offload.net.watched import Watched

Value = TypeVar("Value")

log = logging.getLogger("gateway")

_LOOK_EVERY = 1.0
"""Seconds between looks at the files."""


def check_exposure(addresses: Sequence[str], *, listed: bool, tls: bool, insecure: bool) -> None:
    """Raise InvalidArgument if others on the network could use the gateway, or read tokens, without `insecure`."""
    for address in addresses:
        if insecure or is_loopback(f"tcp://{address}"):
            continue
        if not listed:
            raise InvalidArgument(
                f"{address} can be reached from other machines without tokens or client certificates; give "
                "--access-list, --tls-cert and --tls-key, or --insecure if the network is trusted"
            )
        if not tls:
            raise InvalidArgument(
                f"tokens would be sent to {address} in clear text; give --tls-cert and --tls-key, or --insecure if the "
                "network is trusted"
            )


class Guard:
    """Access and TLS of one gateway. Raises FailedPrecondition, naming the file, if a file cannot be used.

    Attributes
    ----------
    access : Access
    contexts : Contexts or None
        None: connections are not encrypted.
    """

    def __init__(self, access_list: str | None, files: Files | None) -> None:
        self.access: Access = Open()
        self.contexts: Contexts | None = None
        self._looks: list[Callable[[], None]] = []
        self._timer: asyncio.TimerHandle | None = None
        if access_list is not None:
            self._watch_list(access_list, certificates=files is not None and files.client_ca is not None)
        if files is not None:
            self._watch_certificates(files)

    def _watch_list(self, path: str, *, certificates: bool) -> None:
        read = partial(read_list, path, CREDENTIALS)
        listed: Watched[dict[str, Grant]] = Watched((path,), read, log, "the clients stay as they were")
        access = Listed(listed.value, certificates=certificates)
        self.access = _Audited(access)

        def use(grants: dict[str, Grant]) -> None:
            access.grants = grants
            log.info("authorized: %s in %s", counted(len(grants), "credential"), path)
            if not certificates and (unused := sum(not entry.startswith(TOKEN) for entry in grants)):
                log.warning("%s in %s: not used without --client-ca", counted(unused, "certificate"), path)

        use(listed.value)
        self._follow(listed, use)

    def _watch_certificates(self, files: Files) -> None:
        contexts = Contexts(files)
        paths = tuple(path for path in files if path is not None)
        kept = "connections get the certificate that was read before"
        self._follow(Watched(paths, contexts.load, log, kept), contexts.use)
        self.contexts = contexts

    def _follow(self, watched: Watched[Value], use: Callable[[Value], None]) -> None:
        def look() -> None:
            if watched.reload():
                use(watched.value)

        self._looks.append(look)

    def watch(self) -> None:
        """Look at the files every second, in the running loop, until `close`."""
        self._timer = asyncio.get_running_loop().call_later(_LOOK_EVERY, self.watch)
        self.reload()

    def reload(self) -> None:
        """Use what the files say now."""
        for look in self._looks:
            look()

    def close(self) -> None:
        """Look no more."""
        if self._timer is not None:
            self._timer.cancel()


class _Audited:
    """Writes refusals to the log, limited in rate, because strangers cause them."""

    def __init__(self, access: Access) -> None:
        self._access = access
        self._notes = Notes()

    def check(self, authorization: str | None, peer: Peer, path: str = "") -> Grant:
        try:
            return self._access.check(authorization, peer, path)
        except Unauthenticated as error:
            now = asyncio.get_running_loop().time()
            self._notes.add(now, "refused", f"{peer.address} is refused {path}: {error.message.partition(';')[0]}")
            for level, line in self._notes.take():
                log.log(level, "%s", line)
            raise
