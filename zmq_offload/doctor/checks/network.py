"""Whether ports are free or ours, and whether a broker answers and can serve. Pure."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from typing import Any, NamedTuple

from zmq_offload.common.units import counted
from zmq_offload.doctor.checks.findings import Finding, Level
from zmq_offload.protocol.messages import VERSION


class Speaks(str, enum.Enum):
    """What listens at a port."""

    NOTHING = "nothing"
    ZEROMQ = "ZeroMQ"
    GATEWAY = "HTTP as a gateway does"
    METRICS = "HTTP as our metrics do"
    HTTP = "HTTP"
    HTTP2 = "HTTP/2"
    OTHER = "another protocol"


class Port(NamedTuple):
    """What is at an address."""

    option: str
    address: str
    speaks: Speaks
    error: str = ""
    """Why nobody could listen there, if nothing does; "" if somebody could."""


class Broker(NamedTuple):
    """What a broker answered."""

    endpoint: str
    port: Port
    keyed: bool
    """Whether the port wants keys (CURVE)."""
    status: Mapping[str, Any] | None
    error: str = ""
    """What went wrong, if there is no status."""
    speaks_version: int | None = None
    """The version of our protocol that it answered in, if not in ours."""
    has_keys: bool = False
    """Whether this side has keys."""


_EXPECTED = {
    "--frontend": ("a broker's frontend", (Speaks.ZEROMQ,)),
    "--backend": ("a broker's backend", (Speaks.ZEROMQ,)),
    "--http": ("a gateway", (Speaks.GATEWAY,)),
    "--broker-metrics": ("a program's metrics", (Speaks.METRICS,)),
    "--gateway-metrics": ("a program's metrics", (Speaks.METRICS,)),
    "--grpc": ("a gateway, or another gRPC server", (Speaks.HTTP2,)),
}


def check_port(port: Port) -> Finding:
    """Check a port of a program of this machine: it is free, or what listens there is such a program."""
    name, wanted = _EXPECTED[port.option]
    if port.speaks is Speaks.NOTHING and port.error:
        remedy = f"use an address of this machine and a port from 1024, by {port.option} or its variable"
        return Finding("ports", Level.FAIL, f"nobody can listen at {port.address}: {port.error}", remedy)
    if port.speaks is Speaks.NOTHING:
        return Finding("ports", Level.OK, f"{port.address} is free ({port.option})")
    if port.speaks in wanted:
        return Finding("ports", Level.OK, f"{port.address} speaks {port.speaks.value}: {name} ({port.option})")
    number = port.address.rpartition(":")[2]
    return Finding(
        "ports",
        Level.FAIL,
        f"another program listens at {port.address} ({port.option}): it speaks {port.speaks.value}",
        f"end it (`ss -ltnp 'sport = :{number}'` shows it), or use another port by {port.option} or its variable",
    )


def check_broker(broker: Broker) -> list[Finding]:
    """Check that a broker answers, in our version of the protocol, and that it can serve requests."""
    if broker.status is not None:
        return _serving(broker.endpoint, broker.status)
    return [_silent(broker)]


def _silent(broker: Broker) -> Finding:
    at, speaks = broker.endpoint, broker.port.speaks
    if speaks is Speaks.NOTHING:
        text = f"nothing listens at {at}"
        remedy = "start it with `zmq-offload broker`; or correct the address, and let firewalls pass its port"
    elif speaks is not Speaks.ZEROMQ:
        text = f"what listens at {at} is no broker: it speaks {speaks.value}"
        remedy = "use the broker's frontend by --broker or ZMQ_OFFLOAD_FRONTEND"
    elif broker.speaks_version is not None:
        text = f"the broker at {at} speaks protocol version {broker.speaks_version}, this is version {VERSION}"
        remedy = "install the same release of zmq-offload at both ends"
    elif broker.keyed and not broker.has_keys:
        text = f"the broker at {at} wants keys, and none are given here"
        remedy = "set ZMQ_OFFLOAD_CLIENT_KEY and ZMQ_OFFLOAD_BROKER_KEY (docs/security.md)"
    elif broker.has_keys and not broker.keyed:
        text = f"the broker at {at} has no keys, and some are given here"
        remedy = "unset ZMQ_OFFLOAD_CLIENT_KEY and ZMQ_OFFLOAD_BROKER_KEY, or start the broker with --server-key"
    elif broker.has_keys:
        text = f"the broker at {at} does not accept this client's key: {broker.error}"
        remedy = "authorize the key: zmq-offload keys authorize NAME.key --list FILE, and check ZMQ_OFFLOAD_BROKER_KEY"
    else:
        text = f"no broker answers at {at}, and a program that speaks ZeroMQ listens there: {broker.error}"
        remedy = (
            "use the broker's frontend (port 5555 by default), not its backend; if it is the right one, see its log"
        )
    return Finding("broker", Level.FAIL, text, remedy)


def _serving(endpoint: str, status: Mapping[str, Any]) -> list[Finding]:
    workers, models = status["workers"], status["models"]
    text = (
        f"{endpoint} answers in protocol version {VERSION}, up {status['uptime']:.0f} s: "
        f"{counted(len(workers), 'worker')}, {counted(len(models), 'version')} of models"
    )
    findings = [Finding("broker", Level.OK, text)]

    def warn(text: str, remedy: str) -> None:
        findings.append(Finding("broker", Level.WARNING, text, remedy))

    if status["stopping"]:
        warn(f"{endpoint} is stopping and takes no requests", "start a broker, or give clients another one")
    if not workers:
        warn(
            f"no worker is connected to {endpoint}",
            "start one with `zmq-offload worker --repository DIR --broker` and the broker's backend; its log says why "
            "if it cannot connect",
        )
    elif not models:
        remedy = "see the workers' log, and check their repository with `zmq-offload doctor --repository DIR`"
        warn(f"the workers of {endpoint} serve no model", remedy)
    quiet = [worker["name"] for worker in workers if worker["state"] == "quiet"]
    if quiet:
        remedy = "see whether their machine runs and the network to it works"
        warn(f"the broker hears nothing of {', '.join(quiet)}", remedy)
    unserved = sorted({queue["model"] for queue in status["queues"]} - {model["name"] for model in models})
    if unserved:
        warn(f"requests wait for models that no worker serves: {', '.join(unserved)}", "deploy them, or start a worker")
    return findings
