"""Logs of real processes: JSON, what others write to a worker's stderr, its last words, and options from a file."""

from __future__ import annotations

import json
import re
import signal
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import pytest

from tests.support.processes import running_broker, running_gateway, running_workers

CRASHES = """
import os
if "ZMQ_OFFLOAD_PARENT_FD" in os.environ:
    many = os.cpu_count() + 1
    os.environ |= {"TVM_USE_RUNTIME_LIB": "1", "TVM_BIND_THREADS": "1", "TVM_NUM_THREADS": str(many)}
    import tvm.runtime, tvm_ffi
    tvm_ffi.get_global_func("runtime.config_threadpool")(1, many)
    os.write(2, b"a forged\\x1b[31m line\\r\\nand the last words, without a line end")
    os.abort()
"""
"""A sitecustomize that every Python process imports first. In a worker, TVM complains of more threads than cores."""


def events(lines: list[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in lines if line.startswith("{")]


def test_all_processes_log_objects_of_json(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZMQ_OFFLOAD_LOG_FORMAT", "json")
    with running_broker() as fabric, running_workers(fabric.backend, "--executor", "echo", "--name", "w") as workers:
        workers.wait_for("connected to broker")
        assert workers.end(signal.SIGTERM) == 0
        fabric.broker.wait_for("left")
        for seen in (workers.seen(), fabric.broker.seen()):
            assert all(line.startswith(("{", "ready")) for line in seen), seen
        said = {
            (e["program"], e["logger"], e.get("worker"), "supervisor" in e["logger"]) for e in events(workers.seen())
        }
        assert said == {("worker", "workers.supervisor", None, True), ("worker", "workers", "w", False)}


def test_last_words_of_a_worker_are_events(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sitecustomize.py").write_text(CRASHES)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("ZMQ_OFFLOAD_LOG_FORMAT", "json")
    with running_workers("tcp://127.0.0.1:1", "--executor", "echo", "--name", "w") as workers:
        workers.wait_for(r"ended with code -6 \(SIGABRT\)")
        said = [e for e in events(workers.seen()) if e["logger"] == "workers.stderr"]
        of_tvm = [e for e in said if e["source"] == "tvm"]
        form = r"worker 0: \S+/threading_backend\.cc:\d+: The thread affinity cannot be set"
        assert of_tvm and all(e["level"] == "warning" and re.match(form, e["message"]) for e in of_tvm)
        found = [e for e in said if e["source"] != "tvm"][:2]
        assert [(e["source"], e["level"], e["message"]) for e in found] == [
            ("stderr", "warning", "worker 0: a forged\x1b[31m line"),
            ("stderr", "warning", "worker 0: and the last words, without a line end"),
        ]
        assert all(e["worker"] == "w" and e["worker_pid"] != e["pid"] for e in said)
        texts = [e["message"] for e in events(workers.seen())]
        ended = next(at for at, text in enumerate(texts) if "ended with code" in text)
        assert any("last words" in text for text in texts[:ended]), "they come before the news of the end"


def test_the_access_log_has_a_slow_request_of_broker_and_gateway(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZMQ_OFFLOAD_LOG_FORMAT", "json")
    body = {"id": "mine", "inputs": [{"name": "x", "shape": [1], "datatype": "FP32", "data": [1.5]}]}
    with (
        running_broker("--access-log", "0") as fabric,
        running_workers(fabric.backend, "--executor", "echo", "--name", "w") as workers,
        running_gateway(fabric.frontend, options=["--access-log", "0"]) as gateway,
    ):
        workers.wait_for("connected to broker")
        request = Request(
            f"{gateway.url}/v2/models/echo/infer",
            json.dumps(body).encode(),
            {"Content-Type": "application/json", "traceparent": f"00-{'ab' * 16}-{'cd' * 8}-01"},
        )
        with urlopen(request, timeout=30) as response:
            assert response.status == 200
        for process, client in ((fabric.broker, "broker.access"), (gateway.process, "gateway.access")):
            process.wait_for(client)
            (event,) = [e for e in events(process.seen()) if e["logger"] == client]
            assert (event["model"], event["status"]) == ("echo", "OK")
            assert event["total"] >= event["queue"] + event["compute"] and event["bytes_in"] and event["bytes_out"]
            assert event.get("worker") == ("w" if client == "broker.access" else None)
            if client == "gateway.access":
                assert (event["request"], event["trace"]) == ("mine", "ab" * 16)
