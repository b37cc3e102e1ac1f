"""The gateway's process, from its options to its end."""

from __future__ import annotations

import asyncio
import gc
import logging
import signal
import time
from collections.abc import Callable
from typing import Protocol, TypeAlias

import uvloop

from zmq_offload.client.aiocalls import Calls, LinkCalls, LocalBroker, LocalCalls
from zmq_offload.common import memory
from zmq_offload.common.open_files import raise_file_limit
from zmq_offload.gateway.access.guard import Guard, check_exposure
from zmq_offload.gateway.access.tls import files_of
from zmq_offload.gateway.application import doors
from zmq_offload.gateway.caching import CachingFabric, OwnMemory, Store
from zmq_offload.gateway.calls import own_memory
from zmq_offload.gateway.config import Config
from zmq_offload.gateway.control import ModelControl
from zmq_offload.gateway.fabric import EVERYTHING, BrokerFabric, link_to
from zmq_offload.gateway.ports import drain, listen
from zmq_offload.gateway.responsecache import ResponseCache
from zmq_offload.net.sharedmemory.sharing import EVERY, Sharing, sharing_of

log = logging.getLogger("gateway")

_KEPT_BYTES = 64 * 1024 * 1024
"""Freed memory that is kept for the next requests."""


class Guest(LocalBroker, Protocol):
    """A broker in this process."""

    backend: str
    """Where workers connect."""

    error: Exception | None
    """Why it broke."""

    async def end(self, grace: float) -> None:
        """Finish what is accepted within `grace` seconds, and close the ports."""

    def close(self) -> None:
        """Close the ports at once."""


Host: TypeAlias = "Callable[[Sharing | None, Callable[[], None]], Guest]"
"""Starts a broker in the running event loop, with what to call if it breaks."""


def serve(config: Config, host: Host | None = None) -> int:
    """Run a gateway in this process until SIGTERM, SIGINT or SIGHUP; with a broker beside it, if there is a `host`."""
    config = config.fitting(raise_file_limit(log))
    logging.getLogger("asyncio").addFilter(_is_of_use)
    memory.keep(_KEPT_BYTES)
    uvloop.run(_run(config, host))
    log.info("stopped")
    return 0


_OF_LOST_CONNECTIONS = ("SSL connection is closed", "socket.send() raised exception.")
"""What the event loop logs for each answer that its client does not wait for: strangers could fill the log."""


def _is_of_use(record: logging.LogRecord) -> bool:
    return record.msg not in _OF_LOST_CONNECTIONS


async def _run(config: Config, host: Host | None) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # nohup sets this
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
    listed, tls = config.access_list is not None, config.tls_cert is not None
    check_exposure(config.addresses, listed=listed, tls=tls, insecure=config.insecure)
    guard = Guard(config.access_list, files_of(config.tls_cert, config.tls_key, config.client_ca))
    sharing = None if config.client_key else sharing_of(config.arena_bytes, log)
    guest = None if host is None else host(sharing, stop.set)
    calls: Calls
    if guest is None:
        link = link_to(config.broker, None, config.max_frame_bytes, config.client_key, config.broker_key, sharing)
        calls = LinkCalls(link)
    else:
        calls = LocalCalls(guest, config.max_frame_bytes, sharing)
    fabric = BrokerFabric(calls, config.timeout, ModelControl(config.model_control))
    sharing_kept = asyncio.ensure_future(_keep(sharing))
    store = _store_of(config)
    caching = None if store is None else CachingFabric(fabric, store)
    looking = asyncio.ensure_future(_look(caching, fabric))
    try:
        ports = await listen(doors(config, caching or fabric, guard, own_memory if sharing is None else sharing.memory))
        guard.watch()
        gc.collect()
        gc.freeze()  # what lives until the end is not looked at in each full collection
        # A program that starts a gateway with port 0 reads the ports here.
        places = [f"{port.door.name}={port.address}" for port in ports]
        if guest is not None:
            places += [f"frontend={guest.endpoint}", f"backend={guest.backend}"]
        print("ready", *places, flush=True)
        await stop.wait()
        if guest is None or guest.error is None:
            end = time.monotonic() + config.grace
            log.info("stopping: finishing %d requests within %.1f s", fabric.outstanding, config.grace)
            fabric.stopping = True
            await drain(ports, config.grace, fabric.close)
            if guest is not None:
                fabric.close()
                await guest.end(max(0.0, end - time.monotonic()))
        if guest is not None and guest.error is not None:
            raise guest.error
    finally:
        sharing_kept.cancel()
        looking.cancel()
        if store is not None:
            store.close()
        guard.close()
        fabric.close()
        if guest is not None:
            guest.close()


def _store_of(config: Config) -> Store | None:
    """Where answers are kept; None: nowhere. Call it in the event loop."""
    if config.cache_redis is not None:
        from zmq_offload.gateway.rediscache import Redis

        return Redis(config.cache_redis)
    return OwnMemory(ResponseCache(config.cache_bytes)) if config.cache_bytes else None


_LOOK_EVERY = 2.0
"""Seconds between two looks at which models have a cache."""


async def _look(caching: CachingFabric | None, fabric: BrokerFabric) -> None:
    """Find out which models have a cache."""
    while caching is not None:
        fabric.models(EVERYTHING, caching.look)
        await asyncio.sleep(_LOOK_EVERY)


async def _keep(sharing: Sharing | None) -> None:
    """Give memory back that is not used any more."""
    while sharing is not None:
        await asyncio.sleep(EVERY)
        sharing.tick()
