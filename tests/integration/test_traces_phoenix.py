"""Traces in a server of others, Arize Phoenix (`pip install arize-phoenix`): it shows what we sent."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.integration.test_traces import CALLER, HEADER, INFER, TRACE, ask
from tests.support.processes import eventually, faulty_workers, running_broker, running_gateway, wait_for_workers

PHOENIX = shutil.which("phoenix")

pytestmark = [
    pytest.mark.observers,
    pytest.mark.skipif(PHOENIX is None, reason="phoenix (arize-phoenix) is not installed"),
]


def get(url: str) -> Any:
    """The JSON of an answer; None while there is none."""
    try:
        with urllib.request.urlopen(url, timeout=5) as response:
            return json.load(response)
    except (OSError, ValueError):
        return None


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


@pytest.fixture
def phoenix(tmp_path: Path) -> Iterator[str]:
    assert PHOENIX is not None
    port = free_port()
    environment = {
        **os.environ,
        "PHOENIX_WORKING_DIR": str(tmp_path),
        "PHOENIX_HOST": "127.0.0.1",
        "PHOENIX_PORT": str(port),
        "PHOENIX_GRPC_PORT": str(free_port()),
        "PHOENIX_TELEMETRY_ENABLED": "false",
    }
    with (tmp_path / "log").open("wb") as log:
        server = subprocess.Popen([PHOENIX, "serve"], env=environment, stdout=log, stderr=log)
    url = f"http://127.0.0.1:{port}"
    try:
        eventually(lambda: get(f"{url}/v1/projects"), 120.0)
        yield url
    finally:
        server.terminate()
        server.wait(30)


def test_a_request_is_shown(phoenix: str) -> None:
    options = ["--traces", phoenix, "--trace-share", "0"]
    with (
        running_broker(*options) as broker,
        faulty_workers(broker.backend),
        running_gateway(broker.frontend, options=options) as gateway,
    ):
        wait_for_workers(broker.frontend, 1)
        assert ask(gateway, "v2/models/echo/infer", INFER, HEADER) == 200
        assert gateway.process.end() == 0

    def shown() -> dict[str, Any] | None:
        answer = get(f"{phoenix}/v1/projects/default/spans")
        spans = {span["name"]: span for span in answer["data"]} if answer else {}
        return spans if len(spans) == 4 else None

    spans = eventually(shown)
    assert spans is not None
    assert {span["context"]["trace_id"] for span in spans.values()} == {TRACE}
    server, attempt = spans["infer echo"]["context"]["span_id"], spans["attempt"]["context"]["span_id"]
    parents = {name: span["parent_id"] for name, span in spans.items()}
    assert parents == {"infer echo": CALLER, "queue": server, "attempt": server, "compute": attempt}
    assert spans["attempt"]["attributes"]["zmq_offload.outcome"] == "served"
