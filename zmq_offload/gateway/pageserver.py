"""A server of the dashboard alone, for `zmq-offload dashboard`."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from typing import Any

import uvloop

from zmq_offload.client.aio import AsyncClient
from zmq_offload.dashboard.together import Together
from zmq_offload.dashboard.watch import TIMEOUT, Ask, Watch
from zmq_offload.errors import InvalidArgument, OffloadError, Unavailable
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
    """Serve the dashboard of a broker, or of several together, at HOST:PORT until SIGTERM, SIGINT or SIGHUP."""
    if not insecure and not is_loopback(f"tcp://{address}"):
        raise InvalidArgument(
            f"{address} can be reached from other machines, and this page has no tokens; use the option --dashboard of "
            "a gateway with an access list, or --insecure if the network is trusted"
        )
    uvloop.run(_run(brokers, address))
    return 0


def _asking(brokers: Sequence[str], clients: Sequence[AsyncClient]) -> Ask:
    """What asks several brokers for the status of all."""
    together = Together(brokers)

    async def ask() -> Mapping[str, Any]:
        answers = await asyncio.gather(*(client.status() for client in clients), return_exceptions=True)
        answered: list[Mapping[str, Any] | str] = []
        for answer in answers:
            if isinstance(answer, BaseException):
                if not isinstance(answer, OffloadError):
                    raise answer
                answered.append(answer.message)
            else:
                answered.append(answer)
        if all(isinstance(answer, str) for answer in answered):
            raise Unavailable(str(answered[0]))
        now = asyncio.get_running_loop().time()
        together.add(answered, now)
        return together.status(now)

    return ask


async def _run(brokers: Sequence[str], address: str) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # nohup sets this
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(AsyncClient(broker, timeout=TIMEOUT)) for broker in brokers]
        watch = Watch(clients[0].status if len(clients) == 1 else _asking(brokers, clients))
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
