"""A device slower than this machine, emulated: for examples and for checking plans.

What the device computes is stretched: each of its stages takes `factor` times the processor time that it took here. The
rest of that time is slept, not burnt, so that the server's processes have this machine's cores as they would have their
own. There is one slow processor, whichever thread computes: while one stage is stretched, the next one waits, as it
would on a device with one core. Run it with one TVM thread (TVM_NUM_THREADS=1), or the processor time of TVM's other
threads is not seen. What sending and receiving cost is not stretched.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from zmq_offload.client.results import Outputs, Timings
from zmq_offload.client.sync import Client
from zmq_offload.errors import InvalidArgument
from zmq_offload.protocol.tensors import TensorSpec, datatype_of

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from zmq_offload.client.options import InferOptions

Array = np.ndarray[Any, Any]


class SlowProcessor:
    """When stages end that take `factor` times as long as they took: one after the other. Pure but for its lock."""

    def __init__(self, factor: float) -> None:
        if not 1 <= factor <= 1e4:
            raise InvalidArgument(f"a device cannot be slowed down by {factor!r}; give a factor from 1 to 10000")
        self.factor = factor
        self._lock = threading.Lock()
        self._free_at = 0.0

    def stage(self, now: float, used: float) -> tuple[float, float]:
        """Begin and end (seconds) of a stage that has just used so much processor time."""
        with self._lock:
            began = max(self._free_at, now - used)
            self._free_at = began + self.factor * used
            return began, self._free_at


@dataclass(frozen=True)
class Seen:
    """One frame's way, in seconds of time.monotonic: its stage on the device and its request; what the broker and the
    worker say of that; and how large the answer was."""

    began: float
    ended: float
    sent: float
    received: float
    timings: Timings
    answered: tuple[TensorSpec, ...]


class SlowedClient:
    """A client for a device model whose stages are to be slow: `zmq_offload.load(bundle, client=SlowedClient(...))`.

    A stage is what a thread computes between two requests: what was left of one frame and the beginning of the next.
    `seen` gets an entry for each request, in the order of the answers.
    """

    def __init__(self, client: Client, factor: float) -> None:
        self.seen: list[Seen] = []
        self._client = client
        self._processor = SlowProcessor(factor)
        self._local = threading.local()
        self._usual = 0.0

    def infer(self, model: str, inputs: Mapping[str, Any], **options: Unpack[InferOptions]) -> Outputs:
        before = getattr(self._local, "used", None)
        # A thread that is seen first has done other things before; it counts as the one before it.
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
