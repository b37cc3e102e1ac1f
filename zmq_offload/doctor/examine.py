"""The whole examination: facts are gathered, and the checks make findings of them."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from zmq_offload.console.variables import INTERNAL, PREFIX, VARIABLES
from zmq_offload.doctor.checks import files as file_checks
from zmq_offload.doctor.checks import machine as machine_checks
from zmq_offload.doctor.checks import network as network_checks
from zmq_offload.doctor.checks.findings import Finding, Level
from zmq_offload.doctor.checks.installation import check_installation, check_variables
from zmq_offload.doctor.facts import files, machine, network
from zmq_offload.doctor.facts.installation import installation

KEYS = {
    "server_key": True,
    "client_key": True,
    "worker_key": True,
    "broker_key": False,
}
"""The options for key files, and whether the file holds a secret."""

LISTS = ("authorized_clients", "authorized_workers", "access_list")
"""The options for lists of keys and credentials."""


@dataclass(frozen=True)
class Subject:
    """What is examined. What is None, is not."""

    frontend: Sequence[str]
    backend: Sequence[str]
    http: str | None
    grpc: str | None
    broker_metrics: str | None = None
    gateway_metrics: str | None = None
    broker: Sequence[str] | None = None
    repository: str | None = None
    server_key: str | None = None
    client_key: str | None = None
    worker_key: str | None = None
    broker_key: str | None = None
    authorized_clients: str | None = None
    authorized_workers: str | None = None
    access_list: str | None = None
    tls_cert: str | None = None
    tls_key: str | None = None
    device: Sequence[str] = ("cpu",)
    max_connections: int = 1
    timeout: float = 5.0


def examine(subject: Subject) -> Iterator[Finding]:
    """Yield what is found, one check after the other."""
    yield from check_variables(os.environ, {*VARIABLES, *INTERNAL}, PREFIX)
    installed = installation()
    yield from check_installation(installed)
    ports = [port for port in (subject.http, subject.grpc) if port is not None]
    yield from machine_checks.check_machine(machine.machine(), subject.max_connections, len(ports))
    yield from machine_checks.check_clock(machine.clock())
    yield from _keys(subject)
    needed: list[tuple[str, str]] = []
    if subject.repository is None:
        yield Finding("repository", Level.NOTE, "none is given; --repository DIR checks one")
    else:
        found = files.repository(subject.repository)
        yield from file_checks.check_repository(found, installed.versions.get("apache-tvm", ""))
        needed = [(version.name, version.gpu) for version in found.versions if version.gpu]
    yield from machine_checks.check_gpus(machine.gpus(), subject.device, needed)
    yield from _network(subject)


def _keys(subject: Subject) -> list[Finding]:
    given = {name: value for name in (*KEYS, *LISTS) if (value := getattr(subject, name))}
    findings = file_checks.check_keys(
        [files.key_file(_option(name), given[name], secret=KEYS[name]) for name in KEYS if name in given],
        [files.key_list(_option(name), given[name]) for name in LISTS if name in given],
    )
    if subject.tls_cert and subject.tls_key:
        findings += file_checks.check_certificate(files.certificate(subject.tls_cert, subject.tls_key), time.time())
    return findings


def _option(name: str) -> str:
    return "--" + name.replace("_", "-")


def _network(subject: Subject) -> Iterator[Finding]:
    frontends = [network.port("--frontend", endpoint) for endpoint in subject.frontend]
    for port in (*frontends, *(network.port("--backend", endpoint) for endpoint in subject.backend)):
        yield network_checks.check_port(port)
    for option, address in (("--http", subject.http), ("--grpc", subject.grpc)):
        if address is not None:
            yield network_checks.check_port(network.port(option, address, tls=bool(subject.tls_cert)))
    for option, address in (
        ("--broker-metrics", subject.broker_metrics),
        ("--gateway-metrics", subject.gateway_metrics),
    ):
        if address is not None:
            yield network_checks.check_port(network.port(option, address))
    here = [
        endpoint.replace("//*:", "//127.0.0.1:")
        for endpoint, port in zip(subject.frontend, frontends, strict=True)
        if port.speaks is network_checks.Speaks.ZEROMQ
    ]
    brokers = here if subject.broker is None else subject.broker
    if not brokers:
        yield Finding("broker", Level.NOTE, "none runs here; --broker ENDPOINT asks one")
    for broker in brokers:
        yield from network_checks.check_broker(
            network.broker(broker, subject.timeout, subject.client_key, subject.broker_key)
        )
