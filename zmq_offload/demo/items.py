"""Several devices at once: each a thread with its own client and its own loaded model, all timed."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from zmq_offload.client.results import Outputs
from zmq_offload.client.sync import Client
from zmq_offload.protocol.tensors import TensorSpec, datatype_of

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from zmq_offload.client.options import InferOptions

Array = np.ndarray[Any, Any]

TIMEOUT = 120.0
"""Seconds for one offloaded call: generous, for code that nobody has tuned on a machine that nobody knows."""


class StageTimes(NamedTuple):
    """Where the time of one frame went, in seconds.

    `device`: the device's part. `wire`: the client, and both ways between it and the broker. `queue`: in the broker and
    in the slot of a worker that is busy with another one, both ways between them included. `compute`: the offloaded
    part. `total`: all of it.
    """

    device: float
    wire: float
    queue: float
    compute: float
    total: float


@dataclass(frozen=True)
class Item:
    """One frame that was run: by which device, which picture it was, what came out, how long it took."""

    device: int
    picture: int
    output: Array
    stages: StageTimes


@dataclass
class Run:
    """What all clients did. `sent` and `received` are the tensors of one offloaded call, `seconds` the wall time."""

    frames: list[Item]
    sent: list[TensorSpec]
    received: list[TensorSpec]
    seconds: float


class MeteredClient:
    """A client, for `zmq_offload.load`, that notes what goes through it."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self.sent: list[TensorSpec] = []
        self.received: list[TensorSpec] = []
        self.calls: list[tuple[float, Outputs]] = []

    def infer(self, model: str, inputs: Mapping[str, Array], **options: Unpack[InferOptions]) -> Outputs:
        began = time.perf_counter()
        result = self._client.infer(model, inputs, **options)
        self.calls.append((time.perf_counter() - began, result))
        self.sent, self.received = _specs(inputs), _specs(result)
        return result


class Devices:
    """`devices` devices that run `frames` frames together. Each has one of the pictures, or the only one."""

    def __init__(self, bundle: Path, broker: str, pictures: Sequence[Array], devices: int, frames: int) -> None:
        self._bundle, self._broker = bundle, broker
        self._pictures = pictures
        self._shares = [len(range(device, frames, devices)) for device in range(devices)]
        self._stopping = threading.Event()
        self._clients: list[Client] = []
        self._failures: list[BaseException] = []
        self._start = threading.Barrier(devices, action=lambda: self._times.append(time.perf_counter()))
        self._times: list[float] = []

    def run(self, watch: Callable[[], None]) -> Run:
        """Run all frames, each device after one that does not count, which warms it up.

        `watch` is called now and then; what it raises ends the run. Raises the error of the device that failed first.
        Interrupted, it takes the outstanding requests back.
        """
        run = Run([], [], [], 0.0)
        threads = [
            threading.Thread(target=self._guarded, args=(device, run), daemon=True)
            for device in range(len(self._shares))
        ]
        try:
            for thread in threads:
                thread.start()
            for thread in threads:
                while thread.is_alive():
                    watch()
                    thread.join(0.1)
        finally:
            self._stop()
            for thread in threads:
                if thread.ident is not None:
                    thread.join()
        if self._failures:
            raise self._failures[0]
        run.seconds = max(self._times) - min(self._times)
        return run

    def _stop(self) -> None:
        self._stopping.set()
        self._start.abort()
        for client in list(self._clients):
            client.close()

    def _guarded(self, device: int, run: Run) -> None:
        try:
            self._device(device, run)
        except threading.BrokenBarrierError:
            pass  # another one failed, or all of it was interrupted
        except BaseException as error:
            self._failures.append(error)
            self._stopping.set()
            self._start.abort()

    def _device(self, device: int, run: Run) -> None:
        from zmq_offload.device.model import load

        number = device % len(self._pictures)
        picture = self._pictures[number]
        with Client(self._broker, timeout=TIMEOUT) as client:
            self._clients.append(client)
            if self._stopping.is_set():
                return
            metered = MeteredClient(client)
            with load(self._bundle, client=metered) as model:
                model(picture)
                run.sent, run.received = metered.sent, metered.received
                self._start.wait()
                kept: Array | None = None
                for _ in range(self._shares[device]):
                    if self._stopping.is_set():
                        return
                    metered.calls.clear()
                    output, total = _timed(lambda: model(picture))
                    assert isinstance(output, np.ndarray)
                    if kept is None or not np.array_equal(output, kept):
                        kept = output  # as a rule once: the same picture gives the same output
                    run.frames.append(Item(device, number, kept, stages(total, metered.calls)))
                self._times.append(time.perf_counter())


def stages(total: float, calls: Sequence[tuple[float, Outputs]]) -> StageTimes:
    """The stages of one frame that took `total` seconds: its offloaded calls, each with the seconds that it took."""
    remote = sum(seconds for seconds, _ in calls)
    timings = [outputs.timings for _, outputs in calls]
    compute = sum(t.compute for t in timings)
    queue = sum(t.broker - t.compute for t in timings)
    return StageTimes(total - remote, remote - compute - queue, queue, compute, total)


def _specs(tensors: Mapping[str, Array]) -> list[TensorSpec]:
    return [TensorSpec(name, datatype_of(array.dtype), array.shape) for name, array in tensors.items()]


def _timed(call: Callable[[], Any]) -> tuple[Any, float]:
    began = time.perf_counter()
    return call(), time.perf_counter() - began
