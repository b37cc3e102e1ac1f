"""Several broker processes under one supervisor: clients spread, workers serve all, and one that dies comes back."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import signal
import threading
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

from tests.support.processes import Process, eventually, faulty_workers, is_running, running, running_workers, status
from zmq_offload import AsyncClient, Client
from zmq_offload.cli.main import main
from zmq_offload.client.session import RetryPolicy
from zmq_offload.gateway.pageserver import _asking

X = {"x": np.arange(6, dtype=np.float32)}


class Brokers:
    """The processes of a supervisor."""

    def __init__(self, supervisor: Process) -> None:
        self.supervisor = supervisor
        ready = supervisor.wait_for(r"^ready frontend=(\S+) backend=(\S+)(?: metrics=(\S+))?$")
        self.frontends, self.backends, metrics = (part.split(",") for part in (ready[1], ready[2], ready[3] or ""))
        self.metrics = metrics

    def pid(self, number: int, start: int = 0) -> int:
        """The process id of broker `number` after so many restarts."""
        return int(self.supervisor.wait_for(rf"broker {number} is process (\d+)", skip=start)[1])


@contextmanager
def two_brokers(*options: str) -> Iterator[Brokers]:
    listen = ["--frontend", "tcp://127.0.0.1:0", "--backend", "tcp://127.0.0.1:0"]
    with running("-m", "broker", "--processes", "2", *listen, *options) as supervisor:
        yield Brokers(supervisor)


class Load:
    """Threads that call the model again and again, each with a client of its own, until the end."""

    def __init__(self, frontends: list[str], threads: int) -> None:
        self.served = [0] * threads
        self.errors: list[BaseException] = []
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._call, args=(frontends, at)) for at in range(threads)]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _call(self, frontends: list[str], at: int) -> None:
        try:
            with Client(frontends, policy=RetryPolicy(heartbeat=0.1, patience=0.5)) as client:
                while not self._stop.is_set():
                    np.testing.assert_array_equal(client.infer("echo", X)["x"], X["x"])
                    self.served[at] += 1
        except BaseException as error:
            self.errors.append(error)

    def goes_on(self) -> None:
        """Wait until each thread had ten more answers."""
        goal = [count + 10 for count in self.served]
        eventually(lambda: self.errors or all(map(int.__ge__, self.served, goal)))
        assert not self.errors


def test_clients_spread_and_a_broker_that_is_killed_loses_nothing_and_comes_back(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with two_brokers("--metrics", "127.0.0.1:0") as brokers:
        with running_workers(",".join(brokers.backends), "--executor", "echo", "--processes", "2"):
            for front in brokers.frontends:
                eventually(lambda front=front: len(status(front)["workers"]) == 2)  # type: ignore[misc]
            with Load(brokers.frontends, 8) as load:
                load.goes_on()
                os.kill(brokers.pid(1), signal.SIGKILL)
                load.goes_on()
                assert is_running(brokers.pid(1, start=1))
                eventually(lambda: len(status(brokers.frontends[1])["workers"]) == 2)
                with Client(brokers.frontends[1]) as client:
                    client.infer("echo", X)
            numbers = [status(front) for front in brokers.frontends]
            assert [(each["process"], each["restarts"]) for each in numbers] == [(0, 0), (1, 1)]
            assert all(each["requests"]["served"] for each in numbers)
            shown_together(brokers.frontends, sum(each["requests"]["served"] for each in numbers), capsys)
            for number, address in enumerate(brokers.metrics):
                text = urllib.request.urlopen(f"http://{address}/metrics", timeout=20).read().decode()
                assert f'zmq_offload_broker_info{{process="{number}"}} 1' in text
        assert brokers.supervisor.end() == 0


def shown_together(frontends: list[str], served: int, capsys: pytest.CaptureFixture[str]) -> None:
    """Commands show the sums of all brokers, also while one does not answer."""
    listed = ",".join(frontends)
    assert main(["status", "--json", "--broker", listed]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["requests"]["served"] == served
    assert len(found["workers"]) == 2
    assert main(["status", "--broker", f"{listed},tcp://127.0.0.1:9", "--timeout", "0.3"]) == 0
    out = capsys.readouterr().out
    assert f"{served:,} served" in out
    assert re.search(r"tcp://127\.0\.0\.1:9 +no +0", out), out

    async def asked() -> Mapping[str, Any]:
        async with AsyncClient(frontends[0]) as one, AsyncClient(frontends[1]) as two:
            return await _asking(frontends, [one, two])()

    assert asyncio.run(asked())["requests"]["served"] == served


def test_sigterm_lets_all_processes_finish_their_requests() -> None:
    with two_brokers() as brokers, faulty_workers(",".join(brokers.backends)):
        with contextlib.ExitStack() as stack:
            clients = [stack.enter_context(Client(front)) for front in brokers.frontends]
            for client in clients:
                eventually(client.models)
            futures = [client.submit("echo", {"sleep": np.float32(0.3)}) for client in clients]
            for front in brokers.frontends:
                eventually(lambda front=front: status(front)["requests"]["outstanding"])  # type: ignore[misc]
            assert brokers.supervisor.end() == 0
            for future in futures:
                assert future.result(timeout=10)["sleep"] == np.float32(0.3)
        assert not any(is_running(brokers.pid(number)) for number in range(2))


def test_a_place_that_is_taken_ends_all_and_none_outlives_a_supervisor_that_is_killed() -> None:
    with two_brokers() as brokers:
        listen = ["--frontend", f"tcp://127.0.0.1:0,{brokers.frontends[0]}", "--backend", "tcp://127.0.0.1:0"]
        with running("-m", "broker", *listen) as second:
            assert second.wait() == 1
            assert any("cannot bind" in line for line in second.lines), second.lines
            assert not any(line.startswith("ready") for line in second.lines)
        pids = [brokers.pid(number) for number in range(2)]
        os.kill(brokers.supervisor.popen.pid, signal.SIGKILL)
        eventually(lambda: not any(map(is_running, pids)))
