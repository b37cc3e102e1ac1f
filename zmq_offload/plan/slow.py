"""Emulates a device that is slower than this machine, for examples and for checks of plans.

Each stage of the device takes `factor` times its processor time on this machine. The thread sleeps for the rest of that
time, so that the cores are free for the processes of the server. All threads share one slow processor: while one stage
lasts, the next one waits, as on a device with one core. Use one TVM thread (TVM_NUM_THREADS=1), because the processor
time of TVM's other threads is not measured. Sending and receiving are not slowed down.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from zmq_offload.client.results import Outputs, Timings
from zmq_offload.client.sync import Client
from zmq_offload.errors import InvalidArgument
from zmq_offload.protocol.payload import Array
from zmq_offload.protocol.tensors import TensorSpec, datatype_of

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from zmq_offload.client.options import InferOptions


class SlowProcessor:
    """Schedules stages one after the other, each `factor` times as long as it took. Pure except for its lock."""

    def __init__(self, factor: float) -> None:
        if not 1 <= factor <= 1e4:
            raise InvalidArgument(f"{factor!r} is not a slowdown; use a factor from 1 to 10000")
        self.factor = factor
        self._lock = threading.Lock()
        self._free_at = 0.0

    def stage(self, now: float, used: float) -> tuple[float, float]:
        """Begin and end, in seconds, of a stage that ended now and used `used` seconds of processor time."""
        with self._lock:
            began = max(self._free_at, now - used)
            self._free_at = began + self.factor * used
            return began, self._free_at


@dataclass(frozen=True)
class Seen:
    """The times of one item by time.monotonic, in seconds: its stage on the device, its request and its reply.

    `timings` are those that broker and worker report, `answered` the tensors of the reply.
    """

    began: float
    ended: float
    sent: float
    received: float
    timings: Timings
    answered: tuple[TensorSpec, ...]


class SlowedClient:
    """A client that slows a device model down: `zmq_offload.load(bundle, client=SlowedClient(...))`.

    A stage is what a thread computes between two requests: the end of one item and the beginning of the next. `seen`
    gets an entry for each request, in the order of the replies.
    """

    def __init__(self, client: Client, factor: float) -> None:
        self.seen: list[Seen] = []
        self._client = client
        self._processor = SlowProcessor(factor)
        self._local = threading.local()
        self._usual = 0.0

    def infer(self, model: str, inputs: Mapping[str, Array], **options: Unpack[InferOptions]) -> Outputs:
        before = getattr(self._local, "used", None)
        # What a new thread did before is unknown; its first stage counts as long as the previous one.
        used = self._usual if before is None else time.thread_time() - before
        self._usual = used
        began, ended = self._processor.stage(time.monotonic(), used)
        time.sleep(max(0.0, ended - time.monotonic()))
        try:
            sent = time.monotonic()
            answer = self._client.infer(model, inputs, **options)
            tensors = tuple(TensorSpec(n, datatype_of(a.dtype), a.shape) for n, a in answer.items())
            self.seen.append(Seen(began, ended, sent, time.monotonic(), answer.timings, tensors))
            return answer
        finally:
            self._local.used = time.thread_time()
