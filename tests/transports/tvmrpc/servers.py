"""Programs of TVM's RPC for tests, on free ports."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.processes import eventually


@contextlib.contextmanager
def program(*arguments: str, ready: str = "ready") -> Iterator[tuple[str, int]]:
    """A program of Python's, until the block ends. Gives the rest of the line that begins with `ready`, and its pid."""
    process = subprocess.Popen(
        [sys.executable, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    reader = None
    try:
        seen = []
        for line in process.stdout:
            seen.append(line)
            if ready in line:
                reader = threading.Thread(target=process.stdout.read)
                reader.start()
                yield line.partition(ready)[2].strip(), process.pid
                return
        pytest.fail(f"the program ended: {''.join(seen)}")
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        if reader is not None:
            reader.join()
        process.stdout.close()


def our_server(repository: Path, *more: str) -> contextlib.AbstractContextManager[tuple[str, int]]:
    """The server with our function: its URL and its pid."""
    module = "zmq_offload.transports.tvmrpc.server"
    return program("-m", module, "--repository", str(repository), "--port", "0", *more)


@contextlib.contextmanager
def plain_server(*more: str) -> Iterator[tuple[str, int]]:
    """TVM's own server as it is: its URL and its pid."""
    port = free_port()  # it takes no 0, but goes on to the next one
    options = ("--host", "127.0.0.1", "--port", str(port), "--port-end", str(port + 50), *more)
    with program("-m", "tvm.exec.rpc_server", *options, ready="bind to ") as (address, pid):
        eventually(lambda: _listens(address))  # it says so before it listens
        yield f"tvmrpc://{address}", pid


def _listens(address: str) -> bool:
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port))).close()
    except OSError:
        return False
    return True


def free_port() -> int:
    """A port that is free now."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])
