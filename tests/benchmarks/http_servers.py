"""HTTP servers compared: an echo of bytes by the gateway's own server, and by uvicorn with httptools and uvloop.

`python -m tests.benchmarks.http_servers --uvicorn-python PYTHON` measures them in turns with one client, a bare socket.
PYTHON has uvicorn, httptools and uvloop, which the project does not need for this. `... serve` prints "ready PORT" and
is the gateway's server, without a broker behind it.
"""

from __future__ import annotations

import argparse
import asyncio
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

import uvloop

from tests.benchmarks.measure import interleave
from zmq_offload.gateway.access.decisions import Open
from zmq_offload.gateway.http.limits import Limits
from zmq_offload.gateway.http.messages import Request, Respond, Response
from zmq_offload.gateway.http.router import Names, Router
from zmq_offload.gateway.http.server import HttpServer

SIZES = (1024, 38_400, 1_000_000)
LARGEST = 64 << 20

UVICORN = """
import socket, uvicorn

async def echo(scope, receive, send):
    parts, more = [], True
    while more:
        message = await receive()
        parts.append(message["body"])
        more = message["more_body"]
    body = b"".join(parts)
    headers = [(b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})

listening = socket.create_server(("127.0.0.1", 0))
print("ready", listening.getsockname()[1], flush=True)
options = {"loop": "uvloop", "http": "httptools", "lifespan": "off", "access_log": False, "log_level": "error"}
uvicorn.Server(uvicorn.Config(echo, **options)).run([listening])
"""


def serve() -> None:
    """The gateway's HTTP server, without a broker behind it."""

    def echo(request: Request, names: Names, respond: Respond) -> None:
        respond(Response(200, [request.body]))

    async def run() -> None:
        router = Router()
        router.add("POST", "/v2/models/{model}/infer", echo)
        http = HttpServer(router, Open(), Limits(LARGEST, 16 * LARGEST, 65_536, 1000, 60.0, 20.0))
        server = await asyncio.get_running_loop().create_server(http.protocol, "127.0.0.1", 0)
        print("ready", server.sockets[0].getsockname()[1], flush=True)
        await server.serve_forever()

    uvloop.run(run())


@contextmanager
def started(command: Sequence[str]) -> Iterator[tuple[int, int]]:
    """Start a server, and yield its process id and port."""
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout
            yield process.pid, int(process.stdout.readline().split()[1])
        finally:
            process.kill()


def exchange(client: socket.socket, request: bytes, answer: bytearray) -> None:
    """Send a request, and receive the whole answer."""
    client.sendall(request)
    view, got, end = memoryview(answer), 0, 0
    while not end or got < end:
        count = client.recv_into(view[got:])
        assert count, "the server closed the connection"
        got += count
        if not end and (head := answer.find(b"\r\n\r\n", 0, got)) >= 0:
            fields = bytes(view[:head]).lower()
            end = head + 4 + int(fields.split(b"content-length: ")[1].split(b"\r\n")[0])
    assert answer.startswith(b"HTTP/1.1 200")


def compare(commands: dict[str, Sequence[str]], seconds: float) -> None:
    """Print the median round trip and the server's CPU time of each server with each size, one caller."""
    with ExitStack() as stack:
        servers = {name: stack.enter_context(started(command)) for name, command in commands.items()}
        clients = {
            name: stack.enter_context(socket.create_connection(("127.0.0.1", port)))
            for name, (_, port) in servers.items()
        }
        for client in clients.values():
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for size in SIZES:
            head = f"POST /v2/models/echo/infer HTTP/1.1\r\nHost: localhost\r\nContent-Length: {size}\r\n\r\n"
            request, answer = head.encode() + bytes(size), bytearray(size + 4096)

            def call(client: socket.socket, request: bytes = request, answer: bytearray = answer) -> None:
                exchange(client, request, answer)

            calls = {name: (lambda client=client: call(client)) for name, client in clients.items()}
            watched = {name: [pid] for name, (pid, _) in servers.items()}
            for name, series in interleave(calls, watched, seconds=seconds).items():
                print(f"{size:>9,} B  {name:<8} p50 {series.median * 1e3:6.3f} ms, {series.cpu_each * 1e6:6.0f} us CPU")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.http_servers", description=__doc__)
    parser.add_argument("--seconds", type=float, default=5.0, help="for each size (default: 5)")
    parser.add_argument("--uvicorn-python", help="a Python with uvicorn, httptools and uvloop")
    parser.add_argument("serve", nargs="?", choices=["serve"], help="be the gateway's server")
    arguments = parser.parse_args()
    if arguments.serve:
        serve()
        return
    commands = {"gateway": [sys.executable, "-m", "tests.benchmarks.http_servers", "serve"]}
    if arguments.uvicorn_python:
        commands["uvicorn"] = [arguments.uvicorn_python, "-c", UVICORN]
    compare(commands, arguments.seconds)


if __name__ == "__main__":
    main()
