"""Start real brokers and workers on free ports, wait for lines of their output, and end them."""

from __future__ import annotations

import os
import queue
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import pytest

from zmq_offload import Client

T = TypeVar("T")
ROOT = Path(__file__).parent.parent.parent


def eventually(condition: Callable[[], T], timeout: float = 20.0) -> T:
    """Call `condition` until its value is true, and return that; fail after `timeout` seconds."""
    end = time.monotonic() + timeout
    while not (value := condition()):
        assert time.monotonic() < end, f"{condition} did not come true within {timeout} s"
        time.sleep(0.02)
    return value


class Process:
    """`python ARGUMENTS`, with its output, stderr included, in `lines`."""

    def __init__(self, *arguments: str, **environment: str) -> None:
        self.popen = subprocess.Popen(
            [sys.executable, *arguments],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=os.environ | {"PYTHONUNBUFFERED": "1"} | environment,
        )
        self.lines: list[str] = []
        self._new: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.popen.stdout is not None
        for line in self.popen.stdout:
            self._new.put(line.rstrip())
        self._new.put(None)

    def wait_for(self, pattern: str, skip: int = 0, timeout: float = 30.0) -> re.Match[str]:
        """Wait for the first line that matches `pattern`, after `skip` others; lines of the past count."""
        seen = 0
        end = time.monotonic() + timeout
        while True:
            for line in self.lines[seen:]:
                if match := re.search(pattern, line):
                    if not skip:
                        return match
                    skip -= 1
            seen = len(self.lines)
            try:
                line = self._new.get(timeout=max(0.0, end - time.monotonic()))
            except queue.Empty:
                pytest.fail(f"no {pattern!r} within {timeout} s in:\n" + "\n".join(self.lines))
            if line is None:
                pytest.fail(f"ended with {self.popen.wait()} without {pattern!r} in:\n" + "\n".join(self.lines))
            self.lines.append(line)

    def seen(self) -> list[str]:
        """The lines until now."""
        while True:
            try:
                line = self._new.get_nowait()
            except queue.Empty:
                return self.lines
            if line is not None:
                self.lines.append(line)

    def end(self, number: int = signal.SIGTERM, timeout: float = 20.0) -> int:
        """Send a signal, wait for the end, and return the exit code."""
        if self.popen.poll() is None:
            self.popen.send_signal(number)
        return self.wait(timeout)

    def wait(self, timeout: float = 20.0) -> int:
        """Wait for the end, read the rest of the output, and return the exit code."""
        code = self.popen.wait(timeout)
        self._reader.join(timeout)
        while not self._new.empty():
            line = self._new.get()
            if line is not None:
                self.lines.append(line)
        return code

    def kill(self) -> None:
        if self.popen.poll() is None:
            self.popen.kill()
        self.popen.wait()
        self._reader.join()
        assert self.popen.stdout is not None
        self.popen.stdout.close()


@contextmanager
def running(*arguments: str, **environment: str) -> Iterator[Process]:
    """A `Process` that is killed at the end."""
    process = Process(*arguments, **environment)
    try:
        yield process
    finally:
        process.kill()


class Fabric:
    """A broker and its workers, as processes."""

    def __init__(self, broker: Process, frontend: str, backend: str) -> None:
        self.broker = broker
        self.frontend = frontend
        self.backend = backend


@contextmanager
def running_broker(
    *options: str, frontend: str = "tcp://127.0.0.1:0", backend: str = "tcp://127.0.0.1:0"
) -> Iterator[Fabric]:
    """A broker, ready for connections; by default on free ports."""
    arguments = ["-m", "broker", "--frontend", frontend, "--backend", backend, *options]
    with running(*arguments) as process:
        ready = process.wait_for(r"ready frontend=(\S+) backend=(\S+)")
        yield Fabric(process, ready[1], ready[2])


@contextmanager
def running_workers(backend: str, *options: str, program: str = "workers", **environment: str) -> Iterator[Process]:
    """A supervisor with its workers; they may not be connected yet."""
    with running("-m", program, "--broker", backend, *options, **environment) as process:
        yield process


class Gateway:
    """A gateway process, and HOST:PORT of its ports; a port that is turned off is empty."""

    def __init__(self, process: Process, http: str, grpc: str) -> None:
        self.process = process
        self.http = http
        self.grpc = grpc

    @property
    def url(self) -> str:
        return f"http://{self.http}"


@contextmanager
def running_gateway(*brokers: str, options: Sequence[str] = (), **environment: str) -> Iterator[Gateway]:
    """A gateway in front of these frontends, ready for connections on free ports."""
    ports = ["--http", "127.0.0.1:0", "--grpc", "127.0.0.1:0"]
    arguments = ["-m", "zmq_offload.gateway", "--broker", ",".join(brokers), *ports, *options]
    with running(*arguments, **environment) as process:
        line = process.wait_for(r"^ready( .*)?$")[0]
        addresses = dict(re.findall(r"(http|grpc)=(\S+)", line))
        yield Gateway(process, addresses.get("http", ""), addresses.get("grpc", ""))


@contextmanager
def running_gateway_with_broker(*options: str, **environment: str) -> Iterator[tuple[Gateway, Fabric]]:
    """A gateway with a broker in its process, ready for connections on free ports."""
    ports = ["--http", "127.0.0.1:0", "--grpc", "127.0.0.1:0"]
    arguments = ["-m", "zmq_offload.gateway", "--with-broker", "tcp://127.0.0.1:0,tcp://127.0.0.1:0", *ports, *options]
    with running(*arguments, **environment) as process:
        addresses = dict(re.findall(r"(\w+)=(\S+)", process.wait_for(r"^ready( .*)?$")[0]))
        gateway = Gateway(process, addresses["http"], addresses["grpc"])
        yield gateway, Fabric(process, addresses["frontend"], addresses["backend"])


@contextmanager
def faulty_workers(backend: str, *options: str, slots: int = 2) -> Iterator[Process]:
    """Echo workers that sleep, hang or die on request; see `tests.support.faulty_worker`."""
    arguments = ("--executor", "echo", "--slots", str(slots), *options)
    with running_workers(backend, *arguments, program="tests.support.faulty_worker") as process:
        yield process


def status(frontend: str) -> dict[str, Any]:
    """The status that a broker answers."""
    with Client(frontend) as client:
        return client.status()


def worker_pids(frontend: str) -> list[int]:
    """The process ids of the workers that a broker knows; a worker's name ends in it."""
    return sorted(int(worker["name"].rpartition("-")[2]) for worker in status(frontend)["workers"])


def wait_for_workers(frontend: str, count: int, timeout: float = 30.0) -> list[int]:
    """Wait until the broker knows `count` workers; return their process ids."""
    with Client(frontend) as client:
        eventually(lambda: len(client.status()["workers"]) == count, timeout)
    return worker_pids(frontend)


def is_running(pid: int) -> bool:
    """Whether a process runs; a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


@contextmanager
def signed_workers(backend: str, *options: str) -> Iterator[Process]:
    """Echo workers that serve models with signatures, too; see `tests.support.signed_worker`."""
    arguments = ("--executor", "echo", *options)
    with running_workers(backend, *arguments, program="tests.support.signed_worker") as process:
        yield process
