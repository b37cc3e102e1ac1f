"""The environment variables of this project. Each has one meaning in all programs.

A test compares this table with docs/configuration.md and with the options of all programs.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from zmq_offload.common.suggest import did_you_mean
from zmq_offload.errors import printable

PREFIX = "ZMQ_OFFLOAD_"


class Variable(NamedTuple):
    """What a variable means, and what reads it: commands, and "library"."""

    meaning: str
    readers: tuple[str, ...]


_FABRIC = ("broker", "worker")
_PROGRAMS = ("broker", "worker", "gateway")
_ALL = "all commands"
LIBRARY = "library"
"""The reader that is no command: `Client`, `AsyncClient` and `load`."""
WITH_OPTIONS = "all commands with options"

VARIABLES: Mapping[str, Variable] = {
    PREFIX + name: variable
    for name, variable in {
        "FRONTEND": Variable(
            "the broker's frontend: where it listens for clients, and where client commands connect",
            ("broker", "gateway", "status", "dashboard", "load", "profile", "plan", "doctor", "models", "top"),
        ),
        "BACKEND": Variable("the broker's backend: where it listens for workers", ("broker", "doctor")),
        "BROKER": Variable("the backends, separated by commas, that a worker connects to", ("worker",)),
        "REPOSITORY": Variable("the model repository that workers serve", ("worker", "doctor", "models")),
        "EXECUTOR": Variable("`graph` runs subgraphs with TVM, `echo` returns its inputs", ("worker",)),
        "NAME": Variable("a worker's name in the status", ("worker",)),
        "SLOTS": Variable("number of requests that a worker process may hold", ("worker",)),
        "PROCESSES": Variable(
            "number of worker processes of a supervisor, for each GPU if there are any, or `auto`: one per core, at "
            "most four, or one per GPU",
            ("worker",),
        ),
        "BROKER_PROCESSES": Variable("number of broker processes of `zmq-offload broker`", ("broker",)),
        "SPREAD": Variable(
            "`on` or `off`: whether a gateway takes any of several brokers, or the first that works", ("gateway",)
        ),
        "THREADS": Variable("number of TVM threads of a worker process", ("worker",)),
        "PIN": Variable("`on` or `off`: bind each worker process to its own cores", ("worker",)),
        "DEVICE": Variable(
            "`cpu`, or GPUs as `cuda:0,cuda:1` or `cuda:all`, which run the versions that were built for one",
            ("worker", "doctor"),
        ),
        "REFRESH": Variable("seconds between scans of the repository", ("worker",)),
        "MAX_BATCH": Variable("maximum rows per batch, instead of the value in `model.json`", ("worker",)),
        "BATCH_DELAY": Variable("maximum microseconds that a batch waits for more requests", ("worker",)),
        "DRAIN": Variable("maximum seconds that a stopped worker waits for its brokers", ("worker",)),
        "HEARTBEAT": Variable("seconds between the heartbeats of broker and workers", _FABRIC),
        "PATIENCE": Variable("seconds of silence that broker and workers accept from each other", _FABRIC),
        "HANG_GRACE": Variable("seconds that a subgraph may run after its request's deadline", _FABRIC),
        "MAX_FRAME_BYTES": Variable(
            "largest tensor, in bytes; use the same value everywhere", (*_FABRIC, "gateway", "load")
        ),
        "ARENA_BYTES": Variable(
            "shared memory, in bytes, for tensors that processes of one user on one host pass on; 0: none, and no Unix "
            "socket in place of TCP",
            ("worker", "gateway", "library"),
        ),
        "GRACE": Variable(
            "maximum seconds in which a stopped broker or gateway finishes its requests", ("broker", "gateway")
        ),
        "WORKER_GRACE": Variable("seconds that a request waits for a first worker with its model", ("broker",)),
        "RESTART_GRACE": Variable("seconds that a request waits for a lost worker to come back", ("broker",)),
        "MAX_ATTEMPTS": Variable("number of lost workers after which a request is given up", ("broker",)),
        "MAX_QUEUED": Variable("maximum requests in all queues", ("broker",)),
        "MAX_QUEUED_BYTES": Variable("maximum bytes of the requests in all queues", ("broker",)),
        "MAX_QUEUED_PER_MODEL": Variable("maximum queued requests for one model", ("broker",)),
        "MAX_QUEUED_PER_CLIENT": Variable("maximum queued requests of one client for one model", ("broker",)),
        "SERVER_KEY": Variable("the broker's own NAME.key_secret", ("broker", "doctor")),
        "AUTHORIZED_CLIENTS": Variable("list of the keys of clients that may connect", ("broker", "doctor")),
        "AUTHORIZED_WORKERS": Variable("list of the keys of workers that may connect", ("broker", "doctor")),
        "METRICS": Variable("HOST:PORT where a broker serves metrics for Prometheus, or `none`", ("broker", "doctor")),
        "GATEWAY_METRICS": Variable("HOST:PORT where a gateway serves its metrics, or `none`", ("gateway", "doctor")),
        "TRITON_METRICS": Variable("`on` or `off`: serve a gateway's metrics by Triton's names, too", ("gateway",)),
        "TRACES": Variable(
            "URL of the OpenTelemetry collector that gets traces, or `otel`, or `none`", ("broker", "gateway")
        ),
        "TRACE_SHARE": Variable("share of requests without a trace that begin one, 0 to 1", ("broker", "gateway")),
        "DASHBOARD": Variable("HOST:PORT where `zmq-offload dashboard` serves its page", ("dashboard",)),
        "HTTP": Variable("HOST:PORT where a gateway takes HTTP requests, or `none`", ("gateway", "doctor")),
        "GRPC": Variable("HOST:PORT where a gateway takes gRPC calls, or `none`", ("gateway", "doctor")),
        "ACCESS_LIST": Variable(
            "list of the tokens and client certificates that a gateway accepts", ("gateway", "doctor")
        ),
        "TLS_CERT": Variable("a gateway's certificate, in PEM", ("gateway", "doctor")),
        "TLS_KEY": Variable("the key of a gateway's certificate", ("gateway", "doctor")),
        "CLIENT_CA": Variable("certificates of the authorities of clients of a gateway, in PEM", ("gateway",)),
        "CORS_ORIGINS": Variable(
            "origins of web pages, separated by commas, that may call a gateway, or `*`", ("gateway",)
        ),
        "MAX_BODY_BYTES": Variable("largest body or message of a request to a gateway, in bytes", ("gateway",)),
        "MAX_HELD_BYTES": Variable(
            "bodies and unread answers of all requests at once in a gateway, in bytes", ("gateway",)
        ),
        "CACHE_BYTES": Variable("memory of a gateway for answers that are kept, in bytes; 0: none", ("gateway",)),
        "CACHE_REDIS": Variable("URL of a Redis server that keeps the answers of gateways", ("gateway",)),
        "MAX_HEADER_BYTES": Variable("all headers of a request to a gateway, in bytes", ("gateway",)),
        "MAX_CONNECTIONS": Variable("connections of a port of a gateway", ("gateway", "doctor")),
        "MAX_STREAMS": Variable("concurrent calls of a gRPC connection to a gateway", ("gateway",)),
        "IDLE_TIMEOUT": Variable("seconds that a connection to a gateway stays open without a request", ("gateway",)),
        "RECEIVE_TIMEOUT": Variable("seconds in which a gateway wants all headers of a request", ("gateway",)),
        "WORKER_KEY": Variable("a worker's own NAME.key_secret", ("worker", "doctor")),
        "CLIENT_KEY": Variable(
            "a client's own NAME.key_secret",
            ("gateway", "status", "dashboard", "load", "profile", "doctor", "models", "top", LIBRARY),
        ),
        "BROKER_KEY": Variable(
            "the broker's NAME.key, for its peers",
            ("worker", "gateway", "status", "dashboard", "load", "profile", "doctor", "models", "top", LIBRARY),
        ),
        "TOKEN": Variable("a client's bearer token, for servers that are called over TLS", (LIBRARY,)),
        "TIMEOUT": Variable(
            "maximum seconds for each request of a command",
            ("gateway", "status", "load", "profile", "doctor", "models", "top"),
        ),
        "LOG_LEVEL": Variable("least level of the log: `debug`, `info`, `warning` or `error`", _PROGRAMS),
        "LOG_FORMAT": Variable("`text` or `json`: the form of an event of the log", _PROGRAMS),
        "ACCESS_LOG": Variable(
            "log requests that fail or take at least so many seconds; 0: all", ("broker", "gateway")
        ),
        "CONFIG": Variable("TOML file with options", (WITH_OPTIONS,)),
        "NATIVE": Variable("0 or off: compiled code is not used, even if it is installed", (_ALL, "library")),
        "ENV_FILE": Variable("file to read in place of `.env`, for variables that are not in the environment", (_ALL,)),
    }.items()
}

INTERNAL = frozenset(PREFIX + name for name in ("PARENT_FD", "LOG_FD", "SEAT", "BROKER_SEAT"))
"""Variables that only a supervisor sets, for its processes."""


def warn_of_unknown(program: str, environment: Mapping[str, str] = os.environ, more: Iterable[str] = ()) -> None:
    """Warn on stderr of variables with this project's prefix that are unknown, and probably misspelled."""
    known = {*VARIABLES, *INTERNAL, *more}
    for name in sorted(environment):
        if name.startswith(PREFIX) and name not in known:
            meant = did_you_mean(name, sorted(VARIABLES), prefix=PREFIX)
            print(f"{program}: warning: unknown variable {printable(name)}{meant}", file=sys.stderr)
