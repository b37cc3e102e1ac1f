"""Runs items on several devices at once and times them. Each device is a thread with a client and a model."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import numpy as np

from zmq_offload.client.results import Outputs
from zmq_offload.client.sync import Client
from zmq_offload.console.progress import Tell
from zmq_offload.protocol.payload import Array
from zmq_offload.protocol.tensors import TensorSpec, datatype_of

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from zmq_offload.client.options import InferOptions


T = TypeVar("T")

TIMEOUT = 120.0
"""Seconds for one offloaded call: long enough for untuned code on a slow machine."""


class StageTimes(NamedTuple):
    """Where the time of one item went, in seconds.

    `device` is the part that runs on the device, `compute` the region that runs on a worker. `wire` is the client and
    both ways between it and the broker. `queue` is the broker, both ways between it and the worker, and the wait in the
    slot of a busy worker. `total` is the sum.
    """

    device: float
    wire: float
    queue: float
    compute: float
    total: float


@dataclass(frozen=True)
class Item:
    """One item that ran: the numbers of its device and its picture, the output, and the times."""

    device: int
    picture: int
    output: Array
    stages: StageTimes


@dataclass
class Results:
    """What all devices did. `sent` and `received` are the tensors of one offloaded call, `seconds` the wall time."""

    items: list[Item]
    sent: list[TensorSpec]
    received: list[TensorSpec]
    seconds: float


class MeteredClient:
    """A client for `zmq_offload.load` that records tensors and times of each call."""

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
    """`devices` devices that run `items` items together. They take the pictures in turn."""

    def __init__(self, bundle: Path, broker: str, pictures: Sequence[Array], devices: int, items: int) -> None:
        self._bundle, self._broker = bundle, broker
        self._pictures = pictures
        self._shares = [len(range(device, items, devices)) for device in range(devices)]
        self._stopping = threading.Event()
        self._clients: list[Client] = []
        self._failures: list[BaseException] = []
        self._start = threading.Barrier(devices, action=lambda: self._times.append(time.perf_counter()))
        self._times: list[float] = []

    def run(self, watch: Callable[[], None], tell: Tell) -> Results:
        """Run all items. Each device first runs one that does not count, to warm up.

        `watch` is called every 0.1 seconds, and an error of it ends the run. `tell` gets the number of items that are
        done, and of all. Raises the first error of a device. All
        clients are closed at the end, however it comes.
        """
        results = Results([], [], [], 0.0)
        threads = [
            threading.Thread(target=self._guarded, args=(device, results), daemon=True)
            for device in range(len(self._shares))
        ]
        try:
            for thread in threads:
                thread.start()
            for thread in threads:
                while thread.is_alive():
                    watch()
                    tell(len(results.items), sum(self._shares))
                    thread.join(0.1)
        finally:
            self._stop()
            for thread in threads:
                if thread.ident is not None:
                    thread.join()
        if self._failures:
            raise self._failures[0]
        results.seconds = max(self._times) - min(self._times)
        return results

    def _stop(self) -> None:
        self._stopping.set()
        self._start.abort()
        for client in list(self._clients):
            client.close()

    def _guarded(self, device: int, results: Results) -> None:
        try:
            self._device(device, results)
        except threading.BrokenBarrierError:
            pass  # another device failed, or the run was interrupted
        except BaseException as error:
            self._failures.append(error)
            self._stopping.set()
            self._start.abort()

    def _device(self, device: int, results: Results) -> None:
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
                results.sent, results.received = metered.sent, metered.received
                self._start.wait()
                kept: Array | None = None
                for _ in range(self._shares[device]):
                    if self._stopping.is_set():
                        return
                    metered.calls.clear()
                    output, total = _timed(lambda: model(picture))
                    assert isinstance(output, np.ndarray)
                    if kept is None or not np.array_equal(output, kept):
                        kept = output  # outputs of one picture are equal and share memory
                    results.items.append(Item(device, number, kept, stages(total, metered.calls)))
                self._times.append(time.perf_counter())


def stages(total: float, calls: Sequence[tuple[float, Outputs]]) -> StageTimes:
    """The times of one item that took `total` seconds, by its offloaded calls with the seconds of each."""
    remote = sum(seconds for seconds, _ in calls)
    timings = [outputs.timings for _, outputs in calls]
    compute = sum(t.compute for t in timings)
    queue = sum(t.broker - t.compute for t in timings)
    return StageTimes(total - remote, remote - compute - queue, queue, compute, total)


def _specs(tensors: Mapping[str, Array]) -> list[TensorSpec]:
    return [TensorSpec(name, datatype_of(array.dtype), array.shape) for name, array in tensors.items()]


def _timed(call: Callable[[], T]) -> tuple[T, float]:
    began = time.perf_counter()
    return call(), time.perf_counter() - began
