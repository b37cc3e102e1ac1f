"""The protocols of the gateway in a thread, in front of the models of the contract: no broker, no process."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import uvloop

from tests.gateway.fake_fabric import FakeFabric
from tests.transports.models import MODELS, run
from zmq_offload.client.results import Timings
from zmq_offload.errors import OffloadError
from zmq_offload.gateway.access.guard import Guard
from zmq_offload.gateway.application import doors
from zmq_offload.gateway.calls import Call, Cancel, Ended, Outputs, tell
from zmq_offload.gateway.catalog import Model
from zmq_offload.gateway.config import Config
from zmq_offload.net.grants import Grant
from zmq_offload.protocol.packed import pack


class _Fabric(FakeFabric):
    """Runs the contract's models. A call of `slow` waits until it is canceled."""

    def infer(self, call: Call, grant: Grant, ended: Ended) -> Cancel:
        self.calls.append(call)
        if call.model == "slow":
            return self._forget
        return self._later(lambda: tell(ended, _outcome(call)))

    def _forget(self) -> None:
        self.canceled += 1


def _outcome(call: Call) -> Outputs | OffloadError:
    try:
        version, outputs = run(call.model, call.version, call.inputs)
    except OffloadError as error:
        return error
    return Outputs(pack(outputs), call.model, version, Timings(0.001, 0.002, 0.004, 0.005))


def catalog() -> list[Model]:
    """The contract's models as the broker lists them."""
    return [
        Model(name, version, *signature, workers=1, latest=version == max(versions))
        for name, versions in MODELS.items()
        for version, signature in versions.items()
    ]


class GatewayThread:
    """A running gateway: `http` and `grpc` are HOST:PORT, `fabric` has its calls. It serves the contract's models, or
    those of another fabric."""

    http: str
    grpc: str

    def __init__(self, guard: Guard | None = None, fabric: FakeFabric | None = None) -> None:
        self.fabric = fabric or _Fabric(*catalog())
        self._guard = guard or Guard(None, None)
        self._loop = uvloop.new_event_loop()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def start(self) -> None:
        self._thread.start()
        assert self._ready.wait(10)

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._end)
        self._thread.join(10)

    def _run(self) -> None:
        self._loop.run_until_complete(self._start())
        self._loop.run_forever()
        self._loop.close()

    async def _start(self) -> None:
        config = Config(http="127.0.0.1:0", grpc="127.0.0.1:0")
        self._doors = doors(config, self.fabric, self._guard)
        self._listening = []
        for door in self._doors:
            server = await self._loop.create_server(door.service.protocol, "127.0.0.1", 0, ssl=door.tls)
            setattr(self, door.name, f"127.0.0.1:{server.sockets[0].getsockname()[1]}")
            self._listening.append(server)
        self._ready.set()

    def _end(self) -> None:
        for server, door in zip(self._listening, self._doors, strict=True):
            server.close()
            door.service.abort()
        self._loop.call_later(0.05, self._loop.stop)  # when the connections have ended


@contextmanager
def gateway_thread(guard: Guard | None = None, fabric: FakeFabric | None = None) -> Iterator[GatewayThread]:
    """A gateway, until the end of the body. Without a guard it lets everyone in, without TLS."""
    gateway = GatewayThread(guard, fabric)
    gateway.start()
    try:
        yield gateway
    finally:
        gateway.stop()
