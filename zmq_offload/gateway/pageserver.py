"""A server of the dashboard alone, for `zmq-offload dashboard`."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Sequence

import uvloop

from zmq_offload.client.aio import AsyncClient
from zmq_offload.dashboard.watch import TIMEOUT, Watch
from zmq_offload.errors import InvalidArgument
from zmq_offload.gateway.access.decisions import Open
from zmq_offload.gateway.http.limits import Limits
from zmq_offload.gateway.http.router import Router
from zmq_offload.gateway.http.server import HttpServer
from zmq_offload.gateway.page import front_routes
from zmq_offload.gateway.ports import Door, drain, listen
from zmq_offload.net.addresses import is_loopback

_LIMITS = Limits(body_bytes=4096, held_bytes=1024 * 1024, header_bytes=16 * 1024, connections=256, idle=60, receive=10)

_GRACE = 1.0
"""Seconds in which answers are finished at the end."""


def serve(brokers: Sequence[str], address: str, *, insecure: bool = False) -> int:
    """Serve the dashboard of a broker at HOST:PORT until SIGTERM, SIGINT or SIGHUP."""
    if not insecure and not is_loopback(f"tcp://{address}"):
        raise InvalidArgument(
            f"{address} can be reached from other machines, and this page has no tokens; use the option --dashboard of "
            "a gateway with an access list, or --insecure if the network is trusted"
        )
    uvloop.run(_run(brokers, address))
    return 0


async def _run(brokers: Sequence[str], address: str) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # nohup sets this
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with AsyncClient(brokers, timeout=TIMEOUT) as client:
        watch = Watch(client.status)
        router = Router("the page is at /")
        for route in front_routes(watch):
            router.add(*route)
        ports = await listen([Door("http", address, HttpServer(router, Open(), _LIMITS), None)])
        looking = asyncio.ensure_future(watch.run())
        try:
            print(f"ready http={ports[0].address}", flush=True)
            await stop.wait()
            await drain(ports, _GRACE, lambda: None)
        finally:
            looking.cancel()
