"""Runs a compiled model and measures the time of each function.

The VM calls an instrument before and after each function. That takes some microseconds per call, nearly all of them
outside of the measured time. The model also runs without an instrument, in turns, so that both totals can be compared.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

import numpy as np

from zmq_offload.console.progress import Say, counter, say_nothing
from zmq_offload.errors import Internal
from zmq_offload.profile.result import VM, Function, Measured
from zmq_offload.profile.subject import Subject
from zmq_offload.protocol.payload import Array
from zmq_offload.runtime.tvm_library import tensor, tvm_ffi

BUILTIN = ("vm.builtin.", "check_arguments")

_BLOCKS = 4
"""TVM and ONNX Runtime take turns in this many blocks of calls, because ORT's threads spin between its calls."""


@dataclass
class Recorder:
    """The instrument: the time in each function, without the functions that it calls."""

    seconds: dict[str, int] = field(default_factory=dict)
    calls: dict[str, int] = field(default_factory=dict)
    outputs: dict[str, str] = field(default_factory=dict)
    _running: list[list[int]] = field(default_factory=list)

    def __call__(self, _function: object, name: str, before: bool, _result: object, *arguments: object) -> int:
        now = time.perf_counter_ns()
        if before:
            if name not in self.outputs:
                self.outputs[name] = _shape_of(arguments)
            self._running.append([0, 0])
            self._running[-1][0] = time.perf_counter_ns()
            return 0
        start, inner = self._running.pop()
        spent = now - start
        if self._running:
            self._running[-1][1] += spent
        self.seconds[name] = self.seconds.get(name, 0) + spent - inner
        self.calls[name] = self.calls.get(name, 0) + 1
        return 0

    def restart(self) -> None:
        self.seconds, self.calls, self._running = {}, {}, []


def measure(
    subject: Subject,
    arrays: Sequence[Array],
    repeat: int,
    reference: Callable[[], Callable[[], object]] | None = None,
    say: Say = say_nothing,
) -> Measured:
    """Profile `repeat` runs of the model on `arrays`. `reference` prepares another runtime and returns its call.

    Raises the error of an offloaded call, and Internal if the model fails.
    """
    inputs = [tensor(array) for array in arrays]
    plain, profiled = subject.machine(), subject.machine()
    recorder = Recorder()
    profiled["set_instrument"](tvm_ffi.convert(recorder))
    calls = [_caller(subject, machine[subject.entry], inputs) for machine in (plain, profiled)]
    for call in (*calls, *calls):
        call()
    times: list[list[float]] = [[], []]
    others: list[float] = []
    runs: list[_Run] = []
    tell = counter(say, "runs")
    sizes = [repeat // _BLOCKS + (at < repeat % _BLOCKS) for at in range(_BLOCKS)]
    for size in filter(None, sizes):
        for _ in range(size):
            recorder.restart()
            for own, call in zip(times, calls, strict=True):
                own.append(_timed(call))
            runs.append((recorder.seconds, recorder.calls))
            tell(len(runs), repeat)
        if reference is not None:
            other = reference()
            other()
            others += [_timed(other) for _ in range(size)]
            del other
    functions = _functions(subject, arrays, runs, recorder.outputs)
    median = statistics.median
    return Measured(functions, median(times[0]), median(times[1]), median(others) if others else None)


_Run: TypeAlias = tuple[dict[str, int], dict[str, int]]
"""Nanoseconds and calls by function."""


def _functions(
    subject: Subject, arrays: Sequence[Array], runs: Sequence[_Run], outputs: Mapping[str, str]
) -> tuple[Function, ...]:
    calls = runs[0][1]
    # The median of each function: on a busy machine every run has an interrupted function. The sum is smaller.
    seconds = {name: statistics.median(run[0].get(name, 0) for run in runs) / 1e9 for name in calls}
    found = []
    for name in calls:
        if not name.startswith(BUILTIN):
            flops = subject.flops_of(name, arrays)
            work = flops * calls[name] if flops is not None else None
            model = subject.offloaded.get(name)
            found.append(Function(name, calls[name], seconds[name], work, outputs[name], model))
    built_in = [name for name in calls if name.startswith(BUILTIN)]
    found.append(Function(VM, sum(map(calls.__getitem__, built_in)), sum(map(seconds.__getitem__, built_in))))
    return tuple(sorted(found, key=lambda function: -function.seconds))


def _caller(subject: Subject, main: Callable[..., object], inputs: Sequence[tvm_ffi.Tensor]) -> Callable[[], object]:
    def call() -> object:
        subject.failure.error = None
        try:
            return main(*inputs)
        except Exception as error:
            cause: BaseException | None = subject.failure.error
            if cause is not None:
                raise cause from None
            raise Internal(f"{subject.title} failed: {' '.join(str(error).split())[:500]}") from error
        finally:
            subject.failure.cancel()

    return call


def _timed(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def _shape_of(arguments: Sequence[object]) -> str:
    """The shape of the last tensor: functions write to their last argument."""
    for argument in reversed(arguments):
        if isinstance(argument, tvm_ffi.Tensor):
            return "x".join(map(str, argument.shape)) or "1"
    return ""


def onnxruntime_caller(path: Path, arrays: dict[str, Array], threads: int) -> Callable[[], Callable[[], object]]:
    """The `reference` for `measure`: a new session for each block. Raises ImportError without ONNX Runtime."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3  # errors only: a user can do nothing about warnings on the graph

    def ready() -> Callable[[], object]:
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        feed = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
        return lambda: session.run(None, feed)

    return ready
