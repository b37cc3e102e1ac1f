"""A broker and its workers for the demo, by the same entry points as in the Procfile, on free ports."""

from __future__ import annotations

import os
import re
import select
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

from zmq_offload.client.sync import Client
from zmq_offload.console.programs import command
from zmq_offload.console.variables import PREFIX
from zmq_offload.errors import DeadlineExceeded, Internal
from zmq_offload.testing.processes import Children, terminate

START = 60.0
"""Seconds that starting may take."""


def start_fabric(
    children: Children, repository: Path, workers: int, logs: Path, worker_options: Sequence[str] = ()
) -> str:
    """Start a broker and `workers` worker processes that serve `repository`; the endpoint for clients.

    Returns when all of them serve. Raises Internal if one ends, DeadlineExceeded if they take too long.
    """
    # This broker has no keys; those of the user's own fabric would keep this process's clients out.
    for name in ("CLIENT_KEY", "BROKER_KEY"):
        os.environ.pop(PREFIX + name, None)
    deadline = time.monotonic() + START
    log = logs / "broker.log"
    listen = ["--frontend", "tcp://127.0.0.1:0", "--backend", "tcp://127.0.0.1:0"]
    broker = children.start(
        "broker", [*command()[1:], "broker", *listen], stop=terminate, stdout=subprocess.PIPE, log=log
    )
    ready = re.match(r"ready frontend=(\S+) backend=(\S+)", _first_line(broker, deadline))
    if ready is None:
        raise Internal(f"the broker did not start: {_last_line(log)}")
    options = ["--broker", ready[2], "--repository", str(repository), "--processes", str(workers), *worker_options]
    log = logs / "workers.log"
    supervisor = children.start("workers' supervisor", [*command()[1:], "worker", *options], stop=terminate, log=log)
    with Client(ready[1]) as client:
        while not _served(client, workers):
            if supervisor.poll() is not None:
                raise Internal(f"the workers did not start: {_last_line(log)}")
            if time.monotonic() > deadline:
                raise DeadlineExceeded(f"the workers did not announce the model in {START:.0f} s: {_last_line(log)}")
            time.sleep(0.05)
    return ready[1]


def _served(client: Client, workers: int) -> bool:
    models: Sequence[dict[str, int]] = client.models()
    return bool(models) and all(model["workers"] == workers for model in models)


def _first_line(process: subprocess.Popen[bytes], deadline: float) -> str:
    """What a process says first; less than a line if it ends or the time is up before."""
    assert process.stdout is not None
    said = b""
    while b"\n" not in said:
        wait = max(0.0, deadline - time.monotonic())
        if not select.select([process.stdout], [], [], wait)[0]:
            break
        more = os.read(process.stdout.fileno(), 4096)
        if not more:
            break
        said += more
    return said.decode(errors="replace")


def _last_line(log: Path) -> str:
    lines = log.read_text(errors="replace").split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), "it said nothing")
