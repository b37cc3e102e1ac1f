"""Connected clients that do nothing, many in a process: `python -m tests.benchmarks.idle_clients ENDPOINT COUNT`.

Prints "connected" when the broker has replied to each of them, and holds them until the process ends.
"""

from __future__ import annotations

import resource
import sys
import threading

import zmq

from zmq_offload.net import transport
from zmq_offload.protocol import messages as wire


def main() -> None:
    endpoint, count = sys.argv[1], int(sys.argv[2])
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    context.setsockopt(zmq.MAX_SOCKETS, count + 16)
    sockets = []
    for _ in range(count):
        socket = transport.make_socket(
            context, zmq.DEALER, max_frame_bytes=1 << 20, heartbeat=transport.CLIENTS_HEARTBEAT
        )
        transport.connect(socket, endpoint)
        sockets.append(socket)
    for number, socket in enumerate(sockets):
        transport.send(socket, [wire.encode(wire.Ping(number.to_bytes(16, "big"), []))])
    for socket in sockets:
        assert socket.poll(60_000), "the broker does not answer"
        socket.recv_multipart()
    print("connected", flush=True)
    threading.Event().wait()


if __name__ == "__main__":
    main()
