"""Servers of other projects, each in a process of its own, for comparisons with this one."""

from __future__ import annotations

import os
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

from examples.triton.server import Triton, triton
from zmq_offload.errors import FailedPrecondition, Unavailable

Command = list[str]
"""A command line, from its Python on."""


class Missing(Exception):
    """A server is not installed, or did not start. The message says how to install it."""


def free_port() -> int:
    """A port that is free now. Another process may take it, but these servers cannot choose one themselves."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def has(python: str, module: str) -> bool:
    """Whether an environment has a module."""
    return subprocess.run([python, "-c", f"import {module}"], capture_output=True, check=False).returncode == 0


def listens(port: int) -> bool:
    with socket.create_connection(("127.0.0.1", port), timeout=1):
        return True


def until_up(ready: Callable[[], object], process: subprocess.Popen[bytes], what: str, timeout: float = 60) -> None:
    end = time.monotonic() + timeout
    while True:
        try:
            if ready():
                return
        except OSError:
            pass
        if process.poll() is not None or time.monotonic() > end:
            raise Missing(f"{what} did not come up (code {process.poll()})")
        time.sleep(0.2)


@contextmanager
def server(command: Command, environment: Mapping[str, str], folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process that writes `server.log` in a folder, and is ended afterwards."""
    with (folder / "server.log").open("wb") as log:
        process = subprocess.Popen(
            command, env=os.environ | dict(environment), cwd=folder, stdout=log, stderr=subprocess.STDOUT
        )
        try:
            yield process
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


@contextmanager
def tritonserver(folder: Path, python: str, repository: Path, *options: str) -> Iterator[Triton]:
    """The server in the package nvidia-pytriton, without GPU or container; its log is `server.log` in the folder."""
    with ExitStack() as stack:
        try:
            running = stack.enter_context(triton(python, repository, folder, *options))
        except (FailedPrecondition, Unavailable) as error:
            raise Missing(f"{error.message} (--triton-python VENV/bin/python)") from None
        yield running
