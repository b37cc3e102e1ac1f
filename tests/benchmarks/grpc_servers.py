"""gRPC servers compared: an echo of bytes by grpcio, by the `h2` library, and by the gateway's own HTTP/2.

`python -m tests.benchmarks.grpc_servers` measures all of them in turns with one client (grpcio's). The row `h2` needs
the library of this name, which the project does not need. `... serve NAME` prints "ready PORT" and serves.
"""

from __future__ import annotations

import argparse
import asyncio
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent import futures
from contextlib import ExitStack, contextmanager
from importlib.util import find_spec
from typing import Any

import grpc
import uvloop

from tests.benchmarks.measure import interleave
from zmq_offload.gateway.access.decisions import Open
from zmq_offload.gateway.calls import Buffer
from zmq_offload.gateway.grpc.calls import Context, Reply
from zmq_offload.gateway.grpc.limits import Limits
from zmq_offload.gateway.grpc.server import GrpcServer

PATH = "/bench.Echo/Echo"
SIZES = (1024, 38_400, 1_000_000)
LARGEST = 64 << 20


def _ready(port: int) -> None:
    print("ready", port, flush=True)


def serve_grpcio() -> None:
    """grpcio's synchronous server with handlers of raw bytes."""

    class Echo(grpc.GenericRpcHandler):
        def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[Any, Any]:
            return grpc.unary_unary_rpc_method_handler(lambda message, context: message)

    options = [("grpc.max_receive_message_length", LARGEST), ("grpc.max_send_message_length", LARGEST)]
    server = grpc.server(futures.ThreadPoolExecutor(4), handlers=[Echo()], options=options)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    _ready(port)
    server.wait_for_termination()


def serve_h2() -> None:
    """A minimal gRPC server on the library `h2`, with uvloop."""
    import h2.config
    import h2.connection
    import h2.events

    class Protocol(asyncio.Protocol):
        def connection_made(self, transport: Any) -> None:
            self.transport = transport
            self.bodies: dict[int, bytearray] = {}
            self.waiting: dict[int, memoryview] = {}
            config = h2.config.H2Configuration(client_side=False, header_encoding=None)
            self.h2 = h2.connection.H2Connection(config)
            settings = {h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: LARGEST}
            self.h2.local_settings = h2.settings.Settings(client=False, initial_values=settings)
            self.h2.initiate_connection()
            self.h2.increment_flow_control_window(LARGEST)
            self.flush()

        def flush(self) -> None:
            if data := self.h2.data_to_send():
                self.transport.write(data)

        def data_received(self, data: bytes) -> None:
            for event in self.h2.receive_data(data):
                if isinstance(event, h2.events.RequestReceived):
                    self.bodies[event.stream_id] = bytearray()
                elif isinstance(event, h2.events.DataReceived):
                    self.bodies[event.stream_id] += event.data
                    self.h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
                elif isinstance(event, h2.events.StreamEnded):
                    head = [(b":status", b"200"), (b"content-type", b"application/grpc")]
                    self.h2.send_headers(event.stream_id, head)
                    self.waiting[event.stream_id] = memoryview(self.bodies.pop(event.stream_id))
                elif isinstance(event, h2.events.StreamReset):
                    self.waiting.pop(event.stream_id, None)
            for stream in list(self.waiting):
                self.send(stream)
            self.flush()

        def send(self, stream: int) -> None:
            while rest := self.waiting[stream]:
                size = min(self.h2.local_flow_control_window(stream), self.h2.max_outbound_frame_size, len(rest))
                if not size:
                    return
                self.h2.send_data(stream, bytes(rest[:size]))
                self.waiting[stream] = rest[size:]
            self.h2.send_headers(stream, [(b"grpc-status", b"0")], end_stream=True)
            del self.waiting[stream]

    _listen(uvloop.new_event_loop(), Protocol)


def _listen(loop: asyncio.AbstractEventLoop, protocol: Callable[[], Any]) -> None:
    server = loop.run_until_complete(loop.create_server(protocol, "127.0.0.1", 0))
    _ready(server.sockets[0].getsockname()[1])
    loop.run_forever()


def serve_gateway() -> None:
    """The gateway's gRPC server, without a broker behind it."""

    def echo(message: Buffer, context: Context, reply: Reply) -> None:
        reply([message])

    async def make() -> GrpcServer:
        return GrpcServer({PATH: echo}, Open(), Limits(LARGEST, 16 * LARGEST, 65_536, 1000, 256, 60.0, 20.0))

    loop = uvloop.new_event_loop()
    server = loop.run_until_complete(make())
    _listen(loop, server.protocol)


SERVERS = {"grpcio": serve_grpcio, "h2": serve_h2, "gateway": serve_gateway}


@contextmanager
def started(name: str) -> Iterator[tuple[int, int]]:
    """Start a server, and yield its process id and port."""
    command = [sys.executable, "-m", "tests.benchmarks.grpc_servers", "serve", name]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout
            yield process.pid, int(process.stdout.readline().split()[1])
        finally:
            process.kill()


def compare(seconds: float) -> None:
    """Print the median round trip and the server's CPU time of each server with each size, one caller."""
    names = [name for name in SERVERS if name != "h2" or find_spec("h2")]
    options = [("grpc.max_receive_message_length", LARGEST), ("grpc.max_send_message_length", LARGEST)]
    with ExitStack() as stack:
        servers = {name: stack.enter_context(started(name)) for name in names}
        echoes = {}
        for name, (_, port) in servers.items():
            channel = stack.enter_context(grpc.insecure_channel(f"127.0.0.1:{port}", options=options))
            echoes[name] = channel.unary_unary(PATH)
        for size in SIZES:
            message = bytes(size)

            def call(echo: Any, message: bytes = message) -> None:
                assert len(echo(message)) == len(message)

            calls = {name: (lambda echo=echo: call(echo)) for name, echo in echoes.items()}
            watched = {name: [pid] for name, (pid, _) in servers.items()}
            for name, series in interleave(calls, watched, seconds=seconds).items():
                print(f"{size:>9,} B  {name:<8} p50 {series.median * 1e3:6.2f} ms, {series.cpu_each * 1e6:6.0f} us CPU")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.grpc_servers", description=__doc__)
    parser.add_argument("--seconds", type=float, default=5.0, help="for each size (default: 5)")
    parser.add_argument("serve", nargs="*", help=f"`serve NAME`: be one of {', '.join(SERVERS)}")
    arguments = parser.parse_args()
    if arguments.serve:
        SERVERS[arguments.serve[-1]]()
    else:
        compare(arguments.seconds)


if __name__ == "__main__":
    main()
