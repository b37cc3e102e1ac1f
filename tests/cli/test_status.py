"""`zmq-offload status`: tables, colors, and `--watch`, also at a real terminal."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

from tests.console.test_progress import Terminal, plain
from tests.support.processes import ROOT, running_broker
from tests.support.terminals import AtTerminal
from zmq_offload import Client
from zmq_offload.cli.status import describe
from zmq_offload.console.tables import show, text
from zmq_offload.testing import Fabric

TIMES = {"bounds": [0.001, 0.01], "counts": [5, 5, 0], "sum": 0.05}
NUMBERS = {
    "requests": {"ok": 1000, "INTERNAL": 3}, "queue": TIMES, "compute": TIMES, "total": TIMES,
    "batch": {"bounds": [1, 2], "counts": [4, 4, 0], "sum": 12}, "rows": 12, "bytes_in": 3 * 1024**2, "bytes_out": 100,
    "queued": 2, "outstanding": 5,
}  # fmt: skip
WORKER = {
    "name": "w", "address": "10.0.0.7", "models": ["m:1"], "slots": 2, "outstanding": 1, "state": "quiet",
    "served": 7, "failed": 1, "silent": 0.25, "device": "cuda:0", "memory_bytes": 200 * 1024**2, "restarts": 1,
    "gpu": {"used_bytes": 10 * 1024**3, "total_bytes": 80 * 1024**3, "busy_percent": 87},
    "busy": 3.0, "running": ["m:1"],
}  # fmt: skip
MODEL = {"name": "m", "version": 1, "workers": 1, "latest": True, "slots": 2, "of_workers": 1, "of_slots": 2}


def status(**more: Any) -> dict[str, Any]:
    return {
        "uptime": 93784.0, "stopping": False,
        "requests": {"accepted": 9, "outstanding": 1, "queued": 0, "queued_bytes": 0, "served": 1000,
                     "failed": {"INTERNAL": 3}, "refused": {}, "retried": 0},
        "dropped": {"late": 0}, "lost_workers": 0, "models": [MODEL], "queues": [], "workers": [], **more,
    }  # fmt: skip


def words(shown: str, begin: str) -> list[str]:
    return next(line for line in shown.splitlines() if line.strip().startswith(begin)).split("  ")


def test_a_status_of_an_older_broker_is_shown() -> None:
    old = {key: value for key, value in WORKER.items() if key in
           ("name", "models", "slots", "outstanding", "state", "served", "failed", "silent")}  # fmt: skip
    shown = text(describe(status(workers=[old])))
    assert "traffic" not in shown and "memory" not in shown and "up 1 d 2 h" in shown
    assert re.search(r"w +2 +1 +7 +1 +0.2 s +quiet +m:1", shown)


def test_times_and_sizes_have_units() -> None:
    shown = text(describe(status(models=[MODEL | {"statistics": NUMBERS}], workers=[WORKER])))
    row = words(shown, "m:1")
    assert [cell.strip() for cell in row if cell] == [
        "m:1", "1,000", "3", "2", "3", "1 ms, 9.1 ms", "1 ms, 9.1 ms", "1 ms, 9.1 ms", "1.5", "3 MiB", "100 B",
    ]  # fmt: skip
    assert re.search(r"quiet +m:1 +cuda:0 +10 GiB of 80 GiB, 87% +200 MiB +3 s +1 +m:1", shown)


def test_a_canary_and_labels_are_shown() -> None:
    trial = {"share": 0.1, "returned": "", "requests": 50, "failed": 1, "others": 400, "others_failed": 2}
    shown = text(describe(status(models=[MODEL | {"labels": ["next", "v1"], "canary": trial}])))
    assert "next, v1" in shown and "0.1 of the requests; 1 of 50 failed, of the others 2 of 400" in shown
    shown = text(describe(status(models=[MODEL | {"canary": trial | {"returned": "20 of 100 failed"}}])))
    assert "returned: 20 of 100 failed" in shown and "labels" not in shown


SHARED = {"shares": True, "arena_bytes": 512 * 1024**2, "taken_bytes": 3 * 1024**2, "lent_bytes": 0, "mapped_bytes": 0}
CLIENT = {
    "address": "127.0.0.1", "process": 4711, "connections": 2, "transport": "tcp", "shared_memory": SHARED,
}  # fmt: skip
FAR = {
    "address": "10.0.0.8", "process": 0, "connections": 1, "transport": "tcp",
    "shared_memory": {"shares": False, "why": "another host"},
}  # fmt: skip


def test_connections_say_who_shares_memory_and_why_others_do_not() -> None:
    worker = WORKER | {"transport": "ipc", "shared_memory": SHARED | {"lent_bytes": 1024**2, "mapped_bytes": 2048}}
    clients = {"connected": 3, "sharing": 2, "listed": [CLIENT, FAR]}
    shown = text(describe(status(workers=[worker], clients=clients, shared_memory=SHARED)))
    assert re.search(r"clients +3 connected, 2 of them sharing memory", shown)
    rows = shown[shown.index("connections:") :]
    assert re.search(r"this broker +yes +0 B +3 MiB +512 MiB +0 B", rows)
    assert re.search(r"worker w +10.0.0.7 +ipc +yes +1 MiB +3 MiB +512 MiB +2 KiB", rows)
    assert re.search(r"2 clients, process 4711 +127.0.0.1 +tcp +yes", rows)
    assert re.search(r"client +10.0.0.8 +tcp +no: another host", rows)
    asking = {"connected": 1, "sharing": 1, "listed": [CLIENT | {"process": os.getpid()}]}
    tables = SHARED | {"arena_bytes": 4096, "taken_bytes": 128 * 1024}
    shown = text(describe(status(clients=asking, shared_memory=tables)))
    assert re.search(r"this broker +yes +128 KiB +0 B", shown), "it lends nothing, so it has no limit"
    assert re.search(r"this command +127.0.0.1 +tcp +yes", shown)
    many = {"connected": 50, "sharing": 0, "listed": [FAR] * 50}
    shown = text(describe(status(clients=many)))
    assert shown.count("another host") == 20 and shown.endswith("and 30 clients more: see --json")
    keyed = WORKER | {"transport": "tcp", "shared_memory": {"shares": False, "why": "keys"}}
    assert re.search(r"worker w +10.0.0.7 +tcp +no: keys", text(describe(status(workers=[keyed]))))


def test_of_several_brokers_it_is_said_how_many_answer() -> None:
    one = {
        "endpoint": "tcp://a:1",
        "error": "",
        "uptime": 5.0,
        "served": 1,
        "outstanding": 0,
        "queued": 0,
        "restarts": 0,
    }
    shown = text(describe(status(brokers=[one, one | {"endpoint": "tcp://b:1", "error": "no broker answers"}])))
    assert re.match(r"brokers +1 of 2 answer, up ", shown) and "no broker answers" in shown
    assert re.match(r"broker +up ", text(describe(status())))


def test_rates_are_those_since_the_last_look() -> None:
    before = status(models=[MODEL | {"statistics": NUMBERS}], workers=[WORKER])
    later = {**NUMBERS, "requests": {"ok": 1100}}
    now = status(models=[MODEL | {"statistics": later}], workers=[WORKER | {"busy": 4.0}])
    now["requests"] = now["requests"] | {"served": 1100}
    shown = text(describe(now, before, 2.0))
    assert "1,100 served (50.0 per s)" in shown and "50%" in shown and re.search(r"m:1 +1,100 +0 +50.0", shown)
    assert "per s" not in text(describe(before, now, 2.0)), "a broker that was started again"


def test_a_terminal_shows_errors_in_red_and_states_in_color(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "80")
    terminal = Terminal()
    show(*describe(status(models=[MODEL | {"statistics": NUMBERS}], workers=[WORKER])), stream=terminal)
    shown = terminal.getvalue()
    assert re.search(r"\x1b\[31m +1\x1b\[0m", shown) and "\x1b[33mquiet\x1b[0m" in shown
    assert re.search(r"\x1b\[[0-9;]*31m *INTERNAL: 3", shown)
    assert max(map(len, plain(shown).splitlines())) <= 80


def test_watch_draws_over_itself_and_survives_a_restart_of_the_broker() -> None:
    with running_broker() as broker:
        arguments = ("status", "--watch", "0.2", "--timeout", "0.3", "--broker", broker.frontend)
        with AtTerminal(*arguments) as watch:
            watch.wait_for(r"workers: none")
            shown = watch.wait_for(r"\(0\.0 per s\)")
            assert "\x1b[H" in shown and "\x1b[?25l" not in shown
            broker.broker.kill()
            watch.wait_for(r"no broker answers \(.*\); it is asked again")
            with running_broker(frontend=broker.frontend):
                watch.wait_for(r"\(0\.0 per s\)")
            watch.process.send_signal(signal.SIGINT)
            assert watch.process.wait(10) == 130


def test_watch_into_a_pipe_appends(echo_fabric: Fabric) -> None:
    command = [sys.executable, "-m", "zmq_offload", "status", "--broker", echo_fabric.frontend, "--watch", "0.05"]
    for more in ([], ["--json"]):
        with subprocess.Popen([*command, *more], cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            if more:
                looks = [json.loads(process.stdout.readline()) for _ in range(3)]
                assert all(len(look["workers"]) == 2 for look in looks)
            else:
                first = [process.stdout.readline() for _ in range(40)]
                assert sum("requests " in line for line in first) >= 2 and "\x1b" not in "".join(first)
            process.send_signal(signal.SIGINT)
            assert process.wait(10) == 130


def test_traffic_of_a_real_fabric_is_shown(echo_fabric: Fabric) -> None:
    with Client(echo_fabric.frontend) as client:
        for _ in range(3):
            client.infer("echo", {"x": np.zeros(4, np.float32)})
        shown = text(describe(client.status()))
    assert re.search(r"echo:1 +[1-9]\d* +0 .*(us|ms)", shown), shown
