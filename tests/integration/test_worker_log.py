"""A worker's log about its brokers and its repository, and the end of a worker."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from tests.support.processes import running_broker, running_workers, wait_for_workers

QUICK = ("--heartbeat", "0.05", "--patience", "0.2")


def test_the_log_says_connected_when_the_broker_answers_and_silent_once(tmp_path: Path) -> None:
    backend = f"ipc://{tmp_path}/backend"
    with running_workers(backend, "--executor", "echo", *QUICK) as workers:
        workers.wait_for(f"connecting to {backend}")
        workers.wait_for("is silent; connecting again until it answers")
        assert not [line for line in workers.seen() if "connected to" in line]
        for times in range(2):
            with running_broker("--heartbeat", "0.05", backend=backend) as broker:
                workers.wait_for(f"connected to broker {backend}", skip=times)
                wait_for_workers(broker.frontend, 1)
            workers.wait_for("is silent; connecting again", skip=times + 1)
        said = [line for line in workers.seen() if "is silent" in line or "connected to" in line]
        assert ["silent" in line for line in said] == [True, False, True, False, True]


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGTERM, signal.SIGINT])
def test_a_signal_drains_the_workers(number: signal.Signals) -> None:
    with running_broker() as broker, running_workers(broker.backend, "--executor", "echo") as workers:
        wait_for_workers(broker.frontend, 1)
        assert workers.end(number) == 0
        assert [line for line in workers.seen() if "draining" in line or ": stopped" in line]
        broker.broker.wait_for("says goodbye, with 0 requests")


def test_a_missing_repository_is_named_once(tmp_path: Path) -> None:
    place = tmp_path / "nowhere"
    with running_broker() as broker:
        options = ["--repository", str(place), "--refresh", "0.1"]
        with running_workers(broker.backend, *options) as workers:
            workers.wait_for(f"--repository {place}: no such folder; waiting for it")
            wait_for_workers(broker.frontend, 1)
            place.mkdir()
            workers.wait_for(f"nothing is served: no model in {place} loads")
            place.rmdir()
            workers.wait_for("no such folder", skip=1)
            assert sum("ERROR" in line for line in workers.seen()) == 3
