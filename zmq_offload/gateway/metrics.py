"""The gateway's metrics, made from what it counts when they are asked for. Pure.

Another thread than the gateway's may call this. It copies each table at once, which no other thread can interrupt, so
that none changes while it is gone through. Numbers of one answer may be a request apart.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from zmq_offload.gateway.meters import Meters, VersionMeters
from zmq_offload.gateway.responsecache import ResponseCache
from zmq_offload.gateway.statistics import Statistics, VersionStatistics
from zmq_offload.telemetry.exposition import Family


class PortState(NamedTuple):
    """A port of a gateway: its name, its open connections, and the bytes of bodies and answers that it holds."""

    name: str
    connections: int
    held: int


def families(
    meters: Meters, statistics: Statistics, ports: Sequence[PortState], outstanding: int, cache: ResponseCache | None
) -> Iterator[Family]:
    """All families of a gateway, one after the other, so that none takes long. `cache` is that in its memory."""
    yield from _of_the_gateway(meters, ports, outstanding)
    yield from _of_versions(meters)
    yield from _of_the_cache(statistics, cache)


def _of_the_gateway(meters: Meters, ports: Sequence[PortState], outstanding: int) -> Iterator[Family]:
    reachable = Family("zmq_offload_gateway_broker_up", "gauge", "Whether a broker answered when it was asked last.")
    reachable.add(int(meters.reachable))
    yield reachable
    held = Family("zmq_offload_gateway_outstanding_requests", "gauge", "Requests that the broker has not answered yet.")
    held.add(outstanding)
    yield held
    connections = Family("zmq_offload_gateway_connections", "gauge", "Open connections by port.")
    for port in ports:
        connections.add(port.connections, {"port": port.name})
    yield connections
    bodies = Family("zmq_offload_gateway_held_bytes", "gauge", "Bytes of bodies and unread answers by port.")
    for port in ports:
        bodies.add(port.held, {"port": port.name})
    yield bodies


def _of_versions(meters: Meters) -> Iterator[Family]:
    known = list(meters.versions())
    requests = Family(
        "zmq_offload_gateway_requests_total", "counter", "Requests that ended, by status; ok: with outputs."
    )
    for model, version, its in known:
        _by_status(requests, its, labels_of(model, version))
    _by_status(requests, meters.unknown, {"model": "", "version": ""})
    yield requests
    total = Family(
        "zmq_offload_gateway_request_seconds", "histogram", "Time of answered requests, from the gateway's taking them."
    )
    answers = [(model, version, its.summed()) for model, version, its in known]
    for model, version, summed in answers:
        total.add_buckets(summed.total.buckets(), labels_of(model, version))
    yield total
    for name, attribute, help in (
        ("queue_seconds_total", "queue", "Time of answered requests until a worker had them."),
        ("compute_seconds_total", "compute", "Time of answered requests in their workers."),
        ("rows_total", "rows", "Dimension 0 of the inputs of answered requests."),
        ("received_bytes_total", "bytes_in", "Bytes of the inputs of requests that ended."),
        ("sent_bytes_total", "bytes_out", "Bytes of the outputs of answered requests."),
    ):
        family = Family(f"zmq_offload_gateway_{name}", "counter", help)
        for model, version, summed in answers:
            family.add(getattr(summed, attribute), labels_of(model, version))
        yield family


def _by_status(family: Family, its: VersionMeters, labels: dict[str, str]) -> None:
    for (protocol, status), count in sorted(its.requests().items()):
        family.add(count, labels | {"protocol": protocol, "status": status})


def _of_the_cache(statistics: Statistics, cache: ResponseCache | None) -> Iterator[Family]:
    hits = Family("zmq_offload_gateway_cache_hits_total", "counter", "Requests that were answered from the cache.")
    misses = Family("zmq_offload_gateway_cache_misses_total", "counter", "Requests that the cache had no answer for.")
    for model, version, its in looked_up(statistics):
        hits.add(its.cache_hit.count, labels_of(model, version))
        misses.add(its.cache_miss.count, labels_of(model, version))
    yield hits
    yield misses
    if cache is not None:
        entries = Family("zmq_offload_gateway_cache_entries", "gauge", "Answers that are kept in memory.")
        entries.add(len(cache))
        yield entries
        nbytes = Family("zmq_offload_gateway_cache_bytes", "gauge", "Bytes of the answers that are kept in memory.")
        nbytes.add(cache.nbytes)
        yield nbytes
        evicted = Family("zmq_offload_gateway_cache_evictions_total", "counter", "Answers that made room for others.")
        evicted.add(cache.evicted)
        yield evicted


def looked_up(statistics: Statistics) -> list[tuple[str, int, VersionStatistics]]:
    """The versions with requests that were looked up in the cache."""
    return [entry for entry in statistics.versions() if entry[2].cache_hit.count or entry[2].cache_miss.count]


def labels_of(model: str, version: int) -> dict[str, str]:
    """The labels of a version."""
    return {"model": model, "version": str(version)}
