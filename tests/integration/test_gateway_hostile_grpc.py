"""A gateway whose gRPC port is attacked, with real processes: it stays up and small, and serves honest clients."""

from __future__ import annotations

import asyncio
import random
import socket
import struct
import time
from collections.abc import Iterator
from contextlib import AbstractAsyncContextManager
from functools import partial

import grpc
import pytest
import uvloop

from tests.gateway.http2_peer import data, headers, settings
from tests.support.attacks import MEBIBYTE, asking, check_alive, connect, crowd, memory, need_files, report, storm
from tests.support.processes import Gateway, running_broker, running_gateway, running_workers, wait_for_workers
from zmq_offload.gateway.grpc.messages import prefixed
from zmq_offload.gateway.http2 import frames
from zmq_offload.gateway.http2.errors import ErrorCode
from zmq_offload.gateway.http2.frames import HEAD, PREFACE, frame
from zmq_offload.protobuf.messages import message_class

pytestmark = pytest.mark.chaos

RECEIVE = 3

METHODS = (
    "/inference.GRPCInferenceService/ModelInfer",
    "/inference.GRPCInferenceService/ModelStreamInfer",
    "/inference.GRPCInferenceService/ServerLive",
    "/inference.GRPCInferenceService/ModelMetadata",
    "/tensorflow.serving.PredictionService/Predict",
    "/grpc.health.v1.Health/Watch",
    "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
    "/none/None",
)


@pytest.fixture(name="gateway", scope="module")
def _gateway() -> Iterator[Gateway]:
    with running_broker() as fabric, running_workers(fabric.backend, "--executor", "echo", "--processes", "1"):
        wait_for_workers(fabric.frontend, 1)
        # A port by itself has all files of the process: ports share them.
        options = ["--receive-timeout", str(RECEIVE), "--http", "none"]
        with running_gateway(fabric.frontend, options=options) as gateway:
            yield gateway


def infer() -> bytes:
    request = message_class("inference.ModelInferRequest")(
        model_name="echo", raw_input_contents=[struct.pack("2f", 1.5, 2.5)]
    )
    request.inputs.add(name="x", datatype="FP32", shape=[2])
    found: bytes = request.SerializeToString()
    return found


INFER = infer()


def call(path: str, *more: tuple[str, str]) -> list[tuple[str, str]]:
    pseudo = [(":method", "POST"), (":scheme", "http"), (":path", path), (":authority", "h")]
    return [*pseudo, ("content-type", "application/grpc"), ("te", "trailers"), *more]


HEADS = [
    headers(1, call(path, *more))[HEAD.size :]
    for path in METHODS
    for more in ((), (("grpc-encoding", "gzip"),), (("grpc-timeout", "1m"),), (("authorization", "Bearer x"),))
]
MESSAGE = b"".join(prefixed([INFER]))
WHOLE = PREFACE + settings(window=1 << 20) + headers(1, call(METHODS[0])) + data(1, MESSAGE, end=True)


def honest_traffic(gateway: Gateway) -> AbstractAsyncContextManager[list[float]]:
    """A client that runs a model again and again."""

    async def ask(times: list[float]) -> None:
        async with grpc.aio.insecure_channel(gateway.grpc) as channel:
            echo = channel.unary_unary(METHODS[0])
            while True:
                start = time.perf_counter()
                answer = message_class("inference.ModelInferResponse").FromString(await echo(INFER, timeout=30))
                assert answer.raw_output_contents == [struct.pack("2f", 1.5, 2.5)]
                times.append(time.perf_counter() - start)
                await asyncio.sleep(0.002)

    return asking(ask)


