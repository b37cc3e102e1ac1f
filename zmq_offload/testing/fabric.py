"""A broker and its workers on this machine, started by the same programs as in the Procfile, on free ports."""

from __future__ import annotations

import contextlib
import os
import re
import select
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from zmq_offload.client.sync import Client
from zmq_offload.console.programs import command
from zmq_offload.console.variables import PREFIX
from zmq_offload.errors import DeadlineExceeded, FailedPrecondition, Internal
from zmq_offload.testing.processes import Children, terminate

START = 60.0
"""Seconds that starting may take."""

_KEYS = tuple(PREFIX + name for name in ("CLIENT_KEY", "BROKER_KEY"))


class Fabric:
    """A broker and its workers, as processes on this machine, for as long as the body of `with` lasts.

    The body begins when all workers serve. The broker has no keys and listens on free ports of the loopback interface.
    Variables ``ZMQ_OFFLOAD_...`` of the environment do not reach it, and the two that give clients a key are unset in
    this process until the end of the body.

    Parameters
    ----------
    repository : path, optional
        Model repository that the workers serve; it must hold a model. Default: the workers serve one model, ``"echo"``,
        which returns its inputs.
    workers : int, default 1
        Number of worker processes.
    broker_options : sequence of str, optional
        More options of ``zmq-offload broker``.
    worker_options : sequence of str, optional
        More options of ``zmq-offload worker``.
    logs : path, optional
        Folder for ``broker.log`` and ``workers.log``. Default: a temporary folder.

    Attributes
    ----------
    frontend : str
        Endpoint for clients.
    backend : str
        Endpoint for more workers.

    Raises
    ------
    FailedPrecondition
        The repository is not a folder.
    Internal
        A program did not start; the message has the last line of its log.
    DeadlineExceeded
        The workers do not serve within 60 s.

    Examples
    --------
    >>> with Fabric() as fabric, Client(fabric.frontend) as client:
    ...     outputs = client.infer("echo", {"x": np.zeros(3, np.float32)})

    A fixture for pytest:

    >>> @pytest.fixture(scope="session")
    ... def frontend():
    ...     with Fabric("dist/repository", workers=2) as fabric:
    ...         yield fabric.frontend
    """

    frontend: str
    backend: str

    def __init__(
        self,
        repository: str | os.PathLike[str] | None = None,
        *,
        workers: int = 1,
        broker_options: Sequence[str] = (),
        worker_options: Sequence[str] = (),
        logs: str | os.PathLike[str] | None = None,
    ) -> None:
        if repository is not None and not os.path.isdir(repository):
            raise FailedPrecondition(f"{repository} is not a folder; create a repository with `zmq-offload compile`")
        source = ["--executor", "echo"] if repository is None else ["--repository", os.fspath(repository)]
        self._workers = workers
        self._broker_options = broker_options
        self._worker_options = [*source, *worker_options]
        self._logs = None if logs is None else Path(logs)
        self._running = contextlib.ExitStack()
        self._children: Children | None = None

    def __enter__(self) -> Fabric:
        with contextlib.ExitStack() as stack:
            logs = self._logs or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="zmq-offload-")))
            stack.enter_context(_without_keys())
            self._children = stack.enter_context(Children())
            self.frontend, self.backend = _start(
                self._children, self._workers, logs, self._broker_options, self._worker_options
            )
            self._running = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._running.close()
        self._children = None

    def check(self) -> None:
        """Check that broker and workers still run.

        Raises
        ------
        Internal
            One of them has ended.
        """
        if self._children is not None:
            self._children.check()


class Endpoints(NamedTuple):
    """The two endpoints of a broker."""

    frontend: str
    backend: str


def start_fabric(
    children: Children, repository: Path, workers: int, logs: Path, worker_options: Sequence[str] = ()
) -> str:
    """Start a broker and `workers` worker processes that serve `repository`, and return the endpoint for clients.

    Returns when all of them serve. Raises Internal if one ends, DeadlineExceeded if they take too long. From then on,
    clients of this process use no keys from the environment, because the broker has none.
    """
    for name in _KEYS:
        os.environ.pop(name, None)
    return _start(children, workers, logs, (), ["--repository", str(repository), *worker_options]).frontend


def _start(
    children: Children, workers: int, logs: Path, broker_options: Sequence[str], worker_options: Sequence[str]
) -> Endpoints:
    deadline = time.monotonic() + START
    log = logs / "broker.log"
    listen = ["--frontend", "tcp://127.0.0.1:0", "--backend", "tcp://127.0.0.1:0", *broker_options]
    broker = children.start(
        "broker", [*command()[1:], "broker", *listen], stop=terminate, stdout=subprocess.PIPE, log=log
    )
    ready = re.match(r"ready frontend=(\S+) backend=(\S+)", _first_line(broker, deadline))
    if ready is None:
        raise Internal(f"the broker did not start: {_last_line(log)}")
    endpoints = Endpoints(ready[1], ready[2])
    options = ["--broker", endpoints.backend, "--processes", str(workers), *worker_options]
    log = logs / "workers.log"
    supervisor = children.start("workers' supervisor", [*command()[1:], "worker", *options], stop=terminate, log=log)
    with Client(endpoints.frontend) as client:
        while not _served(client.models(), workers):
            if supervisor.poll() is not None:
                raise Internal(f"the workers did not start: {_last_line(log)}")
            if time.monotonic() > deadline:
                raise DeadlineExceeded(f"the workers did not announce a model within {START:.0f} s: {_last_line(log)}")
            time.sleep(0.05)
    return endpoints


def _served(models: Sequence[Mapping[str, Any]], workers: int) -> bool:
    return bool(models) and all(model["workers"] == workers for model in models)


@contextlib.contextmanager
def _without_keys() -> Iterator[None]:
    """Hide the variables that would give clients of this process keys."""
    hidden = {name: os.environ.pop(name) for name in _KEYS if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(hidden)


def _first_line(process: subprocess.Popen[bytes], deadline: float) -> str:
    """Read a process's first line, or less if it ends or the time is up before."""
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
    return next((line.strip() for line in reversed(lines) if line.strip()), "its log is empty")
