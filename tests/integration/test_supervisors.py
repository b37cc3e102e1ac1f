"""Supervisors of brokers and workers: processes that the system does not start, and signals at any moment."""

from __future__ import annotations

import os
import re
import resource
import signal

import pytest

from tests.support.processes import Process, is_running, running

NOWHERE = "tcp://127.0.0.1:9"
FREE = ("--frontend", "tcp://127.0.0.1:0", "--backend", "tcp://127.0.0.1:0")

FAILS = """
import itertools, subprocess, sys
import broker.__main__, workers.__main__, workers.supervisor

def failing(real, error):
    count = itertools.count()
    def do(*args, **options):
        if next(count) < 2:
            raise error
        return real(*args, **options)
    return do

if __name__ == "__main__":
    program, *rest = sys.argv[1:]
    subprocess.Popen = failing(subprocess.Popen, BlockingIOError(11, "Resource temporarily unavailable"))
    words = workers.supervisor.LastWords
    workers.supervisor.LastWords = failing(words, RuntimeError("can't start new thread"))
    sys.exit({"broker": broker, "workers": workers}[program].__main__.main(rest))
"""
"""A program whose supervisor gets no processes from the system at first, and then no threads."""


def pids(process: Process) -> list[int]:
    return [int(pid) for pid in re.findall(r"is process (\d+)", "\n".join(process.seen()))]


def test_a_system_without_means_for_processes_or_threads_is_asked_again() -> None:
    with running("-c", FAILS, "broker", "--processes", "2", *FREE) as brokers:
        ready = brokers.wait_for(r"^ready frontend=\S+ backend=(\S+)")
        lines = [line for line in brokers.lines if "cannot start broker" in line]
        assert len(lines) == 2 and all("temporarily unavailable; trying again in" in line for line in lines), lines
        with running("-c", FAILS, "workers", "--broker", ready[1], "--executor", "echo") as workers:
            workers.wait_for("connected to broker")
            lines = [line for line in workers.lines if "cannot start worker 0" in line]
            assert [re.search(r"again in (\S+) s", line)[1] for line in lines] == ["0.0", "0.1", "0.2", "0.4"]  # type: ignore[index]
            assert "can't start new thread" in lines[-1]
            assert workers.end() == 0
        assert brokers.end() == 0


def test_no_descriptors_for_another_process_end_no_supervisor() -> None:
    """A real EMFILE: the limit is lowered while the supervisor runs, and raised again."""
    with running("-m", "workers", "--broker", NOWHERE, "--executor", "echo") as workers:
        first = int(workers.wait_for(r"is process (\d+)")[1])
        supervisor = workers.popen.pid
        soft, hard = resource.prlimit(supervisor, resource.RLIMIT_NOFILE)
        resource.prlimit(supervisor, resource.RLIMIT_NOFILE, (4, hard))
        os.kill(first, signal.SIGKILL)
        workers.wait_for(r"cannot start worker 0: .*Too many open files; trying again in", skip=1)
        resource.prlimit(supervisor, resource.RLIMIT_NOFILE, (soft, hard))
        workers.wait_for("connecting to")
        assert workers.end() == 0


@pytest.mark.parametrize(("number", "ready"), [(signal.SIGINT, False), (signal.SIGTERM, False), (signal.SIGHUP, True)])
def test_a_signal_ends_a_supervisor_with_all_processes(number: int, ready: bool) -> None:
    """While the processes are being started, or when they serve."""
    with (
        running("-m", "broker", "--processes", "2", *FREE) as brokers,
        running("-m", "workers", "--executor", "echo", "--processes", "2", "--broker", NOWHERE) as workers,
    ):
        brokers.wait_for(r"^ready" if ready else "broker 0 is process")
        workers.wait_for("connecting to" if ready else "worker 0 is process", skip=int(ready))
        for process in (brokers, workers):
            assert process.end(number) == 0
            assert not any(map(is_running, pids(process)))
