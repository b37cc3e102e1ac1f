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
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from zmq_offload.client import Client
from zmq_offload.errors import InvalidArgument
from zmq_offload.results import Outputs

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


class SlowedClient:
    """A client for a device model whose stages are to be slow: `zmq_offload.load(bundle, client=SlowedClient(...))`.

    A stage is what a thread computes between two requests: what was left of one frame and the beginning of the next.
    `on_stage` and `on_answer` are told, for drawing: the stage's begin and end, and the answer, its begin and end.
    """

    def __init__(
        self,
        client: Client,
        factor: float,
        *,
        on_stage: Callable[[float, float], None] | None = None,
        on_answer: Callable[[Outputs, float, float], None] | None = None,
    ) -> None:
        self._client = client
        self._processor = SlowProcessor(factor)
        self._local = threading.local()
        self._usual = 0.0
        self._on_stage, self._on_answer = on_stage, on_answer

    def infer(
        self,
        model: str,
        inputs: Mapping[str, Any],
        *,
        version: int | None = None,
        timeout: float | None = None,
        outputs: Mapping[str, Array] | None = None,
    ) -> Outputs:
        before = getattr(self._local, "used", None)
        # A thread that is seen first has done other things before; it counts as the one before it.
        used = self._usual if before is None else time.thread_time() - before
        self._usual = used
        began, end = self._processor.stage(time.monotonic(), used)
        if self._on_stage is not None:
            self._on_stage(began, end)
        time.sleep(max(0.0, end - time.monotonic()))
        try:
            started = time.monotonic()
            answer = self._client.infer(model, inputs, version=version, timeout=timeout, outputs=outputs)
            if self._on_answer is not None:
                self._on_answer(answer, started, time.monotonic())
            return answer
        finally:
            self._local.used = time.thread_time()
