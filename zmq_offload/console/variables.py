"""The environment variables of this project, each with the one meaning that it has in every program.

docs/configuration.md lists them for users; a test compares that page, this table, and the options of all programs.
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
    """`readers` are commands of `zmq-offload`, and "library" for `Client`, `AsyncClient` and `load`."""

    meaning: str
    readers: tuple[str, ...]


_FABRIC = ("broker", "worker")
_ALL = "all commands"

VARIABLES: Mapping[str, Variable] = {
    PREFIX + name: variable
    for name, variable in {
        "FRONTEND": Variable(
            "the broker's frontend: where it listens for clients, and where commands that are clients connect",
            ("broker", "status", "load", "profile"),
        ),
        "BACKEND": Variable("the broker's backend: where it listens for workers", ("broker",)),
        "BROKER": Variable("the backends, separated by commas, that a worker connects to", ("worker",)),
        "REPOSITORY": Variable("the model repository that workers serve", ("worker",)),
        "EXECUTOR": Variable("`graph` runs subgraphs with TVM, `echo` returns its inputs", ("worker",)),
        "NAME": Variable("a worker's name in the status", ("worker",)),
        "SLOTS": Variable("requests that a worker process may hold", ("worker",)),
        "PROCESSES": Variable(
            "worker processes of a supervisor, or `auto`: one for each core, at most four", ("worker",)
        ),
        "THREADS": Variable("TVM threads of a worker process", ("worker",)),
        "PIN": Variable("whether each worker process is bound to its own cores, `on` or `off`", ("worker",)),
        "REFRESH": Variable("seconds between two looks at the repository", ("worker",)),
        "MAX_BATCH": Variable("rows that may run together, instead of what `model.json` says", ("worker",)),
        "BATCH_DELAY": Variable("microseconds that the first of them waits for others", ("worker",)),
        "DRAIN": Variable("seconds that a worker waits for its brokers when it is stopped", ("worker",)),
        "HEARTBEAT": Variable("seconds between two heartbeats of the broker and a worker", _FABRIC),
        "PATIENCE": Variable("seconds that the other one of the two may be silent", _FABRIC),
        "HANG_GRACE": Variable("seconds that a subgraph may run after its request's deadline", _FABRIC),
        "MAX_FRAME_BYTES": Variable("largest tensor, in bytes; the same value everywhere", (*_FABRIC, "load")),
        "GRACE": Variable("seconds in which a broker that is stopped finishes its requests", ("broker",)),
        "WORKER_GRACE": Variable("seconds that a request waits for a worker with its model to appear", ("broker",)),
        "RESTART_GRACE": Variable("seconds that a request waits for a lost worker to come back", ("broker",)),
        "MAX_ATTEMPTS": Variable("workers that a request may lose before it is given up", ("broker",)),
        "MAX_QUEUED": Variable("requests that may wait in total", ("broker",)),
        "MAX_QUEUED_BYTES": Variable("bytes of the requests that may wait in total", ("broker",)),
        "MAX_QUEUED_PER_MODEL": Variable("requests that may wait for one model", ("broker",)),
        "MAX_QUEUED_PER_CLIENT": Variable("requests of one client that may wait for one model", ("broker",)),
        "SERVER_KEY": Variable("the broker's own NAME.key_secret", ("broker",)),
        "AUTHORIZED_CLIENTS": Variable("list of the keys of clients that may connect", ("broker",)),
        "AUTHORIZED_WORKERS": Variable("list of the keys of workers that may connect", ("broker",)),
        "WORKER_KEY": Variable("a worker's own NAME.key_secret", ("worker",)),
        "CLIENT_KEY": Variable("a client's own NAME.key_secret", ("status", "load", "profile", "library")),
        "BROKER_KEY": Variable(
            "the broker's NAME.key, for those who connect to it", ("worker", "status", "load", "profile", "library")
        ),
        "TIMEOUT": Variable("seconds that a command gives each of its requests", ("status", "load", "profile")),
        "ENV_FILE": Variable("the file with variables that are not in the environment, instead of `.env`", (_ALL,)),
    }.items()
}

INTERNAL = frozenset({f"{PREFIX}PARENT_FD", f"{PREFIX}CORES"})
"""What a supervisor sets for its workers, and nobody else."""


def warn_of_unknown(program: str, environment: Mapping[str, str] = os.environ, more: Iterable[str] = ()) -> None:
    """Say on stderr which variables have this project's prefix and no meaning: one that is misspelled does nothing."""
    known = {*VARIABLES, *INTERNAL, *more}
    for name in sorted(environment):
        if name.startswith(PREFIX) and name not in known:
            meant = did_you_mean(name, sorted(VARIABLES), prefix=PREFIX)
            print(f"{program}: warning: {printable(name)} is set and has no meaning{meant}", file=sys.stderr)
