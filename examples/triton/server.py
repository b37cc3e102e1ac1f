"""A Triton without a container: the server that is in the package nvidia-pytriton, with its Python backend."""

from __future__ import annotations

import os
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from zmq_offload.errors import FailedPrecondition, Unavailable

_WHERE = (
    "import pytriton, sys, sysconfig; "
    "print(pytriton.__path__[0], '%d.%d' % sys.version_info[:2], sysconfig.get_config_var('LIBDIR'), sep='\\n')"
)


class Triton(NamedTuple):
    """A running Triton, and HOST:PORT of its protocols."""

    process: subprocess.Popen[bytes]
    http: str
    grpc: str


@contextmanager
def triton(python: str, models: Path, scratch: Path, *options: str) -> Iterator[Triton]:
    """Run Triton until the end of the body. It is ready at the start.

    `models` run in the environment of `python`, which has nvidia-pytriton. The server's log is in `scratch`. Raises
    FailedPrecondition if it is not installed, and Unavailable, with the end of the log, if it does not start.
    """
    found = subprocess.run([python, "-c", _WHERE], capture_output=True, text=True, check=False)
    if found.returncode:
        raise FailedPrecondition(f"the environment of {python} has no Triton; install nvidia-pytriton there")
    package, version, libraries = found.stdout.split("\n")[:3]
    home = Path(package)
    http, grpc, metrics = (_free_port() for _ in range(3))
    command = [
        str(home / "tritonserver/bin/tritonserver"), "--model-repository", str(models.resolve()),
        "--backend-directory", str(_backends(home, version, scratch)),
        f"--http-port={http}", f"--grpc-port={grpc}", f"--metrics-port={metrics}", *options,
    ]  # fmt: skip
    environment = os.environ | {
        "LD_LIBRARY_PATH": f"{home.parent / 'nvidia_pytriton.libs'}:{libraries}",
        "PATH": f"{Path(python).absolute().parent}:{os.environ['PATH']}",
    }
    log = scratch / "server.log"
    with log.open("wb") as output:
        process = subprocess.Popen(command, env=environment, cwd=scratch, stdout=output, stderr=subprocess.STDOUT)
    try:
        _wait(process, f"http://127.0.0.1:{http}/v2/health/ready", log)
        yield Triton(process, f"127.0.0.1:{http}", f"127.0.0.1:{grpc}")
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _backends(home: Path, version: str, scratch: Path) -> Path:
    """A folder with the Python backend for this version of Python. The package has its parts in several places."""
    backend = scratch / "backends" / "python"
    backend.mkdir(parents=True)
    for name in ("libtriton_python.so", "triton_python_backend_utils.py"):
        (backend / name).symlink_to(home / "tritonserver/backends/python" / name)
    stub = home / "tritonserver/python_backend_stubs" / version / "triton_python_backend_stub"
    (backend / stub.name).symlink_to(stub)
    return backend.parent


def _free_port() -> int:
    """A port that is free now. Another process may take it, but Triton cannot choose one itself."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait(process: subprocess.Popen[bytes], url: str, log: Path, timeout: float = 60) -> None:
    end = time.monotonic() + timeout
    while True:
        try:
            with urllib.request.urlopen(url, timeout=2) as response:
                if response.status == 200:
                    return
        except OSError:
            pass
        if process.poll() is not None or time.monotonic() > end:
            raise Unavailable(
                f"Triton did not come up (code {process.poll()}): {_why(log.read_text(errors='replace'))}"
            )
        time.sleep(0.2)


def _why(log: str) -> str:
    """What the log says of models that were not loaded, else its end. The table of options after it hides both."""
    lines = log.splitlines()
    return "\n".join([line for line in lines if "failed to load '" in line and "version" in line][:1] or lines[-2:])