def hostile(chance: random.Random) -> bytes:
    """Random bytes, half a conversation, a damaged one, random frames, or calls with senseless messages."""
    kind = chance.randrange(5)
    if kind == 0:
        return chance.choice((b"", PREFACE)) + chance.randbytes(chance.randrange(300))
    if kind == 1:
        return WHOLE[: chance.randrange(len(WHOLE))]
    if kind == 2:
        wire = bytearray(WHOLE)
        for _ in range(chance.randrange(1, 5)):
            at = chance.randrange(len(wire))
            wire[at : at + chance.randrange(3)] = chance.randbytes(chance.randrange(4))
        return bytes(wire)
    parts = [PREFACE, settings(window=chance.choice((0, 1, 70_000)))]
    numbers = range(1, 1 + 2 * chance.randrange(1, 12), 2)
    if kind == 3:
        payloads = (*HEADS, MESSAGE, b"", bytes(4), bytes(5), bytes(6), bytes(8), chance.randbytes(40))
        for _ in range(20):
            flags = chance.choice((0, 1, 4, 5, 8, 13, 0x24, 0x2C))
            parts.append(frame(chance.randrange(11), flags, chance.choice((0, *numbers)), chance.choice(payloads)))
        return b"".join(parts)
    for number in numbers:
        parts.append(frame(frames.HEADERS, frames.END_HEADERS, number, chance.choice(HEADS)))
        message = bytearray(INFER)
        for _ in range(chance.randrange(4)):
            message[chance.randrange(len(message))] = chance.randrange(256)
        parts.append(
            data(number, b"".join(prefixed([bytes(message)], chance.random() < 0.1)), end=chance.random() < 0.7)
        )
        if chance.random() < 0.2:
            parts.append(frames.reset(number, ErrorCode.CANCEL))
    return b"".join(parts)


def test_random_and_half_conversations(gateway: Gateway) -> None:
    uvloop.run(storm(gateway, gateway.grpc, hostile, partial(honest_traffic, gateway)))
    check_alive(gateway)


def test_slow_clients(gateway: Gateway) -> None:
    """Each sends a byte now and then, of a greeting, a head or a message, or does not read its replies."""

    async def slow(start: bytes, rest: bytes, told: int) -> None:
        loop = asyncio.get_running_loop()
        with await connect(gateway.grpc) as client:
            received = b""
            await loop.sock_sendall(client, start)
            for byte in rest:
                try:
                    await loop.sock_sendall(client, bytes([byte]))
                    received += await asyncio.wait_for(loop.sock_recv(client, 65536), 0.5)
                except asyncio.TimeoutError:
                    continue
                if len(received) > told:
                    return
            pytest.fail("a slow client was served to its end")

    async def deaf() -> None:
        loop = asyncio.get_running_loop()
        message = b"".join(prefixed([INFER]))
        with await connect(gateway.grpc) as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            try:
                await loop.sock_sendall(client, PREFACE + settings(window=1 << 30) + frames.window_update(0, 1 << 30))
                for number in range(1, 1 << 20, 2):
                    head = frame(frames.HEADERS, frames.END_HEADERS, number, HEADS[0])
                    await loop.sock_sendall(client, head + data(number, message, end=True))
                    if number % 50 == 1:
                        await asyncio.sleep(0)  # sending alone does not let the honest client have its turn
                pytest.fail("a client that does not read was served to its end")
            except ConnectionError:
                pass

    async def run() -> None:
        before = memory(gateway)
        greeting = 60  # more than the bytes that every connection is told
        message = WHOLE[: -len(MESSAGE) + 5]
        async with honest_traffic(gateway) as times:
            clients = [
                *[slow(PREFACE[:5], PREFACE[5:], greeting) for _ in range(200)],
                *[slow(WHOLE[:100], WHOLE[100:], greeting + 20) for _ in range(200)],
                *[slow(message, bytes(100), greeting + 20) for _ in range(200)],
                *[deaf() for _ in range(4)],
            ]
            await asyncio.wait_for(asyncio.gather(*clients), 100)
        report("600 clients that send slowly, 4 that do not read", gateway, before, times)
        assert memory(gateway) - before < 128 * MEBIBYTE

    uvloop.run(run())


def test_idle_connections(gateway: Gateway) -> None:
    need_files()
    greeting = PREFACE + settings(window=1 << 20)
    uvloop.run(crowd(gateway, gateway.grpc, greeting, 12_288, partial(honest_traffic, gateway)))
