"""The program for the server's side: TVM's RPC server with one function more, which calls of devices go to.

`python -m zmq_offload.transports.tvmrpc.server --repository DIR` starts it. TVM's server has a process for each
connection, one after the other. Each loads the versions that are asked for.
"""

from __future__ import annotations

import ctypes
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Sequence
from functools import partial

from zmq_offload.console.interrupts import quiet_ctrl_c
from zmq_offload.console.parser import Parser
from zmq_offload.console.programs import run
from zmq_offload.console.settings import checked
from zmq_offload.errors import FailedPrecondition, InvalidArgument, one_line
from zmq_offload.runtime import runtime_only

_DEATH_SIGNAL = 1
"""`PR_SET_PDEATHSIG` of Linux."""


_port = checked(int, lambda n: 0 <= n <= 65535, "a port, from 0 to 65535")


def register(repository: str) -> None:
    """Register the function for clients: pass `functools.partial(register, DIR)` to `tvm.rpc.Server` as
    `server_init_callback`.

    Parameters
    ----------
    repository : str
        The model repository, with an absolute path.
    """
    import tvm_ffi

    from zmq_offload.transports.tvmrpc import direct, parcel

    _end_with_parent()
    threading.excepthook = _end
    services: list[Callable[[bytes | memoryview], Sequence[bytes | memoryview]]] = []

    def call(data: bytes) -> bytes:
        if not services:  # in the process of a connection, which is forked before TVM is used
            from zmq_offload.artifacts.repository import Repository
            from zmq_offload.transports.tvmrpc.service import Service

            services.append(Service(Repository(repository)).answer)
            connection = direct.own_connection()
            if connection is not None:
                direct.serve(connection, data, services[0])
                # TVM's server ends for good when the process of a connection does not end with 0.
                os._exit(0)
        return b"".join(services[0](data))

    tvm_ffi.register_global_func(parcel.FUNCTION, call, override=True)


def _end(failed: threading.ExceptHookArgs) -> None:
    """End the process: TVM's thread that accepts connections ends without a word if a connection's process crashed, and
    clients would wait for ever."""
    logging.getLogger("RPCServer").error("the server ends: %s", failed.exc_value)
    os._exit(1)


def _end_with_parent() -> None:
    """Let the kernel end this process, which TVM starts, when the program that started it was killed."""
    ctypes.CDLL(None).prctl(_DEATH_SIGNAL, signal.SIGKILL)


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit codes: 0 stopped as told, 1 failed (one line on stderr), 2 wrong usage."""
    with quiet_ctrl_c():
        return run(partial(_run, sys.argv[1:] if arguments is None else arguments), "tvmrpc")


def _run(arguments: Sequence[str]) -> None:
    parser = Parser(prog="python -m zmq_offload.transports.tvmrpc.server")
    parser.description = "TVM's RPC server for device bundles: it runs the subgraphs of a model repository."
    parser.add_argument("--repository", default="dist/repository", metavar="DIR", help="the model repository")
    parser.add_argument("--host", default="127.0.0.1", help="the address to listen at")
    parser.add_argument("--port", type=_port, default=9090, help="the port to listen at; 0: a free one")
    parser.add_argument("--key", default="", help="the key that clients give")
    parser.add_argument("--tracker", default=None, metavar="HOST:PORT", help="a tracker to register at")
    given = parser.parse_args(arguments)
    host, _, port = (given.tracker or "").rpartition(":")
    if given.tracker is not None and not (host and port.isdecimal() and 0 < int(port) < 65536 and given.key):
        raise InvalidArgument(f"--tracker {given.tracker!r} needs HOST:PORT, and a --key")
    if not os.path.isdir(given.repository):
        raise FailedPrecondition(f"{given.repository} is not a folder; give a model repository")
    runtime_only.use()
    from zmq_offload.common.extras import needs

    with needs("tvmrpc"):
        import cloudpickle  # noqa: F401  (TVM imports it when a server starts)
        from tvm import rpc
    tracker = (host, int(port)) if given.tracker is not None else None
    listen = given.port or _free_port(given.host)
    while True:  # a crash in a model ends TVM's server
        try:
            server = rpc.Server(
                given.host,
                listen,
                listen + 1,
                key=given.key,
                tracker_addr=tracker,
                server_init_callback=partial(register, os.path.abspath(given.repository)),
            )
        except (ValueError, OSError) as error:
            last = str(error).strip().splitlines()[-1:] or [one_line(error)]
            raise FailedPrecondition(f"TVM's RPC server cannot start at {given.host}:{listen}: {last[0]}") from None
        print(f"ready tvmrpc://{given.host}:{server.port}", flush=True)
        try:
            server.proc.join()
        finally:
            server.terminate()


def _free_port(host: str) -> int:
    """A port that is free now: TVM's server takes no 0."""
    with socket.create_server((host, 0)) as probe:
        return int(probe.getsockname()[1])


if __name__ == "__main__":
    sys.exit(main())
