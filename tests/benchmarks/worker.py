"""Measures what a request costs a worker, beside the bare echo worker: `python -m tests.benchmarks.worker`.

A process that plays the broker sends the same tensors to an echo worker of the fabric and to the echo worker of
`tests.benchmarks.bare`, in turns: one request after the other, and 32 in flight. The figures are the CPU time of the
worker's process per request. `--beside FOLDER` measures the worker of another checkout, too. `--loop` measures a
worker in this process, fed by the same thread, so that nothing has to be woken; `--profile` says where that time goes.
"""

from __future__ import annotations

import argparse
import cProfile
import os
import pstats
import select
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np

from tests.benchmarks.measure import cpu_seconds
from workers.config import Config
from workers.loop import Worker
from zmq_offload.net.stream import Stream
from zmq_offload.net.zmtp import Peer
from zmq_offload.protocol import messages as wire
from zmq_offload.protocol.payload import encode_tensors

SIZES = (1024, 38_400)
DEPTH = 32
_HEARTBEAT = 1.0
_MOST = 1 << 26


def _payload(size: int) -> list[Any]:
    return encode_tensors({"x": np.random.default_rng(0).random(size // 4, dtype=np.float32)})


class Fed:
    """A worker's process, fed over its connection."""

    def __init__(self, popen: subprocess.Popen[bytes], accepted: socket.socket, is_bare: bool) -> None:
        self._is_bare = is_bare
        self._stream = Stream(accepted, Peer(_MOST, 64, _HEARTBEAT, b"ROUTER"), 1 << 20)
        self._stream.flush()
        self._poll = select.poll()
        self._poll.register(accepted, select.POLLIN)
        self._count = 0
        self._told_at = 0.0
        self._receive()  # that it is there
        self.pid = next(iter(_children(popen.pid)), popen.pid)

    def _receive(self) -> int:
        """Wait for replies and return how many came. A Heartbeat is none: it has one frame."""
        while True:
            self._poll.poll()
            came = sum(len(frames) > 1 for frames in self._stream.receive())
            if came:
                return came

    def _send(self, payload: list[Any], count: int) -> None:
        for _ in range(count):
            self._count += 1
            if self._is_bare:
                self._stream.put([b"\0\0\0\0\1", wire.encode(_dispatch(self._count)), *payload])
            else:
                self._stream.put([wire.encode(_dispatch(self._count)), *payload])
        while not self._stream.flush():
            pass

    def alive(self) -> None:
        """Tell the worker that the broker is there, now and then."""
        if not self._is_bare and time.monotonic() >= self._told_at:
            self._told_at = time.monotonic() + _HEARTBEAT
            self._stream.put([wire.encode(wire.Probe())])
            self._stream.flush()

    def cpu_of(self, payload: list[Any], depth: int, seconds: float) -> float:
        """Seconds of CPU per request."""
        self.alive()
        self._send(payload, 1)
        self._receive()
        done, before = 0, cpu_seconds(self.pid)
        end = time.monotonic() + seconds
        self._send(payload, depth)
        waiting = depth
        while waiting:
            came = self._receive()
            done += came
            if time.monotonic() < end:
                self._send(payload, came)
            else:
                waiting -= came
        return (cpu_seconds(self.pid) - before) / done


def _children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def _dispatch(number: int) -> wire.Dispatch:
    return wire.Dispatch(bytes(16), number, 1, "echo", 1, 10_000_000)


@contextmanager
def fed(is_bare: bool, folder: Path) -> Iterator[Fed]:
    """A worker of the code in `folder`."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        endpoint = f"tcp://127.0.0.1:{listening.getsockname()[1]}"
        command = (
            ["-m", "tests.benchmarks.bare", "credit-echo", endpoint]
            if is_bare
            else ["-m", "workers", "--broker", endpoint, "--executor", "echo", "--slots", str(2 * DEPTH)]
        )
        environment = os.environ | {"PYTHONPATH": str(folder)}
        with subprocess.Popen([sys.executable, *command], cwd=folder, env=environment) as popen:
            try:
                accepted, _ = listening.accept()
                yield Fed(popen, accepted, is_bare)
            finally:
                popen.terminate()


def beside(folders: Sequence[Path], sizes: Sequence[int], seconds: float) -> None:
    """Print the CPU time per request of each worker."""
    names = ["bare echo", *(folder.resolve().name for folder in folders)]
    with ExitStack() as stack:
        workers = [stack.enter_context(fed(True, folders[0]))]
        workers += [stack.enter_context(fed(False, folder)) for folder in folders]
        print(f"| bytes | in flight | {' | '.join(names)} | ratio to bare |")
        print("|---|---|" + "---|" * (len(names) + 1))
        for size in sizes:
            payload = _payload(size)
            for depth in (1, DEPTH):
                found: list[list[float]] = [[] for _ in workers]
                end = time.monotonic() + seconds
                while time.monotonic() < end:
                    for each, worker in zip(found, workers, strict=True):
                        each.append(worker.cpu_of(payload, depth, 0.1) * 1e6)
                figures = [statistics.median(each) for each in found]
                ratios = ", ".join(f"{figure / figures[0]:.2f}" for figure in figures[1:])
                cells = " | ".join(f"{figure:.1f} us" for figure in figures)
                print(f"| {size:,} | {depth} | {cells} | {ratios} |", flush=True)


class InProcess:
    """A worker in this process, fed over a connection by the same thread."""

    def __init__(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as listening:
            listening.setblocking(False)
            endpoint = f"tcp://127.0.0.1:{listening.getsockname()[1]}"
            self.worker = Worker(Config((endpoint,), executor="echo", arena_bytes=0, slots=2 * DEPTH))
            self.worker._announce()
            accepted = None
            while accepted is None:
                self.worker._poll()
                with suppress(BlockingIOError):
                    accepted, _ = listening.accept()
        self.stream = Stream(accepted, Peer(_MOST, 64, _HEARTBEAT, b"ROUTER"), 1 << 20)
        self.stream.flush()
        self.count = 0
        while not self.stream.peer.is_ready:
            self.worker._poll()
            self.stream.receive()
        self._told_at = 0.0

    def serve(self, payload: list[Any], depth: int, profiler: cProfile.Profile | None) -> float:
        """Have the worker serve requests. Returns how long that took."""
        if time.monotonic() >= self._told_at:
            self._told_at = time.monotonic() + _HEARTBEAT / 2
            self.stream.put([wire.encode(wire.Probe())])
        for _ in range(depth):
            self.count += 1
            self.stream.put([wire.encode(_dispatch(self.count)), *payload])
        while not self.stream.flush():
            pass
        worker, spent, came = self.worker, 0.0, 0
        while came < depth:
            began = time.perf_counter()
            if profiler:
                profiler.enable()
            worker._poll()
            while worker.session.held:
                worker._work()
            worker._links.flush()
            if profiler:
                profiler.disable()
            spent += time.perf_counter() - began
            came += sum(len(frames) > 1 for frames in self.stream.receive())
        return spent


def loop(sizes: Sequence[int], seconds: float, profile: bool) -> None:
    """Print what a request costs in this process."""
    inside = InProcess()
    for size in sizes:
        payload = _payload(size)
        for depth in (1, DEPTH):
            profiler = cProfile.Profile() if profile else None
            times = []
            end = time.monotonic() + seconds
            while time.monotonic() < end:
                times.append(inside.serve(payload, depth, profiler) / depth * 1e6)
            middle, *_ = statistics.quantiles(times, n=4)
            print(f"{size:,} bytes, {depth} at once: {middle:.2f} us", flush=True)
            if profiler:
                pstats.Stats(profiler).sort_stats("tottime").print_stats(40)
    os._exit(0)  # the worker's threads are in the midst of it


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.worker", description=__doc__.split("\n\n")[0])
    parser.add_argument("--seconds", type=float, default=4.0, help="for each size and depth")
    parser.add_argument("--sizes", type=int, nargs="+", default=list(SIZES), metavar="BYTES")
    parser.add_argument("--beside", type=Path, nargs="*", default=[], metavar="FOLDER", help="other checkouts")
    parser.add_argument("--loop", action="store_true", help="in this process, without waking anything")
    parser.add_argument("--profile", action="store_true", help="with --loop: where the time goes")
    args = parser.parse_args()
    if args.loop:
        loop(args.sizes, args.seconds, args.profile)
    else:
        beside([Path(__file__).parents[2], *args.beside], args.sizes, args.seconds)


if __name__ == "__main__":
    main()
