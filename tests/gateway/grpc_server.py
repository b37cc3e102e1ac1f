"""A gRPC server in a thread, with methods for tests."""

from __future__ import annotations

import asyncio
import json
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import uvloop

from zmq_offload.errors import OffloadError, Status, from_status
from zmq_offload.gateway.access.decisions import Access, Open
from zmq_offload.gateway.calls import Buffer, Cancel
from zmq_offload.gateway.grpc.calls import Context, Reply, Stream, Streaming, Writer
from zmq_offload.gateway.grpc.limits import Limits
from zmq_offload.gateway.grpc.server import GrpcServer

Result = TypeVar("Result")

LIMITS = Limits(
    message_bytes=80 << 20,
    held_bytes=400 << 20,
    header_bytes=8192,
    connections=100,
    streams=128,
    idle=60.0,
    receive=20.0,
)


class Echo(Stream):
    """Sends each message back. "error NAME" ends the call with this error, "raise" raises, "pause" pauses.

    "left" is answered with the seconds that the client's deadline leaves.
    """

    def __init__(self, server: Server, context: Context, writer: Writer) -> None:
        self.server, self.context, self.writer = server, context, writer
        server.streams.append(self)
        self.messages = 0
        self.ended = False

    def message(self, data: Buffer) -> None:
        self.messages += 1
        if len(data) < 50:
            word, _, rest = bytes(data).decode("latin-1").partition(" ")
            if word == "error":
                self.writer.close(from_status(rest, "as asked"))
                return
            if word == "raise":
                raise RuntimeError("as asked")
            if word == "refuse":
                raise from_status(rest, "as asked")
            if word == "left":
                data = str(self.context.timeout).encode()
            if word == "pause":
                self.writer.pause()
        self.writer.send([data])

    def half_closed(self) -> None:
        self.writer.close()

    def canceled(self) -> None:
        self.ended = True
        self.server.canceled.append("stream")


class Server:
    """The server, and what its methods saw."""

    def __init__(self, access: Access, limits: Limits, tls: ssl.SSLContext | None) -> None:
        self.streams: list[Echo] = []
        self.waiting: list[Reply] = []
        self.canceled: list[str] = []
        self._access, self._limits, self._tls = access, limits, tls
        self._ready = threading.Event()
        self.loop = uvloop.new_event_loop()
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        self.loop.run_until_complete(self._start())
        self.loop.run_forever()
        self.loop.close()

    async def _start(self) -> None:
        methods = {
            "/t/Echo": self.echo,
            "/t/Wait": self.wait,
            "/t/Fail": self.fail,
            "/t/Raise": self.fault,
            "/t/Context": self.context,
            "/grpc.health.v1.Health/Check": self.context,
            "/grpc.health.v1.Health/Watch": Streaming(lambda context, writer: Echo(self, context, writer)),
            "/t/Stream": Streaming(lambda context, writer: Echo(self, context, writer)),
            "/t/Broken": Streaming(self.fault),
        }
        self.grpc = GrpcServer(methods, self._access, self._limits)
        self._listening = await self.loop.create_server(self.grpc.protocol, "127.0.0.1", 0, ssl=self._tls)
        self.port: int = self._listening.sockets[0].getsockname()[1]
        self._ready.set()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def start(self) -> None:
        self._thread.start()
        assert self._ready.wait(10)

    def stop(self) -> None:
        def end() -> None:
            self._listening.close()
            self.grpc.abort()
            self.loop.call_later(0.05, self.loop.stop)  # when the connections have ended

        self.loop.call_soon_threadsafe(end)
        self._thread.join(10)

    def do(self, action: Callable[[], Result]) -> Result:
        """Do something in the server's thread."""

        async def run() -> Result:
            return action()

        return asyncio.run_coroutine_threadsafe(run(), self.loop).result(10)

    # Methods.

    def echo(self, message: Buffer, context: Context, reply: Reply) -> None:
        reply([message])

    def wait(self, message: Buffer, context: Context, reply: Reply) -> Cancel:
        self.waiting.append(reply)
        return lambda: self.canceled.append("unary")

    def fail(self, message: Buffer, context: Context, reply: Reply) -> None:
        reply(from_status(bytes(message).decode(), "ähm: 100 %\nof it"))

    def fault(self, *_: object) -> None:
        raise RuntimeError("as asked")

    def context(self, message: Buffer, context: Context, reply: Reply) -> None:
        seen = {"grant": context.grant.name, "timeout": context.timeout, "metadata": dict(context.metadata)}
        reply([json.dumps(seen).encode()])


@contextmanager
def serving(
    access: Access | None = None, limits: Limits = LIMITS, tls: ssl.SSLContext | None = None
) -> Iterator[Server]:
    server = Server(access or Open(), limits, tls)
    server.start()
    try:
        yield server
        assert server.do(lambda: server.grpc.held) == 0
    finally:
        server.stop()


ERRORS: dict[str, OffloadError] = {code.value: from_status(code.value, "x") for code in Status}
