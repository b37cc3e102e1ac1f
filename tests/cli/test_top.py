"""`zmq-offload top`: at a terminal of its own, with real processes, and what it draws for terminals of any size."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

from tests.support.processes import ROOT, faulty_workers, running_broker, wait_for_workers, worker_pids
from tests.support.terminals import AtTerminal
from zmq_offload import Client
from zmq_offload.cli.topscreen import screen, snapshot
from zmq_offload.dashboard.history import History, View
from zmq_offload.testing import Fabric

TIMES = {"bounds": [0.001, 0.01], "counts": [0, 0, 0], "sum": 0.0}


def status(second: int, **more: Any) -> dict[str, Any]:
    """A broker with 30 models, 30 workers, and 100 requests in each second, of which 10 fail."""
    times = TIMES | {"counts": [90 * second, 0, 0]}
    numbers = {"requests": {"ok": 90 * second, "INTERNAL": 10 * second}, "queue": times, "compute": times,
               "total": times, "batch": TIMES, "queued": 2, "outstanding": 5}  # fmt: skip
    worker = {"address": "10.0.0.7", "models": ["m:1"], "slots": 2, "outstanding": 1, "state": "ready", "served": 7,
              "failed": 1, "silent": 0.25, "device": "cpu", "memory_bytes": 200 * 1024**2, "restarts": 0,
              "busy": 0.5 * second, "running": ["m:1"]}  # fmt: skip
    slow = {"model": "m", "version": 1, "worker": "w0", "ago": 3.0, "queue": 0.5, "compute": 0.25, "total": 1.0,
            "attempts": 2, "status": "INTERNAL", "key": ""}  # fmt: skip
    return {
        "uptime": float(second), "stopping": False, "dropped": {"late": 1}, "lost_workers": 2,
        "requests": {"served": 90 * second, "failed": {"INTERNAL": 10 * second}, "refused": {}, "retried": 3,
                     "queued": 2, "outstanding": 5},
        "models": [{"name": f"m{n}", "version": 1, "workers": n, "latest": True, "statistics": numbers}
                   for n in range(30)],
        "workers": [worker | {"name": f"w{n}"} for n in range(30)], "slow": [slow] * 20, **more,
    }  # fmt: skip


@pytest.fixture
def view() -> View:
    history = History()
    for second in range(1, 4):
        history.add(status(second), float(second))
    history.add(status(4, workers=status(4)["workers"][1:]), 4.0)
    return history.view(4.0)


@pytest.mark.parametrize(("width", "height"), [(80, 24), (200, 60), (40, 10), (20, 3), (1, 1)])
def test_lines_fit_any_terminal(view: View, width: int, height: int) -> None:
    lines = screen(view, "tcp://h:1", " q quit", width, height).plain.split("\n")
    assert len(lines) <= max(height, 1) and max(map(len, lines)) <= width


def test_what_80_columns_and_24_rows_show(view: View) -> None:
    shown = screen(view, "tcp://h:1", " q quit", 80, 24).plain
    for said in ("90.0/s  10.0 errors/s  p50 500 us", "2 workers lost, 3 repeated", "2 queued  3 running",
                 "models (+", "m0:1", "workers (+", "w0", "lost 1 s ago", "50%", "INTERNAL  failed", "slow requests (+",
                 "500 ms   250 ms", " q quit"):  # fmt: skip
        assert said in shown, f"{said!r} is missing in\n{shown}"


def test_a_lost_worker_is_red_and_times_of_a_slow_request_are_a_bar(view: View) -> None:
    drawn = screen(view, "tcp://h:1", "", 200, 80)
    styles = {(drawn.plain[span.start : span.end].strip(), str(span.style)) for span in drawn.spans}
    assert ("w0", "bold red") in styles and ("lost 1 s ago", "bold red") in styles and ("ready", "green") in styles
    assert {("█" * 12, "yellow"), ("█" * 5, "green"), ("█" * 6, "magenta")} <= styles


def test_a_broker_that_is_gone_is_named() -> None:
    history = History()
    history.add(status(1), 1.0)
    history.missed("no broker answered\x1b[31m")
    assert "no broker answers: no broker answered\\x1b[31m" in snapshot(history.view(2.0), "tcp://h:1")


def test_without_a_terminal_there_is_one_plain_snapshot(echo_fabric: Fabric) -> None:
    command = [sys.executable, "-m", "zmq_offload", "top", "--broker", echo_fabric.frontend, "--interval", "0.1"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0 and "\x1b" not in done.stdout, done.stderr
    assert "echo:1" in done.stdout and "errors/s" in done.stdout and "ready" in done.stdout


@pytest.mark.observers
def test_top_shows_load_a_killed_worker_and_its_return_and_leaves_the_terminal_as_it_was() -> None:
    with (
        running_broker() as broker,
        faulty_workers(broker.backend, "--processes", "2"),
        Client(broker.frontend) as client,
        AtTerminal("top", "--broker", broker.frontend, "--interval", "0.1", "--timeout", "0.5") as top,
    ):
        wait_for_workers(broker.frontend, 2)
        shown = top.wait_for("q quit")
        assert "\x1b[?1049h" in shown and not top.echoes()
        future = client.submit("echo", {"sleep": np.array(0.5, np.float32), "x": np.zeros(3, np.float32)})
        top.wait_for(r"[1-9]/2 +echo:1")
        future.result()
        top.press("s")
        top.wait_for("by load")
        os.kill(worker_pids(broker.frontend)[0], signal.SIGKILL)
        top.wait_for(r"\x1b\[1;31mlost \d+ s ago", colored=True)
        wait_for_workers(broker.frontend, 2)
        top.wait_for(r"(?s)tcp://((?!tcp://).)*ready((?!tcp://).)*ready")
        broker.broker.kill()
        top.wait_for("no broker answers")
        top.press("q")
        assert top.process.wait(10) == 0
        assert "\x1b[?1049l" in top.read() and top.echoes()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_leave_the_terminal_as_it_was(number: signal.Signals, code: int, echo_fabric: Fabric) -> None:
    with AtTerminal("top", "--broker", echo_fabric.frontend) as top:
        top.wait_for("q quit")
        top.process.send_signal(number)
        assert top.process.wait(10) == code
        assert "\x1b[?1049l" in top.read() and top.echoes()
