"""Servers of other projects, each in a process of its own, for comparisons with this one."""

from __future__ import annotations

import os
import socket
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

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


class Triton(NamedTuple):
    """A running Triton, and HOST:PORT of its protocols."""

    process: subprocess.Popen[bytes]
    http: str
    grpc: str
    metrics: str


@contextmanager
def tritonserver(folder: Path, python: str, repository: Path, *options: str) -> Iterator[Triton]:
    """The server in the package nvidia-pytriton, with its Python backend, without GPU or container.

    `folder` is for its backends and its log. The models of `repository` run in the environment of `python`.
    """
    found = subprocess.run(
        [python, "-c", "import pytriton, sys, sysconfig; "
         "print(pytriton.__path__[0], '%d.%d' % sys.version_info[:2], sysconfig.get_config_var('LIBDIR'), sep='\\n')"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if found.returncode:
        raise Missing("Triton is not installed: --triton-python VENV/bin/python of one with nvidia-pytriton")
    package, version, libraries = found.stdout.split("\n")[:3]
    home = Path(package)
    backend = folder / "backends" / "python"
    backend.mkdir(parents=True)
    for name in ("libtriton_python.so", "triton_python_backend_utils.py"):
        (backend / name).symlink_to(home / "tritonserver/backends/python" / name)
    stub = home / "tritonserver/python_backend_stubs" / version / "triton_python_backend_stub"
    (backend / stub.name).symlink_to(stub)
    http, grpc, metrics = free_port(), free_port(), free_port()
    ports = [f"--http-port={http}", f"--grpc-port={grpc}", f"--metrics-port={metrics}"]
    command = [
        str(home / "tritonserver/bin/tritonserver"), "--model-repository", str(repository),
        "--backend-directory", str(folder / "backends"), *ports, *options,
    ]  # fmt: skip
    environment = {
        "LD_LIBRARY_PATH": f"{home.parent / 'nvidia_pytriton.libs'}:{libraries}",
        "PATH": f"{Path(python).parent}:{os.environ['PATH']}",
    }
    with server(command, environment, folder) as process:
        url = f"http://127.0.0.1:{http}/v2/health/ready"
        until_up(lambda: urllib.request.urlopen(url, timeout=2).status == 200, process, "Triton")
        yield Triton(process, f"127.0.0.1:{http}", f"127.0.0.1:{grpc}", f"127.0.0.1:{metrics}")
