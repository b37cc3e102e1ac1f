"""The gateway's process, from its options to its end."""

from __future__ import annotations

import asyncio
import functools
import gc
import logging
import random
import signal
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol, TypeAlias

import uvloop

from zmq_offload.artifacts.repository import Repository
from zmq_offload.client.aiocalls import Calls, LinkCalls, LocalBroker, LocalCalls
from zmq_offload.client.link import Watched
from zmq_offload.client.returning import in_given_order
from zmq_offload.client.session import RetryPolicy
from zmq_offload.common import memory
from zmq_offload.common.accesslog import AccessLog
from zmq_offload.common.extras import needs
from zmq_offload.common.open_files import raise_file_limit
from zmq_offload.console import logs
from zmq_offload.console.settings import NONE
from zmq_offload.dashboard.watch import Watch
from zmq_offload.errors import InvalidArgument, OffloadError
from zmq_offload.gateway import metrics, tritonmetrics
from zmq_offload.gateway.access.guard import Guard, check_exposure
from zmq_offload.gateway.access.tls import files_of
from zmq_offload.gateway.accesslog import LoggingFabric
from zmq_offload.gateway.application import doors
from zmq_offload.gateway.caching import CachingFabric, OwnMemory, Store
from zmq_offload.gateway.calls import Fabric, own_memory
from zmq_offload.gateway.catalog import Catalog
from zmq_offload.gateway.config import Config
from zmq_offload.gateway.control import ModelControl
from zmq_offload.gateway.deploying import DeployingFabric
from zmq_offload.gateway.fabric import EVERYTHING, BrokerFabric, link_to
from zmq_offload.gateway.meters import Meters
from zmq_offload.gateway.page import asking
from zmq_offload.gateway.ports import Port, drain, listen
from zmq_offload.gateway.responsecache import ResponseCache
from zmq_offload.gateway.tracing import TracingFabric, as_it_is
from zmq_offload.net.addresses import is_loopback
from zmq_offload.net.sharedmemory.sharing import EVERY, Sharing, sharing_of
from zmq_offload.telemetry import process
from zmq_offload.telemetry.exposition import Family
from zmq_offload.telemetry.server import MetricsServer
from zmq_offload.telemetry.traces.context import UNTRACED
from zmq_offload.telemetry.traces.sender import Sender
from zmq_offload.telemetry.traces.spans import Span

log = logging.getLogger("gateway")
access_log = logging.getLogger("gateway.access")

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

    def families(self) -> Iterable[Family]:
        """The broker's metrics. Any thread may call this."""


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


def _write_access(access: AccessLog) -> None:
    logs.write(access, access_log)


def _is_of_use(record: logging.LogRecord) -> bool:
    return record.msg not in _OF_LOST_CONNECTIONS


async def _run(config: Config, host: Host | None) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # nohup sets this
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
    listed, tls = config.access_list is not None, config.tls_cert is not None
    check_exposure(config.addresses, listed=listed, tls=tls, insecure=config.insecure)
    _check_metrics(config)
    traces = None if config.traces == NONE else _sender(config)
    guard = Guard(config.access_list, files_of(config.tls_cert, config.tls_key, config.client_ca))
    sharing = None if config.client_key else sharing_of(config.arena_bytes, log)
    guest = None if host is None else host(sharing, stop.set)
    calls: Calls
    if guest is None:
        policy = RetryPolicy(spread=config.spread)
        keys = config.client_key, config.broker_key

        def connect(brokers: Sequence[str], policy: RetryPolicy) -> Watched:
            return link_to(brokers, policy, config.max_frame_bytes, *keys, sharing)

        again = functools.partial(connect, policy=in_given_order(policy))
        calls = LinkCalls(connect(config.broker, policy), again)
    else:
        calls = LocalCalls(guest, config.max_frame_bytes, sharing)
    control = ModelControl(config.model_control)
    fabric = BrokerFabric(calls, config.timeout, control, b"" if traces is None else UNTRACED)
    front: Fabric = fabric
    if config.repository is not None:
        front = DeployingFabric(fabric, Repository(config.repository), control)
    sharing_kept = asyncio.ensure_future(_keep(sharing))
    store = _store_of(config)
    caching = None if store is None else CachingFabric(front, store)
    meters = None if config.metrics == NONE else Meters()
    front = caching or front
    access = None if config.access_log is None else AccessLog(config.access_log)
    if access is not None:
        front = LoggingFabric(front, access, _write_access, time.monotonic)
    if traces is not None:
        front = TracingFabric(
            front, config.trace_share, traces.put, time.monotonic, random.randbytes, random.getrandbits
        )
    looking = asyncio.ensure_future(_look(caching, meters, fabric))
    served: MetricsServer | None = None
    watch = Watch(asking(calls)) if config.dashboard else None
    watching = None if watch is None else asyncio.ensure_future(watch.run())
    try:
        receive = own_memory if sharing is None else sharing.memory
        ports = await listen(doors(config, front, guard, receive, meters, watch))
        if meters is not None:
            served = MetricsServer(config.metrics, *_sources(config, meters, fabric, ports, store, guest))
        guard.watch()
        gc.collect()
        gc.freeze()  # what lives until the end is not looked at in each full collection
        # A program that starts a gateway with port 0 reads the ports here.
        places = [f"{port.door.name}={port.address}" for port in ports]
        if guest is not None:
            places += [f"frontend={guest.endpoint}", f"backend={guest.backend}"]
        if served is not None:
            places.append(f"metrics={served.address}")
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
        if watching is not None:
            watching.cancel()
        if served is not None:
            served.close()
        if store is not None:
            store.close()
        guard.close()
        fabric.close()
        if access is not None:
            access.flush()
            _write_access(access)
        if guest is not None:
            guest.close()
        if traces is not None:
            traces.close()


