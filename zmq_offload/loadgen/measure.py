"""Measures level after level: starts processes that send, and waits until windows agree."""

from __future__ import annotations

import dataclasses
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection, Pipe, wait

import numpy as np

from zmq_offload.common.units import counted
from zmq_offload.console.programs import module
from zmq_offload.console.progress import Progress, Say
from zmq_offload.errors import Internal
from zmq_offload.loadgen.levels import Level
from zmq_offload.loadgen.sender import SendPlan
from zmq_offload.loadgen.stats import Samples, Summary, stable, summarize
from zmq_offload.protocol.payload import Array

_START_WITHIN = 60.0
_STOP_WITHIN = 30.0
"""Seconds that a process may take to start, and to stop after the timeout of a request."""


_ENDED = "a process of the load generator ended; its error is above"


class Interrupted(Exception):
    """Ctrl-C interrupted the measurement. `summaries` are those of the levels until then."""

    def __init__(self, summaries: Sequence[Summary]) -> None:
        super().__init__()
        self.summaries = list(summaries)


class Senders:
    """The sending processes."""

    def __init__(self, plan: SendPlan) -> None:
        self._plan = plan
        self._timeout = plan.timeout + _STOP_WITHIN
        self._pipes: list[Connection] = []
        self._processes: list[subprocess.Popen[bytes]] = []

    def start(self, processes: int) -> None:
        """Start the processes and wait until all are ready, so that no level includes it.

        multiprocessing would run the program's main module again, and would import modules from the current folder:
        a file signal.py there would replace the standard library's.
        """
        for _ in range(processes):
            ours, theirs = Pipe()
            with theirs:
                self._pipes.append(ours)
                # In its own session, it does not get Ctrl-C from the terminal; this process ends it.
                process = subprocess.Popen(
                    [*module("zmq_offload.loadgen"), str(theirs.fileno())],
                    pass_fds=[theirs.fileno()],
                    stdin=subprocess.DEVNULL,
                    start_new_session=True,
                )
                self._processes.append(process)
        for number, pipe in enumerate(self._pipes):
            self._send(pipe, dataclasses.replace(self._plan, seed=self._plan.seed + number))
        self._await(Samples(Level(), 0.0), _START_WITHIN, "start")

    def run(self, level: Level, window: float, duration: float, say: Say) -> Summary:
        """Send until the windows agree, or for `duration` seconds, and `say` how it goes."""
        samples = Samples(level, time.monotonic())
        for pipe, share in zip(self._pipes, level.share(len(self._pipes)), strict=True):
            self._send(pipe, share)
        seen = 0
        windows: list[Array] = []
        try:
            while not (stable(windows) or (windows and time.monotonic() - samples.began >= duration)):
                self._receive(samples, 0.05)
                now = time.monotonic()
                if now < samples.began + (seen + 1) * window:
                    continue
                seen += 1
                windows = samples.windows(window, now)
                say(described(samples, windows[-1], window), (now - samples.began) / duration)
        except KeyboardInterrupt:
            raise Interrupted([summarize(samples, windows, window)] if windows else []) from None
        elapsed = time.monotonic() - samples.began
        self._stop(samples)
        return summarize(samples, windows, window, elapsed)

    def _receive(self, samples: Samples, timeout: float) -> int:
        """Read reports. Returns how many processes said that they are ready."""
        ready = 0
        for pipe in wait(self._pipes, timeout):
            assert isinstance(pipe, Connection)
            try:
                message = pipe.recv()
            except (EOFError, ConnectionResetError):
                raise Internal(_ENDED) from None
            if message is None:
                ready += 1
            else:
                records, errors, sent, late = message
                samples.add(records, errors, sent, late, pipe.fileno())
        return ready

    def _stop(self, samples: Samples) -> None:
        for pipe in self._pipes:
            self._send(pipe, None)
        self._await(samples, self._timeout, "stop")

    def _send(self, pipe: Connection, what: SendPlan | Level | None) -> None:
        try:
            pipe.send(what)
        except (BrokenPipeError, ConnectionResetError):
            raise Internal(_ENDED) from None

    def _await(self, samples: Samples, timeout: float, what: str) -> None:
        """Wait until every process has said that it is ready."""
        left, end = len(self._pipes), time.monotonic() + timeout
        while left:
            if time.monotonic() > end:
                raise Internal(f"a process of the load generator did not {what} within {timeout:g} s")
            left -= self._receive(samples, 0.5)

    def close(self) -> None:
        for pipe in self._pipes:
            pipe.close()  # a process that waits for a level reads end of file
        for process in self._processes:
            with suppress(subprocess.TimeoutExpired):
                process.wait(5)
            process.kill()  # does nothing to a process that ended
            process.wait()


@contextmanager
def started(plan: SendPlan, processes: int) -> Iterator[Senders]:
    senders = Senders(plan)
    try:
        senders.start(processes)
        yield senders
    finally:
        senders.close()


def described(samples: Samples, window: Array, length: float) -> str:
    """Throughput and latency of the last window, which is `length` seconds long."""
    p50, p99 = np.percentile(window[:, 1], [50, 99]) * 1e3 if len(window) else (float("nan"),) * 2
    errors = samples.errors.total()
    text = f"{len(window) / length:,.0f}/s, p50 {p50:.2f} ms, p99 {p99:.2f} ms"
    return f"{text}, {counted(errors, 'error')}" if errors else text


def measure(
    plan: SendPlan,
    levels: Sequence[Level],
    *,
    processes: int,
    window: float,
    duration: float,
    progress: Progress,
    finished: Callable[[Summary], None] = lambda _: None,
) -> list[Summary]:
    """Measure all levels. `finished` gets each summary at once.

    Raises Interrupted, with the summaries so far, at Ctrl-C.
    """
    summaries: list[Summary] = []
    try:
        with started(plan, processes) as senders:
            for level in levels:
                with progress.watch(str(level)) as say:
                    summary = senders.run(level, window, duration, say)
                summaries.append(summary)
                finished(summary)
    except (KeyboardInterrupt, Interrupted) as stopped:
        last = stopped.summaries if isinstance(stopped, Interrupted) else []
        for summary in last:
            finished(summary)
        raise Interrupted([*summaries, *last]) from None
    return summaries
