"""Where a region runs: modes, errors, statistics. Client and fallback are the test's own."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from concurrent.futures import Future
from typing import Any

import numpy as np
import pytest

from zmq_offload.artifacts.manifest import OffloadedRegion
from zmq_offload.device.offload import Offload, Statistics
from zmq_offload.device.runs import CancelScope
from zmq_offload.device.turns import Turns
from zmq_offload.errors import (
    Aborted,
    Cancelled,
    DeadlineExceeded,
    FailedPrecondition,
    InvalidArgument,
    OffloadError,
    ProtocolError,
    Unavailable,
)
from zmq_offload.protocol.tensors import TensorSpec

X, Y = TensorSpec("x", "FP32", (2,)), TensorSpec("y", "FP32", (2,))
REGION = OffloadedRegion("symbol", "net", "latest", (X,), (Y,))
ONES = {"x": np.ones(2, np.float32)}


class Worker:
    """A client whose worker answers 2s, after `seconds`, or fails."""

    def __init__(self) -> None:
        self.error: BaseException | None = None
        self.answer: Any = np.full(2, 2, np.float32)
        self.seconds = 0.0
        self.timeouts: list[float | None] = []

    def infer(self, _model: str, _inputs: Any, *, timeout: float | None = None, **_: Any) -> Mapping[str, Any]:
        self.timeouts.append(timeout)
        time.sleep(min(self.seconds, timeout or 9.9))
        if timeout is not None and self.seconds > timeout:
            raise DeadlineExceeded("too late")
        if self.error is not None:
            raise self.error
        return {"y": self.answer}


class Here:
    """A fallback that returns 3s."""

    error: BaseException | None = None

    def run(self, arrays: Any) -> list[Any]:
        assert [a.shape for a in arrays] == [(2,)]
        if self.error is not None:
            raise self.error
        return [np.full(2, 3, np.float32)]


def offload(mode: Any = "always", client: Any = None, fallbacks: Any = None) -> Offload:
    return Offload(client or Worker(), [REGION], {"net": Here()} if fallbacks is None else fallbacks, Turns(1), mode)


def value(subject: Offload, **options: Any) -> float:
    return float(subject.infer("net", ONES, **options)["y"][0])


def test_each_way_and_what_is_counted() -> None:
    subject = offload("always")
    assert value(subject) == 2
    subject.set_mode("never")
    assert value(subject) == 3
    assert subject.statistics() == Statistics(1, 1, 0, 0, {"net": "local"})
    subject.set_mode("auto")
    assert {value(subject) for _ in range(10)} == {2.0, 3.0}
    counts = subject.statistics()
    assert counts.offloaded + counts.local == 12 and counts.fell_back == counts.failed == 0


@pytest.mark.parametrize("mode", ["sometimes", "", None, True, ["auto"]])
def test_an_unknown_mode_is_refused(mode: Any) -> None:
    with pytest.raises(InvalidArgument, match=r"offload .* is not one of 'always', 'never', 'auto'"):
        offload(mode)


@pytest.mark.parametrize("mode", ["never", "auto"])
def test_without_a_fallback_only_always_works_and_the_error_says_how_to_get_one(mode: Any) -> None:
    subject = offload("always", fallbacks={})
    with pytest.raises(FailedPrecondition, match="'net' in the device bundle; compile it with --with-fallback"):
        subject.set_mode(mode)
    assert subject.mode == "always" and value(subject) == 2


@pytest.mark.parametrize("error", [Unavailable("gone"), DeadlineExceeded("late"), Aborted("lost"), ProtocolError("?")])
def test_always_raises_errors_and_auto_computes_the_call_here(error: OffloadError) -> None:
    worker = Worker()
    worker.error = error
    subject = offload("always", worker)
    with pytest.raises(type(error)) as caught:
        value(subject)
    assert caught.value is error
    assert subject.statistics().failed == 1
    subject.set_mode("auto")
    assert [value(subject) for _ in range(20)] == [3.0] * 20
    counts = subject.statistics()
    assert counts.failed == 1 and 1 <= counts.fell_back <= 4 and counts.local + counts.fell_back == 20
    assert counts.ways == {"net": "local"}


def test_auto_does_not_wait_for_a_worker_as_long_as_the_caller_would() -> None:
    worker = Worker()
    worker.seconds = 30.0
    subject = offload("auto", worker)
    began = time.monotonic()
    assert [value(subject, timeout=20.0) for _ in range(5)] == [3.0] * 5
    assert time.monotonic() - began < 10
    assert worker.timeouts and all(t is not None and t <= 1.0 for t in worker.timeouts)
    worker.timeouts.clear()
    assert value(offload("auto", worker), timeout=0.01) == 3.0  # the caller's is kept where it is less
    assert all(t is not None and t <= 0.01 for t in worker.timeouts)


def test_a_canceled_call_is_not_computed_here() -> None:
    worker = Worker()
    subject = offload("auto", worker)
    value(subject)
    worker.error = Cancelled("the client is closed")
    with pytest.raises(Cancelled):
        [value(subject) for _ in range(5)]


def test_a_failure_on_this_device_does_not_count_as_a_lost_worker() -> None:
    here = Here()
    here.error = RuntimeError("broken")
    subject = offload("auto", fallbacks={"net": here})
    with pytest.raises(RuntimeError, match="broken"):
        [value(subject) for _ in range(5)]
    assert subject.statistics().ways == {"net": "remote"}


@pytest.mark.parametrize(
    ("answer", "got"), [(np.ones(3, "f4"), r"float32\[3\]"), (np.ones(2, "f8"), r"float64\[2\]"), (None, "nothing")]
)
def test_a_served_version_that_answers_something_else_is_named(answer: Any, got: str) -> None:
    worker = Worker()
    worker.answer = answer
    with pytest.raises(
        FailedPrecondition, match=rf"does not fit this device bundle: model 'net' replies output 'y' with {got}"
    ):
        value(offload("always", worker))
    assert value(offload("auto", worker)) == 3.0


def test_a_served_version_that_takes_something_else_is_named() -> None:
    worker = Worker()
    worker.error = InvalidArgument("model 'net' version 2: input 'x' has shape [2], it takes x FP32[4]")
    with pytest.raises(FailedPrecondition, match=r"does not fit this device bundle: model 'net' version 2: input 'x'"):
        value(offload("always", worker))


def test_a_thread_that_waits_for_a_worker_lets_others_compute() -> None:
    turns, inside = Turns(1), threading.Event()

    class Waits(Worker):
        def infer(self, *args: Any, **options: Any) -> Mapping[str, Any]:
            assert inside.wait(10), "nobody else could compute"
            return super().infer(*args, **options)

    subject = Offload(Waits(), [REGION], {}, turns)

    def compute() -> None:
        turns.take(lambda: 1)
        inside.set()
        turns.end()

    other = threading.Thread(target=compute)
    turns.take(lambda: 0)
    other.start()
    assert value(subject) == 2
    turns.end()
    other.join()


class Submits(Worker):
    """Answers requests when it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.requests: list[Future[Any]] = []

    def submit(self, _model: str, _inputs: Any, *, timeout: float | None = None, **_: Any) -> Future[Any]:
        self.requests.append(Future())
        return self.requests[-1]


def test_requests_of_several_regions_are_in_flight_at_once() -> None:
    client = Submits()
    other = OffloadedRegion("other", "other", "latest", (X,), (Y,))
    subject = Offload(client, [REGION, other], {}, Turns(1))
    calls = [subject.submit("net", ONES), subject.submit("other", ONES)]
    assert len(client.requests) == 2
    for number, request in enumerate(client.requests):
        request.set_result({"y": np.full(2, number, np.float32)})
    assert [float(call.result()["y"][0]) for call in calls] == [0, 1]
    call = subject.submit("net", ONES)
    assert call.cancel() and client.requests[-1].cancelled()
    with pytest.raises(Cancelled):
        call.result()


def test_canceling_a_run_cancels_its_requests() -> None:
    client = Submits()
    subject = Offload(client, [REGION], {}, Turns(1))
    scope = CancelScope()

    def soon() -> None:
        while not client.requests:
            time.sleep(0.001)
        scope.cancel()

    thread = threading.Thread(target=soon)
    thread.start()
    with scope.entered(), pytest.raises(Cancelled, match="the run was canceled"):
        value(subject)
    thread.join()
    with scope.entered(), pytest.raises(Cancelled):  # and those that it would make
        value(subject)