def _sender(config: Config) -> Sender[Span]:
    """What sends spans, in a process of its own."""
    with needs("traces"):
        prepare = functools.partial(logs.start, "gateway", config.log)
        return Sender(config.traces, "zmq-offload-gateway", as_it_is, prepare)


def _store_of(config: Config) -> Store | None:
    """Where answers are kept; None: nowhere. Call it in the event loop."""
    if config.cache_redis is not None:
        from zmq_offload.gateway.rediscache import Redis

        return Redis(config.cache_redis)
    return OwnMemory(ResponseCache(config.cache_bytes)) if config.cache_bytes else None


def _check_metrics(config: Config) -> None:
    """Raise InvalidArgument if others on the network could read the metrics without `--insecure`."""
    if config.metrics != NONE and not (config.insecure or is_loopback(f"tcp://{config.metrics}")):
        raise InvalidArgument(
            f"{config.metrics} can be reached from other machines, and metrics have no tokens; serve them at "
            "127.0.0.1, or give --insecure if the network is trusted"
        )


def _sources(
    config: Config,
    meters: Meters,
    fabric: BrokerFabric,
    ports: Sequence[Port],
    store: Store | None,
    guest: Guest | None,
) -> list[Callable[[], Iterable[Family]]]:
    """What makes the metrics: of the gateway, of a broker beside it, and of the process."""
    cache = store.cache if isinstance(store, OwnMemory) else None

    def own() -> Iterable[Family]:
        states = [
            metrics.PortState(port.door.name, port.door.service.connections, port.door.service.held) for port in ports
        ]
        return metrics.families(meters, fabric.statistics, states, fabric.outstanding, cache)

    def by_triton() -> Iterable[Family]:
        return tritonmetrics.families(meters, fabric.statistics, fabric.catalog)

    sources: list[Callable[[], Iterable[Family]]] = [own]
    if config.triton_metrics:
        sources.append(by_triton)
    if guest is not None:
        of_the_broker = guest.families
        sources.append(
            (lambda: tritonmetrics.with_pending(of_the_broker())) if config.triton_metrics else of_the_broker
        )
    return [*sources, process.families]


_LOOK_EVERY = 2.0
"""Seconds between two looks at the list of models, for metrics."""

_LOOK_FOR_CACHES = 10.0
"""Seconds between two looks for models that have a cache since."""


async def _look(caching: CachingFabric | None, meters: Meters | None, fabric: BrokerFabric) -> None:
    """Find out which models there are: which have a cache, and which have metrics. Without metrics, a gateway that
    nobody uses asks its broker for nothing."""
    looks = [part.look for part in (caching, meters) if part is not None]

    def look(answer: Catalog | OffloadError) -> None:
        for each in looks:
            each(answer)

    while looks:
        if meters is not None or (caching is not None and caching.unsure):
            fabric.models(EVERYTHING, look)
        await asyncio.sleep(_LOOK_FOR_CACHES if meters is None else _LOOK_EVERY)


async def _keep(sharing: Sharing | None) -> None:
    """Give memory back that is not used any more."""
    while sharing is not None:
        await asyncio.sleep(EVERY)
        sharing.tick()
